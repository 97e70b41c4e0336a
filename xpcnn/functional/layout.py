"""Batch-last memory: logically (N, C, H, W) and (N, D), in memory (C, H, W, N) and (D, N); and what may come in.

Every public function begins with `take`: it finds the backend, refuses by its name what is no array, and brings arrays
of a foreign byte order to the processor's own.

Runs of N lie side by side, so columns are copied in long runs, a product's result is the next layer's input, and
one channel is one contiguous row.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ConfigError, DTypeError, MixedBackendsError, ShapeError


def take(names: str, *arrays: Any) -> tuple[Any, ...]:
    """Return the backend of arrays and behind it the arrays, in native byte order; None stands for one not there.

    Raises
    ------
    DTypeError
        One is no plain array of a backend but a list, a scalar, a masked array, a `numpy.matrix`; `names`, one word
        for each array, say which.
    MixedBackendsError
        They lie on two backends.
    """
    try:
        backend = backend_of(*arrays)
    except MixedBackendsError:
        raise
    except DTypeError:
        for name, each in zip(names.split(), arrays, strict=True):
            if each is not None:
                _check_is_array(name, each)
        raise
    for each in arrays:
        if each is not None and not each.dtype.isnative:
            return backend, *(each if each is None else native(backend, each) for each in arrays)
    return backend, *arrays


def take_gradient(dy: Any, backend: Backend) -> Array:
    """Return the gradient of what a forward on `backend` gave, in native byte order; raise as `take` does."""
    here, dy = take("dy", dy)
    if here is not backend:
        raise _mixed("dy", here, backend)
    return dy


def _check_is_array(name: str, value: Any) -> None:
    try:
        backend_of(value)
    except DTypeError as error:
        kind, advice = type(value).__name__, "make one with xpcnn.get_backend().asarray(...)"
        if hasattr(value, "filled"):
            advice = "operations know no masks: fill it first with .filled(...)"
        raise DTypeError(f"{name}: expected an array, got {kind}; {advice}") from error


def native(backend: Backend, a: Array) -> Array:
    """Return `a` in the processor's own byte order, a copy where it has another."""
    if a.dtype.isnative:
        return a
    out = backend.empty(a.shape, a.dtype.newbyteorder("="))
    backend.xp.copyto(out, a)
    return out


def take_labels(logits: Any, labels: Any) -> tuple[Any, ...]:
    """Return what `take` does for logits and labels, of which the latter may be a list or tuple of numbers."""
    if isinstance(labels, (list, tuple)):
        backend, logits = take("logits", logits)
        try:
            labels = backend.asarray(labels)
        except (TypeError, ValueError) as error:  # rows of several lengths, None
            raise DTypeError(f"labels: expected class numbers or rows of one length, got {labels!r:.80}") from error
        if not labels.size:  # of no label nobody can tell the type
            labels = labels.astype("int64")
    return take("logits labels", logits, labels)


def number(name: str, value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return an option as a float; NumPy's scalars are numbers too.

    Raises
    ------
    ConfigError
        It is no finite number from `low` to `high`; the message says `what` was expected.
    """
    if type(value) is float or (not isinstance(value, bool) and isinstance(value, Real)):
        result = float(value)
        if math.isfinite(result) and low <= result <= high:
            return result
    raise ConfigError(f"{name}: expected {what}, got {value!r}")


def flag(name: str, value: Any) -> bool:
    """Return an option as a bool; raise ConfigError unless it is True or False, Python's or NumPy's."""
    if isinstance(value, bool):
        return value
    if type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise ConfigError(f"{name}: expected True or False, got {value!r}")


def plain(value: Any) -> Any:
    """Return a scalar of NumPy's as the bool, number or text that it stands for; anything else as it is."""
    if getattr(value, "shape", None) != ():
        return value
    kinds: dict[str, Callable[[Any], Any]] = {"b": bool, "i": int, "u": int, "f": float, "U": str}
    made = kinds.get(value.dtype.kind)
    return value if made is None else made(value)


def axis_of(x: Array, axis: Any) -> int:
    """Return an axis of `x` as an integer from 0; raise ShapeError where `x` has none such, or no value along it."""
    try:
        index = operator.index(axis)
    except TypeError:
        index = x.ndim
    ndim: int = x.ndim
    if isinstance(axis, bool) or not -ndim <= index < ndim or x.shape[index] == 0:
        raise ShapeError(f"axis: expected an axis of x that is not empty, got {axis!r} for shape {tuple(x.shape)}")
    return index % ndim


def bits(a: Array) -> Array:
    """Return floating numbers as integers, their bits: 0 or 1 times these selects, where 0 * inf would be nan."""
    return a.view(_INTEGERS[a.itemsize])


_INTEGERS = {2: "int16", 4: "int32", 8: "int64"}


def batch_last(backend: Backend, x: Array) -> Array:
    """Return `x` (N, ...) as a C-contiguous (..., N): itself where memory already lies so, else a copy."""
    if x.ndim == 4:
        x = x.transpose(1, 2, 3, 0)  # (C, H, W, N)
    else:
        x = x.T if x.ndim < 3 else x.transpose(*range(1, x.ndim), 0)  # (D, N)
    return x if x.flags.c_contiguous else backend.contiguous(x)


def batch_first(x: Array) -> Array:
    """Return the logical view (N, ...) of batch-last memory (..., N)."""
    if x.ndim == 4:
        return x.transpose(3, 0, 1, 2)  # (N, C, H, W)
    return x.T if x.ndim < 3 else x.transpose(x.ndim - 1, *range(x.ndim - 1))  # (N, D)


def copy_batch_last(backend: Backend, x: Array) -> Array:
    """Return a copy of `x` (N, ...) that lies batch-last and belongs to the caller."""
    copy = empty_batch_last(backend, tuple(x.shape), x.dtype)
    backend.copyto(copy, x)
    return copy


def empty_batch_last(backend: Backend, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array of a logical shape (N, ...) that lies batch-last."""
    return backend.empty((*shape[1:], shape[0]), dtype).transpose(len(shape) - 1, *range(len(shape) - 1))


def check_backend(name: str, x: Array, backend: Backend) -> None:
    """Raise MixedBackendsError unless `x` belongs to `backend`, DTypeError where it is no array."""
    here, _ = take(name, x)
    if here.home is not backend.home:  # an array that is traced has a backend of its own
        raise _mixed(name, here, backend)


def _mixed(name: str, here: Backend, backend: Backend) -> MixedBackendsError:
    return MixedBackendsError(
        f"{name}: expected all on one backend, got {here.name} for a forward on {backend.name}; bring it there "
        f'with xpcnn.use_backend("{backend.name}") and xpcnn.get_backend().asarray(...)'
    )


def check_floating(name: str, x: Array) -> None:
    """Raise DTypeError unless `x` is of a floating type."""
    if x.dtype.kind != "f":
        raise DTypeError(f"{name}: expected a floating type such as float32, got {x.dtype}; convert it first")


def check_ndim(name: str, x: Array, axes: str) -> None:
    """Raise ShapeError unless `x` has as many axes as named, such as "N, C, H, W"."""
    if x.ndim != axes.count(",") + 1:
        raise ShapeError(f"{name}: expected shape ({axes}), got {tuple(x.shape)}")


def check_images(name: str, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless a logical shape is (N, C, H, W) of a height and width of 1 or more."""
    if len(shape) != 4:
        raise ShapeError(f"{name}: expected shape (N, C, H, W), got {shape}")
    if not shape[2] or not shape[3]:
        raise ShapeError(f"{name}: expected a height and width of 1 or more, got {shape[2]} x {shape[3]} in {shape}")


def check_like(name: str, x: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise ShapeError or DTypeError unless `x` has this shape and dtype."""
    if tuple(x.shape) != tuple(shape):
        raise ShapeError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.dtype != dtype:
        raise DTypeError(f"{name}: expected dtype {dtype}, got {x.dtype}")
