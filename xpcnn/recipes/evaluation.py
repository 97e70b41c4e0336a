"""What a network says of a whole set: probabilities beside the numbers that they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xpcnn import functional as F
from xpcnn.backend import Array, Backend, backend_of
from xpcnn.data import DataLoader
from xpcnn.distributed import Communicator
from xpcnn.functional.part import Part, part_of
from xpcnn.nn import Module
from xpcnn.training import Metrics, Trainer
from xpcnn.training.evaluation import evaluating, fastest_forward
from xpcnn.training.shifts import mean_over_shifts


class Evaluation(NamedTuple):
    """Metrics of a set, and (N, K) probabilities and labels in its order, on the model's backend."""

    metrics: Metrics
    probabilities: Array
    labels: Array


def probabilities(model: Module, x: Array) -> Array:
    """Return what the model, in eval mode and without keeping anything, gives each class: (N, K)."""
    return F.softmax(_logits(model, model, [x]))


def evaluate(
    model: Module, loader: DataLoader, communicator: Communicator | None = None, average_shifts: int = 0
) -> Evaluation:
    """Return mean loss, accuracy and the probabilities behind them, over all samples of a loader that does not shuffle.

    Probabilities are averaged over shifts of the images as those of a `Predictor`, and the numbers are of the mean.
    With a communicator each rank computes a part of every batch, and all have the whole afterwards.

    Raises
    ------
    DataError
        A label is out of range.
    """
    if communicator is not None and communicator.size > 1:
        return _of_logits(model.backend, *_shared_out(model, loader, communicator, average_shifts))
    labels: list[Array] = []

    def batches() -> Any:
        for x, y in loader:
            labels.append(y)
            yield x

    backend = model.backend
    logits = _logits(model, _forward(model, average_shifts), batches())
    return _of_logits(backend, logits, backend.xp.concatenate(labels))


def _forward(model: Module, average_shifts: int) -> Callable[[Array], Array]:
    """Return what gives the logits, or the logarithm of the mean probabilities, which serves as such."""
    forward = fastest_forward(model)
    if not average_shifts:
        return forward

    def logits(x: Array) -> Array:
        mean = mean_over_shifts(lambda each: F.softmax(forward(each)), x, average_shifts)
        xp = backend_of(mean).xp
        return xp.log(xp.maximum(mean, float(xp.finfo(mean.dtype).tiny)))

    return logits


def _shared_out(
    model: Module, loader: DataLoader, communicator: Communicator, average_shifts: int
) -> tuple[Array, Array]:
    """Return logits and labels of all samples, of which each rank computes a part."""
    backend, forward = model.backend, _forward(model, average_shifts)
    logits = labels = None

    def divide(total: int) -> Part:
        return part_of(total, communicator.rank, communicator.size)

    for i, (x, y, part) in enumerate(loader.parts(divide)):
        ours = _logits(model, forward, [x])
        if logits is None or labels is None:
            logits = backend.zeros((loader.samples, ours.shape[1]), ours.dtype)
            labels = backend.zeros((loader.samples, *y.shape[1:]), y.dtype)
        if part.size:
            there = slice(i * loader.batch_size + part.start, i * loader.batch_size + part.stop)
            logits[there], labels[there] = ours, y
    # All but one rank add zeros.
    return communicator.allreduce(logits), communicator.allreduce(labels)


def _of_logits(backend: Backend, logits: Array, truth: Array) -> Evaluation:
    loss, _ = F.cross_entropy(logits, truth)
    right = backend.to_numpy(logits).argmax(axis=1) == _indices(backend.to_numpy(truth))
    metrics = Metrics(float(backend.to_numpy(loss)), int(right.sum()) / len(right), len(right))
    return Evaluation(metrics, F.softmax(logits), truth)


def _indices(labels: Any) -> Any:
    return labels.argmax(axis=1) if labels.ndim == 2 else labels


def _logits(model: Module, forward: Callable[[Array], Array], batches: Any) -> Array:
    with evaluating(model):
        return model.backend.xp.concatenate([forward(x) for x in batches])


class EvaluatingTrainer(Trainer):
    """A trainer that keeps its last evaluation, so that the pictures need no second pass over the set.

    Attributes
    ----------
    last : Evaluation or None
    last_loader : DataLoader or None
        Of what.
    average_shifts : int
        As for `evaluate`.
    """

    last: Evaluation | None = None
    last_loader: Any = None
    average_shifts: int = 0

    def evaluate(self, data: Any, *, per_class: bool = False) -> Metrics:
        """Return loss (a mean over the samples, whatever the training's) and accuracy."""
        if per_class or not isinstance(data, DataLoader):
            return super().evaluate(data, per_class=per_class)
        self.last, self.last_loader = evaluate(self.model, data, self.communicator, self.average_shifts), data
        return self.last.metrics
