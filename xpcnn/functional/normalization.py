"""Batch normalisation over (N, C, H, W) and (N, C), with running statistics.

Training, with the mean m and biased variance v of a channel's n values (Ioffe and Szegedy 2015, arXiv:1502.03167):

    xhat = (x - m) / sqrt(v + eps)      y = gamma xhat + beta
    dbeta = sum dy      dgamma = sum dy xhat      dx = gamma / sqrt(v + eps) (dy - dbeta / n - xhat dgamma / n)

Evaluation puts the running mean and variance in the place of m and v, and they get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ShapeError
from xpcnn.functional.channelwise import ChainCache, ChannelOp, Shape, run, run_backward
from xpcnn.functional.layout import check_like
from xpcnn.functional.precision import wide
from xpcnn.functional.primitive import primitive


@primitive
def batch_norm_train(
    backend: Backend, x: Array, gamma: Array, beta: Array, eps: float, out: Array
) -> tuple[Array, Array, Array]:
    """Fill out (C, n) with the normalised x (C, n); return mean, biased variance and 1/sqrt(variance + eps), (C,)."""
    xp, n = backend.xp, x.shape[1]
    mean = xp.multiply(backend.row_sums(x), 1.0 / n)
    # Centred first: E[x^2] - E[x]^2 would lose the variance of values far from 0.
    xp.subtract(x, mean[:, None], out=out)
    variance = xp.multiply(backend.row_dots(out, out), 1.0 / n)
    scale = xp.divide(1.0, xp.sqrt(xp.add(variance, eps)))
    xp.multiply(out, xp.multiply(gamma, scale)[:, None], out=out)
    xp.add(out, beta[:, None], out=out)
    return mean, variance, scale


@primitive
def batch_norm_train_backward(
    backend: Backend, dy: Array, x: Array, mean: Array, scale: Array, gamma: Array, out: Array
) -> tuple[Array, Array]:
    """Fill out (C, n) with dx from dy and x (C, n); return dgamma and dbeta, (C,)."""
    xp, n = backend.xp, x.shape[1]
    dbeta = backend.row_sums(dy)
    centred = backend.scratch("centred", x.shape, x.dtype)
    xp.subtract(x, mean[:, None], out=centred)
    dgamma = xp.multiply(backend.row_dots(dy, centred), scale)
    slope = xp.multiply(xp.multiply(dgamma, scale), 1.0 / n)
    xp.multiply(centred, slope[:, None], out=centred)
    xp.subtract(dy, centred, out=out)
    xp.subtract(out, xp.multiply(dbeta, 1.0 / n)[:, None], out=out)
    xp.multiply(out, xp.multiply(gamma, scale)[:, None], out=out)
    return dgamma, dbeta


@primitive
def move_statistics(
    backend: Backend, running_mean: Array, running_var: Array, mean: Array, variance: Array, momentum: float, n: int
) -> None:
    """Move running statistics (C,) towards the mean and the unbiased variance of a batch of n values a channel."""
    xp = backend.xp
    for running, value in ((running_mean, mean), (running_var, xp.multiply(variance, n / (n - 1)))):
        xp.multiply(running, 1.0 - momentum, out=running)
        xp.add(running, xp.multiply(value, momentum), out=running)


class BatchNormOp(ChannelOp):
    """Batch norm of a slab of channels; running statistics and gradients are written to the slab's part of them."""

    keeps_input = True
    multiplies = True
    passes = 6

    def __init__(
        self,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        *,
        training: bool,
        momentum: float,
        eps: float,
        ndim: int | None = None,
    ) -> None:
        self.gamma, self.beta = gamma, beta
        self.running_mean, self.running_var = running_mean, running_var
        self.arrays = (gamma, beta, running_mean, running_var)
        self.training, self.momentum, self.eps, self.ndim = training, float(momentum), float(eps), ndim
        self.signature = training, self.momentum, self.eps
        self.dgamma: Array = None
        self.dbeta: Array = None

    def out_shape(self, shape: Shape) -> Shape:
        _check_channels(shape, self.gamma.shape[0], self.ndim)
        if self.training and _values(shape) < 2:
            raise ShapeError(
                f"x: expected more than one value per channel in training, got shape {(shape[-1], *shape[:-1])}; "
                "use a larger batch or evaluation mode"
            )
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        rows, result = _rows(x), _rows(out)
        gamma, beta = self.gamma[channels], self.beta[channels]
        if not self.training:
            xp = backend.xp
            scale = xp.divide(1.0, xp.sqrt(xp.add(self.running_var[channels], self.eps)))
            mean = backend.copy(self.running_mean[channels])  # it may change before backward
            factor = xp.multiply(gamma, scale)
            xp.multiply(rows, factor[:, None], out=result)
            xp.add(result, xp.subtract(beta, xp.multiply(mean, factor))[:, None], out=result)
            return rows, mean, scale
        mean, variance, scale = batch_norm_train(backend, rows, gamma, beta, self.eps, result)
        n = rows.shape[1]
        running = self.running_mean[channels], self.running_var[channels]
        move_statistics(backend, *running, mean, variance, self.momentum, n)
        return rows, mean, scale

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        rows, mean, scale = cache
        grad, result, gamma = _rows(dy), _rows(out), self.gamma[channels]
        if self.training:
            dgamma, dbeta = batch_norm_train_backward(backend, grad, rows, mean, scale, gamma, result)
        else:
            dbeta = backend.row_sums(grad)
            xp = backend.xp
            dgamma = xp.multiply(xp.subtract(backend.row_dots(grad, rows), xp.multiply(mean, dbeta)), scale)
            xp.multiply(grad, xp.multiply(gamma, scale)[:, None], out=result)
        backend.xp.copyto(self.dgamma[channels], dgamma)
        backend.xp.copyto(self.dbeta[channels], dbeta)

    def make_gradients(self, backend: Backend) -> tuple[Array, Array]:
        """Make the arrays that backward fills with dgamma and dbeta, and return them."""
        self.dgamma = backend.empty(self.gamma.shape, self.gamma.dtype)
        self.dbeta = backend.empty(self.beta.shape, self.beta.dtype)
        return self.dgamma, self.dbeta

    @property
    def gradients(self) -> Sequence[Array]:
        """What `make_gradients` has made."""
        return self.dgamma, self.dbeta


class AffineOp(ChannelOp):
    """y = scale x + shift, per channel: batch norm with fixed statistics, or a bias alone (`scale` None).

    `ndim` holds x to (N, C) or (N, C, H, W).
    """

    elementwise = True
    passes = 3

    def __init__(self, scale: Array | None, shift: Array, ndim: int | None = None) -> None:
        self.scale, self.shift, self.ndim = scale, shift, ndim
        self.arrays = (shift,) if scale is None else (scale, shift)
        self.signature = scale is None

    def out_shape(self, shape: Shape) -> Shape:
        _check_channels(shape, self.shift.shape[0], self.ndim)
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        rows, result = _rows(x), _rows(out)
        if self.scale is not None:
            backend.xp.multiply(rows, self.scale[channels, None], out=result)
            rows = result
        backend.xp.add(rows, self.shift[channels, None], out=result)


def batch_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, ChainCache]:
    """Normalise every channel over the batch (and the image).

    Parameters
    ----------
    x : array (N, C) or (N, C, H, W), floating
    gamma, beta : array (C,), dtype of `x` (float32 for float16, as all that follows)
        Scale and shift.
    running_mean, running_var : array (C,), dtype of `x`
        Changed in place in training: running = (1 - momentum) * running + momentum * value, with the unbiased
        variance; used instead of the batch's own in evaluation.
    training : bool
    momentum, eps : float

    Returns
    -------
    y : array, shape and dtype of `x`
    cache
        For `batch_norm_backward`.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        Shapes or types do not fit, or a channel has but one value in training.
    """
    backend_of(x, gamma, beta, running_mean, running_var)
    for name, array in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean), ("running_var", running_var)):
        check_like(name, array, (x.shape[1],) if x.ndim > 1 else (), wide(x.dtype))
    op = BatchNormOp(gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps)
    return run((op,), x)


def batch_norm_backward(dy: Array, cache: ChainCache) -> tuple[Array, Array, Array]:
    """Return the gradients of `batch_norm`: dx like `dy`, dgamma (C,) and dbeta (C,)."""
    op = cache.ops[0]
    dgamma, dbeta = op.make_gradients(backend_of(dy))  # type: ignore[attr-defined]
    return run_backward(dy, cache), dgamma, dbeta


def _check_channels(shape: Shape, channels: int, ndim: int | None) -> None:
    logical = (shape[-1], *shape[:-1])
    if ndim not in (None, len(shape)):
        raise ShapeError(f"x: expected shape {'(N, C)' if ndim == 2 else '(N, C, H, W)'}, got {logical}")
    if channels != shape[0]:
        raise ShapeError(f"x: expected {channels} channels, got {shape[0]} in shape {logical}")


def _rows(a: Array) -> Array:
    return a.reshape(a.shape[0], -1)  # (C, H*W*N)


def _values(shape: Shape) -> int:
    count = 1
    for extent in shape[1:]:
        count *= extent
    return count
