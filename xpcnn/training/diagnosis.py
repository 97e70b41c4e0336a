"""Where a nan or an infinity came from, and where memory ran out: work that is done only when it has happened."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import OutOfMemoryError
from xpcnn.nn import Module, no_grad
from xpcnn.nn.contexts import trace
from xpcnn.nn.precision import call

if TYPE_CHECKING:
    from xpcnn.training.step import Step

LARGE_INPUT = 30.0  # inputs beyond this were hardly scaled: x / 255 and a normalisation stay below 5


def is_finite(backend: Backend, array: Array) -> bool:
    """Say whether all of `array` is finite. Waits for the device."""
    return bool(backend.to_numpy(backend.xp.all(backend.xp.isfinite(array))))


def explain(step: Step, x: Array, labels: Array, lr: float) -> str:
    """Say in one line where the first nan or inf of a step appeared, and what it probably comes from.

    The model must be in the state it had before the step. The batch is run again: forward layer by layer, then
    backward.
    """
    backend, model = step.backend, step.model
    if not is_finite(backend, x):
        return "first in the input of the batch; likely cause: nan or inf in the data"
    for name, parameter in model.named_parameters():
        if not is_finite(backend, parameter.data):
            return f"first in parameter {name!r}, before the step; likely cause: it was loaded or set so"
    found = _first_bad_layer(step, x)
    culprit = _first_bad_gradient(step, x, labels)
    if found is not None:
        layer, module = found
        own = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] == layer]
        culprit = own[0] if own else culprit
        where = f"first in layer {_describe(layer, module)}"
    elif culprit is not None:
        layer = culprit.rpartition(".")[0]
        where = f"first in the gradient of layer {_describe(layer, dict(model.named_modules())[layer])}"
    else:
        where = "first in the loss"
    if culprit is not None:
        where += f", parameter {culprit!r}"
    largest = float(backend.to_numpy(backend.xp.max(backend.xp.absolute(x))))
    if largest > LARGE_INPUT:
        return f"{where}; likely cause: unscaled input (values up to {largest:.4g}: divide pixels by 255)"
    if step.scale_is_fixed:
        return f"{where}; likely cause: the scale of the loss is too high, use a lower one or a backoff_factor below 1"
    return f"{where}; likely cause: the learning rate ({lr:.4g}) is too high, try a tenth of it"


def _first_bad_layer(step: Step, x: Array) -> tuple[str, Module] | None:
    """Return the first layer that makes nan or inf of finite numbers."""
    backend, model = step.backend, step.model
    try:
        with no_grad(), backend.errstate(), trace() as record:
            call(model, x)
        names = {id(module): name for name, module in model.named_modules()}
        for module, before, after in record:
            if id(module) in names and is_finite(backend, before) and not is_finite(backend, after):
                return names[id(module)], module
        return None
    finally:
        step.restore_buffers()


def _first_bad_gradient(step: Step, x: Array, labels: Array) -> str | None:
    """Return the parameter whose gradient goes bad first: the last of the net, for backward runs from there."""
    try:
        with step.backend.errstate():
            step.run_backward(x, labels)
        for name, parameter in reversed(list(step.model.named_parameters())):
            if not parameter.grad_is_zero and not is_finite(step.backend, parameter.grad):
                return name
        return None
    finally:
        step.restore_buffers()
        step.optimizer.zero_grad()


def _describe(name: str, module: Module) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"({type(module).__name__})"


def layer_of_traceback(model: Module, traceback: TracebackType | None) -> str | None:
    """Return the innermost layer that was at work when an exception was raised."""
    names = {id(module): _describe(name, module) for name, module in model.named_modules() if name}
    found = None
    while traceback is not None:
        owner: Any = traceback.tb_frame.f_locals.get("self")
        found = names.get(id(owner), found)
        traceback = traceback.tb_next
    return found


def largest_batch(run: Callable[[int], Any], size: int) -> int | None:
    """Return the first of size/2, size/4 ... for which `run` does not run out of memory; None if none does."""
    for halvings in range(1, int(math.log2(max(1, size))) + 1):
        try:
            run(size >> halvings)
        except MemoryError:
            continue
        return size >> halvings
    return None


def out_of_memory(step: Step, number: int, error: MemoryError, x: Any, labels: Any) -> OutOfMemoryError:
    """Return an error that names the layer and a batch that fits; leaves nothing of the step that failed.

    `x` and `labels` are a batch, or tuples of the batches of one step, of which the largest is looked at.
    """
    layer = layer_of_traceback(step.model, error.__traceback__)
    cause: BaseException | None = error
    while cause is not None:  # their frames, and caches, hold the arrays of the step that failed
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    step.model.forget()
    if isinstance(x, tuple):
        x, labels = max(zip(x, labels, strict=True), key=lambda pair: pair[0].shape[0])
    size = largest_batch(lambda n: step.try_size(x[:n], labels[:n]), x.shape[0])
    advice = f"a batch of {size} fits" if size else "not even a batch of 1 fits: make the images or the net smaller"
    where = f" in layer {layer}" if layer else ""
    return OutOfMemoryError(
        f"step {number}: out of memory{where} with a batch of {x.shape[0]}; {advice} "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__:.120})"
    )
