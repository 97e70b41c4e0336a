"""Softmax and log-softmax along an axis, and their gradients."""

from __future__ import annotations

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ShapeError
from xpcnn.functional.layout import check_floating, check_like
from xpcnn.functional.precision import cast, is_narrow


def softmax(x: Array, axis: int = -1) -> Array:
    """Return exp(x) / sum of exp(x) along `axis`; the maximum is taken off first, so nothing overflows.

    Parameters
    ----------
    x : array, floating
    axis : int

    Returns
    -------
    array, shape and dtype of `x`

    Raises
    ------
    DTypeError, ShapeError
        `x` is not floating, or has no such axis.
    """
    backend = backend_of(x)
    _check(x, axis)
    if is_narrow(x.dtype):
        return cast(backend, softmax(cast(backend, x, "float32"), axis), x.dtype)
    xp = backend.xp
    e = xp.exp(xp.subtract(x, xp.max(x, axis=axis, keepdims=True)))
    return xp.divide(e, xp.sum(e, axis=axis, keepdims=True))


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """Return dx = y (dy - sum of dy y) of `softmax`, from its result `y`."""
    check_like("dy", dy, tuple(y.shape), y.dtype)
    backend = backend_of(dy, y)
    if is_narrow(y.dtype):
        return cast(backend, softmax_backward(cast(backend, dy, "float32"), cast(backend, y, "float32"), axis), y.dtype)
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return x - log(sum of exp(x)) along `axis`; arguments and result as for `softmax`."""
    backend = backend_of(x)
    _check(x, axis)
    if is_narrow(x.dtype):
        return cast(backend, log_softmax(cast(backend, x, "float32"), axis), x.dtype)
    xp = backend.xp
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """Return dx = dy - exp(y) * sum of dy of `log_softmax`, from its result `y`."""
    check_like("dy", dy, tuple(y.shape), y.dtype)
    backend = backend_of(dy, y)
    if is_narrow(y.dtype):
        wider = cast(backend, dy, "float32"), cast(backend, y, "float32")
        return cast(backend, log_softmax_backward(*wider, axis), y.dtype)
    xp = backend.xp
    return dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True)


def _check(x: Array, axis: int) -> None:
    check_floating("x", x)
    if not isinstance(axis, int) or not -x.ndim <= axis < x.ndim or x.shape[axis] == 0:
        raise ShapeError(f"axis: expected an axis of x that is not empty, got {axis!r} for shape {tuple(x.shape)}")
