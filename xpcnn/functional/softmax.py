"""Softmax and log-softmax along an axis, and their gradients.

softmax is within a few eps of the dtype, relative; log-softmax within a few eps times max(1, |y|); float16 is computed
in float32 and rounded once. A class at -inf has probability 0; where all are, or one is inf or nan, the sample is nan.
"""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.functional.layout import axis_of, check_floating, check_like, take
from xpcnn.functional.precision import cast, is_narrow


def softmax(x: Array, axis: int = -1) -> Array:
    """Return exp(x) / sum of exp(x) along `axis`; the maximum is taken off first, so nothing overflows.

    Parameters
    ----------
    x : array of any shape, floating
    axis : int

    Returns
    -------
    array, shape and dtype of `x`

    Raises
    ------
    DTypeError, ShapeError
        `x` is not floating, or has no such axis.

    Examples
    --------
    >>> F.softmax(np.array([[0.0, 0.0], [0.0, np.log(3.0)]])).round(3)
    array([[0.5 , 0.5 ],
           [0.25, 0.75]])
    """
    backend, x = take("x", x)
    check_floating("x", x)
    axis = axis_of(x, axis)
    if is_narrow(x.dtype):
        return cast(backend, softmax(cast(backend, x, "float32"), axis), x.dtype)
    xp = backend.xp
    with backend.errstate():
        e = xp.exp(xp.subtract(x, xp.max(x, axis=axis, keepdims=True)))
        return xp.divide(e, xp.sum(e, axis=axis, keepdims=True))


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """Return dx = y (dy - sum of dy y) of `softmax`, from its result `y`.

    Examples
    --------
    >>> y = F.softmax(np.array([[0.0, 0.0]]))
    >>> F.softmax_backward(np.array([[1.0, 0.0]]), y)
    array([[ 0.25, -0.25]])
    """
    backend, dy, y = take("dy y", dy, y)
    check_like("dy", dy, tuple(y.shape), y.dtype)
    axis = axis_of(y, axis)
    if is_narrow(y.dtype):
        return cast(backend, softmax_backward(cast(backend, dy, "float32"), cast(backend, y, "float32"), axis), y.dtype)
    xp = backend.xp
    with backend.errstate():
        mean = xp.sum(xp.multiply(dy, y), axis=axis, keepdims=True)
        return xp.multiply(y, xp.subtract(dy, mean))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return x - log(sum of exp(x)) along `axis`; arguments and result as for `softmax`.

    Examples
    --------
    >>> F.log_softmax(np.array([[0.0, 1000.0]]))  # exp(1000) would overflow
    array([[-1000.,     0.]])
    """
    backend, x = take("x", x)
    check_floating("x", x)
    axis = axis_of(x, axis)
    if is_narrow(x.dtype):
        return cast(backend, log_softmax(cast(backend, x, "float32"), axis), x.dtype)
    xp = backend.xp
    with backend.errstate():
        shifted = xp.subtract(x, xp.max(x, axis=axis, keepdims=True))
        return xp.subtract(shifted, xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True)))


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """Return dx = dy - exp(y) * sum of dy of `log_softmax`, from its result `y`.

    Examples
    --------
    >>> y = F.log_softmax(np.array([[0.0, 0.0]]))
    >>> F.log_softmax_backward(np.array([[1.0, 0.0]]), y)
    array([[ 0.5, -0.5]])
    """
    backend, dy, y = take("dy y", dy, y)
    check_like("dy", dy, tuple(y.shape), y.dtype)
    axis = axis_of(y, axis)
    if is_narrow(y.dtype):
        wider = cast(backend, dy, "float32"), cast(backend, y, "float32")
        return cast(backend, log_softmax_backward(*wider, axis), y.dtype)
    xp = backend.xp
    with backend.errstate():
        return xp.subtract(dy, xp.multiply(xp.exp(y), xp.sum(dy, axis=axis, keepdims=True)))
