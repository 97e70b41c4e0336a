"""Losses of each number by itself, with their gradients: squared and absolute error, and yes or no.

Each is within a few eps of the dtype (float32 for float16) times max(1, |loss|), its gradient within a few eps of the
largest slope; their sums round as sums do. The mean over nothing is nan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional.layout import check_floating, check_like, take
from xpcnn.functional.loss import check_reduction, mean_of
from xpcnn.functional.precision import cast, is_narrow

# Fills `dx` with the slopes of each number's loss and returns the losses.
Loss = Callable[[Backend, Array, Array, Array], Array]


def _reduce(x: Array, target: Array, reduction: str, loss_of: Loss) -> tuple[Array, Array]:
    """Return the mean or sum of losses, and its gradient."""
    backend, x, target = take("x target", x, target)
    check_floating("x", x)
    check_like("target", target, tuple(x.shape), x.dtype)
    check_reduction(reduction)
    if is_narrow(x.dtype):
        wider = cast(backend, x, "float32"), cast(backend, target, "float32")
        loss, dx = _reduce(*wider, reduction, loss_of)
        return loss, cast(backend, dx, x.dtype)
    scale = mean_of(x.size) if reduction == "mean" else 1.0
    with backend.errstate():
        dx, loss = backend.empty(x.shape, x.dtype), backend.empty((), x.dtype)
        backend.xp.sum(loss_of(backend, x, target, dx), out=loss)
        backend.xp.multiply(loss, scale, out=loss)
        backend.xp.multiply(dx, scale, out=dx)
    return loss, dx


def mse_loss(x: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, Array]:
    """Return the mean (or sum) over all elements of (x - target)^2, and its gradient.

    Parameters
    ----------
    x, target : array of one shape, floating
    reduction : str
        "mean" or "sum".

    Returns
    -------
    loss : array, 0-d, dtype of `x` (float32 for float16)
    dx : array like `x`

    Raises
    ------
    ShapeError, DTypeError, ConfigError, MixedBackendsError
        The two do not fit each other, or the reduction is unknown.

    Examples
    --------
    >>> loss, dx = F.mse_loss(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    >>> float(loss), dx
    (2.0, array([ 0., -2.]))
    """
    return _reduce(x, target, reduction, _squares)


def _squares(backend: Backend, x: Array, target: Array, dx: Array) -> Array:
    xp = backend.xp
    xp.subtract(x, target, out=dx)
    squares = xp.multiply(dx, dx)
    xp.multiply(dx, 2.0, out=dx)
    return squares


def l1_loss(x: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, Array]:
    """Return the mean (or sum) over all elements of |x - target|, and its gradient, sign(x - target).

    Arguments, results and errors as for `mse_loss`. Where both are equal the gradient is 0.

    Examples
    --------
    >>> loss, dx = F.l1_loss(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    >>> float(loss), dx
    (1.0, array([ 0. , -0.5]))
    """
    return _reduce(x, target, reduction, _distances)


def _distances(backend: Backend, x: Array, target: Array, dx: Array) -> Array:
    xp = backend.xp
    xp.subtract(x, target, out=dx)
    distances = xp.absolute(dx)
    xp.sign(dx, out=dx)
    return distances


def binary_cross_entropy_with_logits(
    x: Array, target: Array, *, pos_weight: Array | None = None, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return -(p t log s(x) + (1 - t) log s(-x)), s the sigmoid, over all elements, and its gradient.

    Each number answers a question of its own by yes or no; the gradient is (1 - t) s(x) - p t s(-x).

    Parameters
    ----------
    x : array, floating
        Logits.
    target : array like `x`
        t, from 0 to 1.
    pos_weight : array that broadcasts to the shape of `x`, floating, optional
        p, such as (K,) for `x` (N, K): above 1 for questions that are seldom answered by yes.
    reduction : str
        "mean" or "sum" over all elements.

    Returns
    -------
    loss : array, 0-d, dtype of `x` (float32 for float16)
    dx : array like `x`

    Raises
    ------
    ShapeError, DTypeError, ConfigError, MixedBackendsError
        Arrays do not fit each other, or the reduction is unknown.

    Examples
    --------
    >>> loss, dx = F.binary_cross_entropy_with_logits(np.array([0.0, 0.0]), np.array([0.0, 1.0]))
    >>> round(float(loss), 4), dx
    (0.6931, array([ 0.25, -0.25]))
    """
    _, x, target, pos_weight = take("x target pos_weight", x, target, pos_weight)
    if pos_weight is not None:
        _check_broadcasts(pos_weight, tuple(x.shape))

    def losses(backend: Backend, x: Array, target: Array, dx: Array) -> Array:
        xp = backend.xp
        no, yes = xp.subtract(1.0, target), target
        if pos_weight is not None:
            same = pos_weight.dtype == x.dtype
            yes = xp.multiply(target, pos_weight if same else cast(backend, pos_weight, x.dtype))
        above, below = xp.maximum(x, 0), xp.maximum(xp.negative(x), 0)
        small = xp.exp(xp.negative(xp.absolute(x)))
        rest = xp.log1p(small)  # what softplus(x) = log(1 + exp(x)) lies above max(x, 0)
        divisor = xp.add(small, 1.0)
        sigmoid = xp.divide(xp.exp(xp.negative(below)), divisor)
        other = xp.divide(xp.exp(xp.negative(above)), divisor)  # 1 - sigmoid, with all its digits
        xp.subtract(xp.multiply(no, sigmoid), xp.multiply(yes, other), out=dx)
        return xp.add(xp.multiply(no, xp.add(above, rest)), xp.multiply(yes, xp.add(below, rest)))

    return _reduce(x, target, reduction, losses)


def _check_broadcasts(pos_weight: Array, shape: tuple[int, ...]) -> None:
    given: Any = tuple(pos_weight.shape)
    last = shape[len(shape) - len(given) :]
    if len(given) > len(shape) or any(size not in (1, wanted) for size, wanted in zip(given, last, strict=True)):
        raise ShapeError(f"pos_weight: expected a shape that broadcasts to {shape}, got {given}")
    if pos_weight.dtype.kind != "f":
        raise DTypeError(f"pos_weight: expected a floating type such as float32, got {pos_weight.dtype}")
