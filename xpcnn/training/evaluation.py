"""Evaluation: loss and accuracy over a data set, without a trace in the model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from xpcnn import random
from xpcnn.backend import Array, backend_of, use_backend
from xpcnn.distributed import Communicator
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.functional.part import part_of
from xpcnn.nn import Inference, Module, no_grad
from xpcnn.nn.inquiries import is_ours
from xpcnn.nn.precision import call, computes_in_float16
from xpcnn.training.batches import check_batches, shared, unpack
from xpcnn.training.metrics import Ledger, Metrics, has_accuracy, write_hits
from xpcnn.training.per_class import class_metrics


def evaluate(
    model: Module,
    criterion: Any,
    data: Iterable[tuple[Array, Array]],
    read_every: int = 50,
    communicator: Communicator | None = None,
    *,
    per_class: bool = False,
) -> Metrics:
    """Return loss and accuracy over all samples of `data`, each counted once, in eval mode and without gradients.

    Parameters
    ----------
    model : Module
        Every layer's mode is afterwards what it was before.
    criterion : loss object
    data : iterable of (x, labels)
        Batches on the model's backend, of any sizes.
    read_every : int
        Batches between two looks at what the device has done.
    communicator : Communicator, optional
        Whose ranks each take a part of every batch, and have the same metrics afterwards.
    per_class : bool
        Whether to tell precision, recall and F1 of each class too; each rank then computes all batches.

    Raises
    ------
    ConfigError, DataError
        `data` is no iterable of batches, or has none; the targets are no classes, but asked for by class.
    """
    check_batches("data", data)
    communicator = None if per_class else communicator
    if per_class and not has_accuracy(criterion):
        raise ConfigError(f"per_class: expected a loss of classes with it, got {type(criterion).__name__}")
    kept: list[tuple[Array, Array]] = []
    sums = getattr(criterion, "reduction", "mean") == "sum"
    backend = backend_of(next(iter(model.parameters())).data)
    forward = fastest_forward(model)
    ledger = Ledger(backend, 2, read_every)
    hits_place = ledger.row[1:2].reshape(())
    loss, hits, count = 0.0, 0.0, 0
    sizes: list[int] = []
    widest = 0

    def read() -> None:
        nonlocal loss, hits
        for (value, right), size in zip(ledger.read(), sizes, strict=True):
            loss += value if sums else value * size
            hits += right
        sizes.clear()

    # A loader draws its order; what training draws must not depend on that.
    with evaluating(model), random.fork_rng():
        for x, labels in parts_of(data, communicator):
            try:
                logits = forward(x)
            except (ShapeError, DTypeError):
                model(x)  # raises the same, and names the layer, which the inference form cannot
                raise
            ledger.row[0:1] = criterion(logits, labels)
            if has_accuracy(criterion):
                write_hits(logits, labels, hits_place)
            if per_class:
                classes = labels if labels.ndim < logits.ndim else backend.xp.argmax(labels, axis=1)
                kept.append((classes.reshape(-1), backend.xp.argmax(logits, axis=1).reshape(-1)))
                widest = max(widest, logits.shape[1])
            ledger.keep()
            sizes.append(x.shape[0])
            count += x.shape[0]
            if ledger.full:
                read()
        read()
    if communicator is not None and communicator.size > 1:
        with use_backend("numpy") as host:
            loss, hits, total = communicator.allreduce(host.asarray([loss, hits, float(count)])).tolist()  # on the host
        count = int(total)
    if not count:
        raise DataError("data: expected at least one batch, got none")
    classes_told = None
    if per_class:
        truth, said = (backend.to_numpy(backend.xp.concatenate(side)) for side in zip(*kept, strict=True))
        counted = truth != getattr(criterion, "ignore_index", None)
        truth, said = truth[counted], said[counted]
        classes_told = class_metrics(truth, said, num_classes=widest)
    return Metrics(loss / count, hits / count if has_accuracy(criterion) else math.nan, count, classes_told)


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Set a model to eval mode inside a `with` block that keeps no caches; give each module its own mode back."""
    modes = [(module, module.training) for module in model.modules() if module.training]
    try:
        for module, _ in modes:
            module.training = False
        with no_grad(), model.backend.errstate():
            yield
    finally:
        for module, training in modes:
            module.training = training


def parts_of(data: Iterable[tuple[Array, Array]], communicator: Communicator | None) -> Iterator[tuple[Array, Array]]:
    """Yield what this rank is to evaluate of each batch; nothing of one that has less images than there are ranks."""
    if communicator is None or communicator.size == 1:
        yield from (unpack("data", batch) for batch in data)
        return
    for x, labels, part in shared(data, lambda total: part_of(total, communicator.rank, communicator.size), "data"):
        if part.size:
            yield x, labels


def fastest_forward(model: Module) -> Callable[[Array], Array]:
    """Return what gives the logits of the model as it is now, in eval mode: its inference form, or itself.

    Modules of the user's own, and those with hooks, are called where they are: they may count, draw, or look at what
    is around them.
    """
    if computes_in_float16(model):
        return lambda x: call(model, x, True)
    if not all(is_ours(module) and not module._forward_hooks for module in model.modules()):
        return model
    # On a device an evaluation's few batches do not pay for a record.
    return Inference(model) if model.backend.immediate else Inference(model, records=0)
