"""Elementwise activations and their gradients, of arrays of any shape.

Results and gradients are within a few eps of the dtype (float16: of one rounding) of the exact ones: relative to the
result for ReLU, leaky ReLU, sigmoid, tanh, Hardswish and ELU, for SiLU times max(1, -x), for GELU times max(1, x^2),
and for gradients relative to dy times the largest slope. nan stays nan; a gradient that is cut off is 0, whatever dy
is. GELU, SiLU and Hardswish of -inf are nan, as in PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.functional.channelwise import ChainCache, ChannelOp, run, run_backward
from xpcnn.functional.layout import bits, number
from xpcnn.functional.primitive import primitive
from xpcnn.functional.special import erfc


@primitive
def relu_forward(backend: Backend, x: Array, out: Array) -> None:
    """Fill `out` with max(x, 0)."""
    backend.xp.maximum(x, 0, out=out)


@primitive
def relu_backward_from(backend: Backend, dy: Array, y: Array, out: Array) -> None:
    """Fill `out` with dy where y, a result of `relu_forward`, is not 0, and 0 elsewhere."""
    mask, result = backend.scratch("mask", y.shape, bool), bits(out)
    backend.xp.not_equal(y, 0, out=mask)  # so a nan passes its gradient on
    # Cast first: a product of two types goes through NumPy's buffers, at a third of the speed.
    backend.xp.copyto(result, mask.view("int8"))
    backend.xp.multiply(result, bits(dy), out=result)


class ReLUOp(ChannelOp):
    """y = max(x, 0); dx = dy where y > 0 (Nair and Hinton 2010)."""

    elementwise = any_shape = True
    keeps_output = True
    stores_float16 = True
    signature = "ReLU"

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        relu_forward(backend, x, out)
        return out

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        relu_backward_from(backend, dy, cache, out)


RELU = ReLUOp()


class LeakyReLUOp(ChannelOp):
    """y = x where x > 0, else slope * x; dx = dy times the same factor (Maas et al. 2013)."""

    elementwise = any_shape = True
    keeps_input = True
    passes = 4

    def __init__(self, negative_slope: float) -> None:
        self.negative_slope = self.signature = number("negative_slope", negative_slope, "a finite number")

    def _apply(self, backend: Backend, values: Array, x: Array, out: Array) -> None:
        xp = backend.xp
        factor = backend.scratch("factor", x.shape, x.dtype)
        xp.copyto(factor, self.negative_slope)
        xp.copyto(factor, 1.0, where=xp.greater(x, 0))
        xp.multiply(values, factor, out=out)

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        self._apply(backend, x, x, out)
        return x

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        self._apply(backend, dy, cache, out)


class SigmoidOp(ChannelOp):
    """y = 1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow; dx = dy y (1 - y)."""

    elementwise = any_shape = True
    keeps_output = True
    passes = 8

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        xp = backend.xp
        small = xp.exp(xp.negative(xp.absolute(x)))
        above = xp.exp(xp.minimum(x, 0))  # 1, or exp(-|x|) below 0
        xp.divide(above, xp.add(small, 1.0), out=out)
        return out

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        xp = backend.xp
        xp.multiply(xp.multiply(dy, cache), xp.subtract(1.0, cache), out=out)


class TanhOp(ChannelOp):
    """y = tanh(x); dx = dy (1 - y^2)."""

    elementwise = any_shape = True
    keeps_output = True
    passes = 8

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        backend.xp.tanh(x, out=out)
        return out

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        xp = backend.xp
        xp.multiply(dy, xp.subtract(1.0, xp.multiply(cache, cache)), out=out)


class GELUOp(ChannelOp):
    """y = x P(x), P the normal distribution function; dx = dy (P(x) + x p(x)) (Hendrycks and Gimpel 2016)."""

    elementwise = any_shape = True
    keeps_input = True
    passes = 40

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        backend.xp.multiply(x, self._distribution(backend, x), out=out)
        return x

    def _distribution(self, backend: Backend, x: Array) -> Array:
        xp = backend.xp  # half of erfc, for (1 + erf) / 2 has no digits left of a small result
        return xp.multiply(erfc(backend, xp.multiply(x, -math.sqrt(0.5))), 0.5)

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        x, xp = cache, backend.xp
        density = xp.multiply(xp.exp(xp.multiply(xp.multiply(x, x), -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
        xp.multiply(dy, xp.add(self._distribution(backend, x), xp.multiply(x, density)), out=out)


class SiLUOp(ChannelOp):
    """y = x s(x), s the sigmoid; dx = dy s(x) (1 + x s(-x)) (Elfwing et al. 2017, arXiv:1702.03118)."""

    elementwise = any_shape = True
    keeps_input = True
    passes = 12
    signature = "SiLU"

    def _sigmoids(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        """Return s(x) and s(-x), neither as 1 minus the other, which has no digits left of what is small."""
        xp = backend.xp
        above, below, total = (backend.scratch(slot, x.shape, x.dtype) for slot in ("above", "below", "total"))
        xp.minimum(x, 0, out=above)
        xp.exp(above, out=above)
        xp.minimum(xp.negative(x, out=below), 0, out=below)
        xp.exp(below, out=below)
        xp.add(xp.multiply(above, below, out=total), 1.0, out=total)
        return xp.divide(above, total, out=above), xp.divide(below, total, out=below)

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        backend.xp.multiply(x, self._sigmoids(backend, x)[0], out=out)
        return x

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        xp = backend.xp
        sigmoid, rest = self._sigmoids(backend, cache)
        xp.add(xp.multiply(cache, rest, out=rest), 1.0, out=rest)
        xp.multiply(dy, sigmoid, out=out)
        xp.multiply(out, rest, out=out)


class HardswishOp(ChannelOp):
    """y = x min(max(x + 3, 0), 6) / 6; dx = dy (2 x + 3) / 6 from -3 to 3 (Howard et al. 2019, arXiv:1905.02244)."""

    elementwise = any_shape = True
    keeps_input = True
    passes = 6
    signature = "Hardswish"

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        xp = backend.xp
        factor = backend.scratch("factor", x.shape, x.dtype)
        xp.maximum(xp.add(x, 3.0, out=factor), 0, out=factor)
        xp.multiply(xp.minimum(factor, 6.0, out=factor), 1 / 6, out=factor)
        xp.multiply(x, factor, out=out)
        return x

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        xp = backend.xp
        slope = backend.scratch("factor", dy.shape, dy.dtype)
        xp.add(xp.multiply(cache, 1 / 3, out=slope), 0.5, out=slope)
        xp.copyto(slope, 1.0, where=xp.logical_not(xp.less(cache, 3.0)))  # of nan too, as in PyTorch
        xp.multiply(dy, slope, out=out)
        xp.copyto(out, 0, where=xp.less_equal(cache, -3.0))


class ELUOp(ChannelOp):
    """y = x where x > 0, else alpha (exp(x) - 1); dx = dy, dy alpha exp(x) (Clevert et al. 2015, arXiv:1511.07289)."""

    elementwise = any_shape = True
    keeps_input = True
    passes = 10

    def __init__(self, alpha: float) -> None:
        self.alpha = self.signature = number("alpha", alpha, "a finite number")

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        xp = backend.xp
        below = backend.scratch("below", x.shape, x.dtype)
        xp.expm1(xp.minimum(x, 0, out=below), out=below)
        xp.multiply(below, self.alpha, out=below)
        xp.add(xp.maximum(x, 0, out=out), below, out=out)
        return x

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        xp = backend.xp
        slope = backend.scratch("below", dy.shape, dy.dtype)
        xp.exp(xp.minimum(cache, 0, out=slope), out=slope)
        xp.multiply(slope, self.alpha, out=slope)
        xp.copyto(slope, 1.0, where=xp.logical_not(xp.less_equal(cache, 0)))  # of nan too, as in PyTorch
        xp.multiply(dy, slope, out=out)


def relu(x: Array) -> tuple[Array, ChainCache]:
    """Return max(x, 0) of an array of any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.relu(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([0., 0., 2.])
    """
    return run((RELU,), x)


def leaky_relu(x: Array, negative_slope: float = 0.01) -> tuple[Array, ChainCache]:
    """Return x where it is positive and `negative_slope` * x elsewhere, for any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.leaky_relu(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([-0.02,  0.  ,  2.  ])
    """
    return run((LeakyReLUOp(negative_slope),), x)


def sigmoid(x: Array) -> tuple[Array, ChainCache]:
    """Return 1 / (1 + exp(-x)) of an array of any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.sigmoid(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([0.119, 0.5  , 0.881])
    """
    return run((SigmoidOp(),), x)


def tanh(x: Array) -> tuple[Array, ChainCache]:
    """Return the hyperbolic tangent of an array of any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.tanh(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([-0.964,  0.   ,  0.964])
    """
    return run((TanhOp(),), x)


def gelu(x: Array) -> tuple[Array, ChainCache]:
    """Return x times the normal distribution function of x (exact), for any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.gelu(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([-0.046,  0.   ,  1.954])
    """
    return run((GELUOp(),), x)


def silu(x: Array) -> tuple[Array, ChainCache]:
    """Return x times its sigmoid, of an array of any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.silu(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([-0.238,  0.   ,  1.762])
    """
    return run((SiLUOp(),), x)


def hardswish(x: Array) -> tuple[Array, ChainCache]:
    """Return x min(max(x + 3, 0), 6) / 6 of an array of any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.hardswish(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([-0.333,  0.   ,  1.667])
    """
    return run((HardswishOp(),), x)


def elu(x: Array, alpha: float = 1.0) -> tuple[Array, ChainCache]:
    """Return x where it is positive and `alpha` * (exp(x) - 1) elsewhere, for any shape, and the cache.

    Examples
    --------
    >>> y, cache = F.elu(np.array([-2.0, 0.0, 2.0]))
    >>> y.round(3)
    array([-0.865,  0.   ,  2.   ])
    """
    return run((ELUOp(alpha),), x)


def relu_backward(dy: Array, cache: ChainCache) -> Array:
    """Return dx of `relu`, shaped like `dy`.

    Examples
    --------
    >>> y, cache = F.relu(np.array([-2.0, 1.0, 2.0]))
    >>> F.relu_backward(np.ones(3), cache).round(3)  # dx
    array([0., 1., 1.])

    Examples
    --------
    >>> y, cache = F.sigmoid(np.array([-2.0, 1.0, 2.0]))
    >>> F.sigmoid_backward(np.ones(3), cache).round(3)  # dx
    array([0.105, 0.197, 0.105])

    Examples
    --------
    >>> y, cache = F.tanh(np.array([-2.0, 1.0, 2.0]))
    >>> F.tanh_backward(np.ones(3), cache).round(3)  # dx
    array([0.071, 0.42 , 0.071])

    Examples
    --------
    >>> y, cache = F.gelu(np.array([-2.0, 1.0, 2.0]))
    >>> F.gelu_backward(np.ones(3), cache).round(3)  # dx
    array([-0.085,  1.083,  1.085])

    Examples
    --------
    >>> y, cache = F.silu(np.array([-2.0, 1.0, 2.0]))
    >>> F.silu_backward(np.ones(3), cache).round(3)  # dx
    array([-0.091,  0.928,  1.091])

    Examples
    --------
    >>> y, cache = F.hardswish(np.array([-2.0, 1.0, 2.0]))
    >>> F.hardswish_backward(np.ones(3), cache).round(3)  # dx
    array([-0.167,  0.833,  1.167])

    Examples
    --------
    >>> y, cache = F.elu(np.array([-2.0, 1.0, 2.0]))
    >>> F.elu_backward(np.ones(3), cache).round(3)  # dx
    array([0.135, 1.   , 1.   ])

    Examples
    --------
    >>> y, cache = F.leaky_relu(np.array([-2.0, 1.0, 2.0]))
    >>> F.leaky_relu_backward(np.ones(3), cache).round(3)  # dx
    array([0.01, 1.  , 1.  ])
    """
    return run_backward(dy, cache)


leaky_relu_backward = sigmoid_backward = tanh_backward = gelu_backward = relu_backward
silu_backward = hardswish_backward = elu_backward = relu_backward
