"""Compositions that the exercise notebook names: convolution and ReLU, and both with max-pooling after."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array
from xpcnn.functional.activation import RELU
from xpcnn.functional.channelwise import ChainCache, ChannelOp, run, run_backward
from xpcnn.functional.convolution import ConvCache, conv2d, conv2d_backward
from xpcnn.functional.pooling import max_pool_op
from xpcnn.windows import Size

Cache = tuple[ConvCache, ChainCache]


def conv_relu(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> tuple[Array, Cache]:
    """Return relu(conv2d(x, weight, bias, **options)) and the cache.

    Examples
    --------
    >>> y, cache = F.conv_relu(np.ones((2, 3, 8, 8)), -np.ones((4, 3, 3, 3)))
    >>> y.shape, float(y.max())
    ((2, 4, 6, 6), 0.0)
    """
    y, kept = conv2d(x, weight, bias, **options)
    y, chain = run((RELU,), y)
    return y, (kept, chain)


def conv_relu_pool(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    kernel_size: Size = 2,
    pool_stride: Size | None = None,
    **options: Any,
) -> tuple[Array, Cache]:
    """Return max_pool2d(relu(conv2d(x, weight, bias, **options)), kernel_size, stride=pool_stride) and the cache.

    ReLU runs after the pooling, on fewer numbers: the maximum of clipped values is the clipped maximum, and the
    gradient meets the same winners.

    Examples
    --------
    >>> y, cache = F.conv_relu_pool(np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), padding=1)
    >>> y.shape
    (2, 4, 4, 4)
    """
    y, kept = conv2d(x, weight, bias, **options)
    ops: tuple[ChannelOp, ...] = (max_pool_op(kernel_size, pool_stride), RELU)
    y, chain = run(ops, y)
    return y, (kept, chain)


def conv_relu_backward(dy: Array, cache: Cache) -> tuple[Array | None, Array, Array | None]:
    """Return dx, dweight and dbias of `conv_relu` or `conv_relu_pool`.

    Examples
    --------
    >>> y, cache = F.conv_relu(np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4))
    >>> dx, dw, db = F.conv_relu_backward(np.ones_like(y), cache)
    >>> dx.shape, dw.shape, db
    ((2, 3, 8, 8), (4, 3, 3, 3), array([72., 72., 72., 72.]))

    Examples
    --------
    >>> y, cache = F.conv_relu_pool(np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4), padding=1)
    >>> dx, dw, db = F.conv_relu_pool_backward(np.ones_like(y), cache)
    >>> dx.shape, dw.shape, db.shape
    ((2, 3, 8, 8), (4, 3, 3, 3), (4,))
    """
    kept, chain = cache
    return conv2d_backward(run_backward(dy, chain), kept)


conv_relu_pool_backward = conv_relu_backward
