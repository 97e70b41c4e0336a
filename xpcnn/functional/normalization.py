"""Batch normalisation over (N, C, H, W) and (N, C), with running statistics.

Training, with the mean m and biased variance v of a channel's n values (Ioffe and Szegedy 2015, arXiv:1502.03167):

    xhat = (x - m) / sqrt(v + eps)      y = gamma xhat + beta
    dbeta = sum dy      dgamma = sum dy xhat      dx = gamma / sqrt(v + eps) (dy - dbeta / n - xhat dgamma / n)

Evaluation puts the running mean and variance in the place of m and v, and they get no gradient.

Numbers are centred before anything is summed or scaled, and in training twice: about the mean of some values, then
about the mean of what is left, for one number of the dtype is too coarse (float32 has steps of 10^-3 at 10^4). So
rounding goes by a channel's deviations, never by its mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.functional.activation import relu_backward_from, relu_forward
from xpcnn.functional.channelwise import ChainCache, ChannelOp, Shape, run, run_backward
from xpcnn.functional.layout import check_images, check_like, flag, number, take
from xpcnn.functional.precision import wide
from xpcnn.functional.primitive import primitive

# The first centre is the mean of this share of a channel's values. Whatever they are, it lies within
# sqrt(1 / share - 1) deviations of the mean of all, so that the variance loses 4 bits at most.
SHARE = 1 / 16
# Values from which a share is taken at all.
MANY = 64


@primitive
def batch_norm_train(
    backend: Backend,
    x: Array,
    gamma: Array,
    beta: Array,
    eps: float,
    out: Array,
    running: tuple[Array, Array] | None = None,
    momentum: float = 0.0,
    other: Array | None = None,
    rectify: bool = False,
    sums: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Fill out (C, n) with the normalised x (C, n), and move `running` statistics (`move_statistics`).

    An `other` (C, n) is added to it, and with `rectify` what is below 0 becomes 0. A backend whose `conv2d_sums` has
    left `sums` of x need not read x for them; here they follow from x.

    Returns
    -------
    centre, offset : (C,) arrays
        Their sum is the mean.
    variance, scale : (C,) arrays
        The biased variance and 1 / sqrt(variance + eps).
    """
    xp, n = backend.xp, x.shape[1]
    some = x[:, : max(MANY, int(n * SHARE))]
    shifted = backend.scratch("some", some.shape, x.dtype)
    xp.subtract(some, x[:, :1], out=shifted)  # a constant channel is its own centre, to the last bit
    centre = xp.multiply(backend.row_sums(shifted), 1.0 / some.shape[1])
    xp.add(centre, x[:, 0], out=centre)
    xp.subtract(x, centre[:, None], out=out)
    offset = xp.multiply(backend.row_sums(out), 1.0 / n)
    variance = xp.multiply(backend.row_dots(out, out), 1.0 / n)
    xp.maximum(xp.subtract(variance, xp.multiply(offset, offset)), 0, out=variance)
    spread = xp.add(variance, eps)
    scale = xp.divide(xp.sqrt(spread), spread)  # nan, not 0, for a variance that is beyond the dtype
    factor = xp.multiply(gamma, scale)
    xp.multiply(out, factor[:, None], out=out)
    xp.add(out, xp.subtract(beta, xp.multiply(offset, factor))[:, None], out=out)
    if other is not None:
        xp.add(out, other, out=out)
    if rectify:
        relu_forward(backend, out, out)
    if running is not None:
        move_statistics(backend, *running, centre, offset, variance, momentum, n)
    return centre, offset, variance, scale


@primitive
def batch_norm_train_backward(
    backend: Backend,
    dy: Array,
    x: Array,
    centre: Array,
    offset: Array,
    scale: Array,
    gamma: Array,
    out: Array,
    dgamma: Array,
    dbeta: Array,
    y: Array | None = None,
    passed: Array | None = None,
) -> None:
    """Fill out (C, n) with dx from dy and x (C, n), and dgamma and dbeta, (C,).

    With `y` (C, n), a rectified result, dy is cut off where that is 0, and what is left of it goes to `passed`.
    """
    xp, n = backend.xp, x.shape[1]
    if y is not None:
        passed = backend.scratch("passed", dy.shape, dy.dtype) if passed is None else passed
        relu_backward_from(backend, dy, y, passed)
        dy = passed
    backend.row_sums(dy, out=dbeta)
    centred = backend.scratch("centred", x.shape, x.dtype)
    xp.subtract(x, centre[:, None], out=centred)
    xp.multiply(xp.subtract(backend.row_dots(dy, centred), xp.multiply(offset, dbeta)), scale, out=dgamma)
    slope = xp.multiply(xp.multiply(dgamma, scale), 1.0 / n)
    xp.multiply(centred, slope[:, None], out=centred)
    xp.subtract(dy, centred, out=out)
    xp.subtract(out, xp.subtract(xp.multiply(dbeta, 1.0 / n), xp.multiply(offset, slope))[:, None], out=out)
    xp.multiply(out, xp.multiply(gamma, scale)[:, None], out=out)


def move_statistics(
    backend: Backend,
    running_mean: Array,
    running_var: Array,
    centre: Array,
    offset: Array,
    variance: Array,
    momentum: float | Array,
    n: int,
) -> None:
    """Move running statistics (C,) towards the mean and the unbiased variance of a batch of n values a channel.

    `momentum` is a number, or a (1,) array that holds it.
    """
    xp = backend.xp
    rest = 1.0 - momentum if isinstance(momentum, float) else xp.subtract(1.0, momentum)
    for running, value in (
        (running_mean, xp.add(centre, offset)),
        (running_var, xp.multiply(variance, n / (n - 1))),
    ):
        xp.multiply(running, rest, out=running)
        xp.add(running, xp.multiply(value, momentum), out=running)


class BatchNormOp(ChannelOp):
    """Batch norm of a slab of channels; running statistics and gradients are written to the slab's part of them.

    Without a `momentum` the running statistics are the averages of all batches so far, which `batches` counts, an
    integer array of one element.
    """

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
        momentum: float | None,
        eps: float,
        ndim: int | None = None,
        batches: Array = None,
    ) -> None:
        self.gamma, self.beta = gamma, beta
        self.running_mean, self.running_var = running_mean, running_var
        self.arrays: Sequence[Array] = (gamma, beta, running_mean, running_var)
        self.training, self.momentum, self.eps, self.ndim = training, momentum, eps, ndim
        self.batches, self.share = batches, momentum
        self.signature = training, momentum, eps
        self.sums: Array = None
        self.dgamma: Array = None
        self.dbeta: Array = None

    @property
    def takes_sums(self) -> bool:
        """Whether `take_sums` saves it a pass over x."""
        return self.training

    def take_sums(self, sums: Array | None) -> None:
        """Take what `conv2d_sums` has found of the x to come, or None."""
        self.sums = sums
        if sums is not None:
            self.signature = None  # they are none of `arrays`, which are of the dtype of x

    @property
    def stores_float16(self) -> bool:  # type: ignore[override]
        """Whether it does: in training, for which there are kernels."""
        return self.training

    def begin(self, backend: Backend, dtype: Any) -> None:
        if not self.training or self.momentum is not None:
            return
        xp = backend.xp  # the count is the device's, so that a replayed step goes on counting
        xp.add(self.batches, 1, out=self.batches)
        self.share = backend.empty((1,), wide(dtype))
        xp.copyto(self.share, xp.divide(1.0, self.batches.reshape(1)))
        self.arrays = (*self.arrays, self.share)

    def out_shape(self, shape: Shape) -> Shape:
        _check_channels(shape, self.gamma.shape[0], self.ndim)
        if self.training and _values(shape) == 1:
            raise ShapeError(
                f"x: expected more than one value per channel in training, got shape {(shape[-1], *shape[:-1])}; "
                "use a larger batch or evaluation mode"
            )
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        rows, result = _rows(x), _rows(out)
        gamma, beta = self.gamma[channels], self.beta[channels]
        n = rows.shape[1]
        if not self.training or n == 0:  # of no images there are no statistics
            xp = backend.xp
            scale = xp.divide(1.0, xp.sqrt(xp.add(self.running_var[channels], self.eps)))
            mean = backend.copy(self.running_mean[channels])  # it may change before backward
            normalise(backend, rows, mean, xp.multiply(gamma, scale), beta, result)
            return rows, mean, None, scale
        return rows, *self.train(backend, rows, channels, result)

    def train(
        self, backend: Backend, rows: Array, channels: slice, result: Array, other: Array = None, rectify: bool = False
    ) -> tuple[Array, Array, Array]:
        """Do the forward of training on rows (C, n), with what may come after it; return centre, offset and scale."""
        running = self.running_mean[channels], self.running_var[channels]
        arrays = rows, self.gamma[channels], self.beta[channels]
        sums = None if self.sums is None else self.sums[channels]
        if isinstance(self.share, float):
            centre, offset, _, scale = batch_norm_train(
                backend, *arrays, self.eps, result, running, self.share, other, rectify, sums
            )
        else:
            centre, offset, variance, scale = batch_norm_train(
                backend, *arrays, self.eps, result, other=other, rectify=rectify, sums=sums
            )
            move_statistics(backend, *running, centre, offset, variance, self.share, rows.shape[1])
        return centre, offset, scale

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        rows, centre, offset, scale = cache
        grad, result, gamma = _rows(dy), _rows(out), self.gamma[channels]
        dgamma, dbeta = self.dgamma[channels], self.dbeta[channels]
        if offset is not None:
            batch_norm_train_backward(backend, grad, rows, centre, offset, scale, gamma, result, dgamma, dbeta)
        else:
            xp = backend.xp
            backend.row_sums(grad, out=dbeta)
            centred = backend.scratch("centred", rows.shape, rows.dtype)
            xp.subtract(rows, centre[:, None], out=centred)
            xp.multiply(backend.row_dots(grad, centred), scale, out=dgamma)
            xp.multiply(grad, xp.multiply(gamma, scale)[:, None], out=result)

    def make_gradients(
        self, backend: Backend, dgamma: Array | None = None, dbeta: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the arrays that backward fills with dgamma and dbeta: those given, or new ones."""
        self.dgamma = backend.empty(self.gamma.shape, self.gamma.dtype) if dgamma is None else dgamma
        self.dbeta = backend.empty(self.beta.shape, self.beta.dtype) if dbeta is None else dbeta
        return self.dgamma, self.dbeta

    @property
    def gradients(self) -> Sequence[Array]:
        """What `make_gradients` has made."""
        return self.dgamma, self.dbeta


def normalise(backend: Backend, x: Array, mean: Array, factor: Array, beta: Array, out: Array) -> None:
    """Fill out (C, n) with (x - mean) factor + beta; (C,) each."""
    xp = backend.xp
    xp.subtract(x, mean[:, None], out=out)
    xp.multiply(out, factor[:, None], out=out)
    xp.add(out, beta[:, None], out=out)


class AffineOp(ChannelOp):
    """y = scale (x - mean) + shift, per channel: batch norm with fixed statistics, or a bias alone (`scale` None).

    `ndim` holds x to (N, C) or (N, C, H, W).
    """

    elementwise = True
    passes = 4

    def __init__(self, shift: Array, scale: Array = None, mean: Array = None, ndim: int | None = None) -> None:
        self.shift, self.scale, self.mean, self.ndim = shift, scale, mean, ndim
        self.arrays = (shift,) if scale is None else (shift, scale, mean)
        self.signature = scale is None

    def out_shape(self, shape: Shape) -> Shape:
        _check_channels(shape, self.shift.shape[0], self.ndim)
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        rows, shift = _rows(x), self.shift[channels]
        result = rows if out is x else _rows(out)  # CuPy copies an operand that is `out` by another view
        if self.scale is None:
            backend.xp.add(rows, shift[:, None], out=result)
        else:
            normalise(backend, rows, self.mean[channels], self.scale[channels], shift, result)


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

    Rounding is some eps of the dtype times the largest |x - mean| / sqrt(variance + eps), however large the mean, as
    long as variance and sums of dy (x - mean) are finite in the dtype (float32 for float16); beyond, a channel is nan,
    or right where a backend sums up in a wider one (CuPy), and nan where `x` holds nan or inf.

    Parameters
    ----------
    x : array (N, C) or (N, C, H, W), floating
    gamma, beta : array (C,), dtype of `x` (float32 for float16, as all that follows)
        Scale and shift.
    running_mean, running_var : array (C,), dtype of `x`
        Changed in place in training: running = (1 - momentum) * running + momentum * value, with the unbiased
        variance; used instead of the batch's own in evaluation. Of no images they stay as they are.
    training : bool
    momentum : float
        From 0 to 1.
    eps : float
        Above 0.

    Returns
    -------
    y : array, shape and dtype of `x`
    cache
        For `batch_norm_backward`.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        Shapes or types do not fit, or a channel has but one value in training.
    ConfigError
        An option is not allowed, or running statistics that training must write are read-only.

    Examples
    --------
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])  # (N, C)
    >>> mean, var = np.zeros(2), np.ones(2)
    >>> y, cache = F.batch_norm(x, np.ones(2), np.zeros(2), mean, var, training=True)
    >>> y.round(3), mean  # the running mean has moved by a tenth
    (array([[-1., -1.],
           [ 1.,  1.]]), array([0.2, 2. ]))
    """
    names = "gamma", "beta", "running_mean", "running_var"
    backend, x, *arrays = take("x gamma beta running_mean running_var", x, gamma, beta, running_mean, running_var)
    for name, array in zip(names, arrays, strict=True):
        check_like(name, array, (x.shape[1],) if x.ndim > 1 else (), wide(x.dtype))
    training = flag("training", training)
    if momentum is None:
        raise ConfigError("momentum: expected a number from 0 to 1, got None; a layer counts batches, nn.BatchNorm2d")
    op = BatchNormOp(*arrays, training=training, momentum=check_momentum(momentum), eps=check_eps(eps))
    if not training:
        return run((op,), x)
    written = list(zip(names[2:], (running_mean, running_var), arrays[2:], strict=True))
    for name, array, _ in written:
        if not getattr(array.flags, "writeable", True):
            raise ConfigError(f"{name}: expected an array that training may write to, got a read-only one")
    y, cache = run((op,), x)
    for _, array, moved in written:
        if moved is not array:  # a copy, for `array` has a foreign byte order
            backend.xp.copyto(array, moved)
    return y, cache


def check_eps(eps: float) -> float:
    """Return `eps` as a float; raise ConfigError unless it is a number above 0."""
    return number("eps", eps, "a number above 0", math.ulp(0.0))


def batch_norm_backward(dy: Array, cache: ChainCache) -> tuple[Array, Array, Array]:
    """Return the gradients of `batch_norm`: dx like `dy`, dgamma (C,) and dbeta (C,).

    Examples
    --------
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, cache = F.batch_norm(x, np.ones(2), np.zeros(2), np.zeros(2), np.ones(2), training=True)
    >>> dx, dgamma, dbeta = F.batch_norm_backward(np.ones_like(y), cache)
    >>> dx.shape, dbeta  # all entries alike: the mean takes it away, and dx is 0
    ((2, 2), array([2., 2.]))
    """
    _, dy = take("dy", dy)
    op = cache.ops[0]
    dgamma, dbeta = op.make_gradients(backend_of(dy))  # type: ignore[attr-defined]
    return run_backward(dy, cache), dgamma, dbeta


def check_momentum(momentum: float | None) -> float | None:
    """Return `momentum` as a float, or None; raise ConfigError unless it is a number from 0 to 1."""
    return None if momentum is None else number("momentum", momentum, "a number from 0 to 1", 0.0, 1.0)


def _check_channels(shape: Shape, channels: int, ndim: int | None) -> None:
    logical = (shape[-1], *shape[:-1])
    if len(shape) == 4:
        check_images("x", logical)
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
