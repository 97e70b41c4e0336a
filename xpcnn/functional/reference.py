"""Every operation of `xpcnn.functional` as plain loops in float64: to read, and as oracle of the tests.

Names, signatures and results are those of `xpcnn.functional`; the arrays are NumPy's and nothing is checked. N images,
C channels, F filters, K kernel taps and H, W sizes; `oh`, `ow` count output rows and columns, `kh`, `kw` kernel taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

import xpcnn.random

Array: TypeAlias = NDArray[np.float64]
Size: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = Size | tuple[tuple[int, int], tuple[int, int]] | Literal["same", "valid"]
Sides: TypeAlias = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))


def pair(size: Size) -> tuple[int, int]:
    """Return (height, width) of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else size


def sides(padding: Padding, shape: tuple[int, ...], kernel: Size, stride: Size, dilation: Size = 1) -> Sides:
    """Return the padding of images of shape (N, C, H, W) as ((top, bottom), (left, right)).

    "same" is ONNX's SAME_UPPER: ceil(input / stride) outputs; of an odd number of padded lines one more at the end.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        both = []
        for size, k, s, d in zip(shape[2:], pair(kernel), pair(stride), pair(dilation), strict=True):
            total = max(0, (math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size)
            both.append((total // 2, total - total // 2))
        return both[0], both[1]
    vertical, horizontal = pair(padding)  # type: ignore[arg-type]  # each a number or (before, after)
    return pair(vertical), pair(horizontal)


def output_size(size: int, kernel: int, stride: int, side: tuple[int, int], dilation: int, ceil_mode: bool) -> int:
    """Return how many windows fit along one axis.

    With `ceil_mode` a last window may reach over the end, but must start inside the image or the padding before it.
    """
    room = size + sum(side) - (dilation * (kernel - 1) + 1)
    if not ceil_mode:
        return room // stride + 1
    count = math.ceil(room / stride) + 1
    return count - 1 if (count - 1) * stride >= size + side[0] else count


class Windows:
    """The windows of a convolution over images of shape (N, C, H, W): where each lies in the padded image."""

    def __init__(self, shape: tuple[int, ...], kernel: Size, stride: Size, padding: Padding, dilation: Size) -> None:
        self.shape, self.kernel, self.stride, self.dilation = shape, pair(kernel), pair(stride), pair(dilation)
        (self.top, self.bottom), (self.left, self.right) = both = sides(padding, shape, kernel, stride, dilation)
        self.rows, self.columns = (
            output_size(shape[2 + axis], self.kernel[axis], self.stride[axis], both[axis], self.dilation[axis], False)
            for axis in (0, 1)
        )

    def pad(self, x: Array) -> Array:
        """Return x with its padding of zeros."""
        return np.pad(x, ((0, 0), (0, 0), (self.top, self.bottom), (self.left, self.right)))

    def crop(self, padded: Array) -> Array:
        """Return the image without its padding."""
        return padded[:, :, self.top : self.top + self.shape[2], self.left : self.left + self.shape[3]]

    def __call__(self, oh: int, ow: int) -> tuple[slice, slice]:
        """Return the rows and columns of the padded image that the window (oh, ow) covers."""
        first = oh * self.stride[0], ow * self.stride[1]
        last = (first[axis] + self.dilation[axis] * (self.kernel[axis] - 1) for axis in (0, 1))
        rows, columns = (slice(f, e + 1, d) for f, e, d in zip(first, last, self.dilation, strict=True))
        return rows, columns


def conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> tuple[Array, Any]:
    """Slide F filters over images: x (N, C, H, W), weight (F, C/groups, KH, KW), bias (F,) -> y (N, F, OH, OW).

    y[n, f, oh, ow] = bias[f] + the sum over c, kh, kw of
    weight[f, c, kh, kw] * padded[n, c, oh * stride + kh * dilation, ow * stride + kw * dilation]
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    filters, channels = weight.shape[:2]
    b = np.zeros(filters) if bias is None else np.asarray(bias, np.float64)
    window = Windows(x.shape, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    padded = window.pad(x)
    y = np.zeros((x.shape[0], filters, window.rows, window.columns))
    for n, f, oh, ow in np.ndindex(y.shape):
        first = f // (filters // groups) * channels  # the first channel of this filter's group
        rows, columns = window(oh, ow)
        y[n, f, oh, ow] = b[f] + np.sum(weight[f] * padded[n, first : first + channels, rows, columns])
    return y, (padded, weight, bias is not None, window, groups)


def conv2d_backward(dy: ArrayLike, cache: Any) -> tuple[Array, Array, Array | None]:
    """Return dx, dweight, dbias: each product of the forward sum sends dy to both of its factors."""
    padded, weight, has_bias, window, groups = cache
    dy = np.asarray(dy, np.float64)
    filters, channels = weight.shape[:2]
    dpadded, dweight, dbias = np.zeros_like(padded), np.zeros_like(weight), np.zeros(filters)
    for n, f, oh, ow in np.ndindex(dy.shape):
        first = f // (filters // groups) * channels
        rows, columns = window(oh, ow)
        dpadded[n, first : first + channels, rows, columns] += dy[n, f, oh, ow] * weight[f]
        dweight[f] += dy[n, f, oh, ow] * padded[n, first : first + channels, rows, columns]
        dbias[f] += dy[n, f, oh, ow]
    return window.crop(dpadded), dweight, dbias if has_bias else None


def conv_transpose2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> tuple[Array, Any]:
    """Lay a copy of the filters at every pixel: x (N, C, H, W), weight (C, F/groups, KH, KW), bias (F,) -> y.

    y[n, f, h * stride + kh * dilation - top, w * stride + kw * dilation - left] is bias[f] + the sum of all
    x[n, c, h, w] * weight[c, f, kh, kw] that meet there.
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    n, c, height, width = x.shape
    filters, (kh, kw) = weight.shape[1] * groups, weight.shape[2:]
    (top, bottom), (left, right) = sides(padding, x.shape, (kh, kw), stride, dilation)
    (sh, sw), (dh, dw), (extra_h, extra_w) = pair(stride), pair(dilation), pair(output_padding)
    rows = (height - 1) * sh + (kh - 1) * dh + 1 + extra_h
    columns = (width - 1) * sw + (kw - 1) * dw + 1 + extra_w
    padded = np.zeros((n, filters, rows, columns))
    spots = []
    for channel, h, w, i, j in np.ndindex(c, height, width, kh, kw):
        first = channel // (c // groups) * weight.shape[1]  # the first output of this channel's group
        spot = slice(None), slice(first, first + weight.shape[1]), h * sh + i * dh, w * sw + j * dw
        spots.append(((channel, h, w, i, j), spot))
        padded[spot] += x[:, channel, h, w, None] * weight[channel, :, i, j]
    cut = slice(None), slice(None), slice(top, rows - bottom), slice(left, columns - right)
    y = padded[cut] + (0 if bias is None else np.asarray(bias, np.float64)[:, None, None])
    return y, (x, weight, bias is not None, spots, padded.shape, cut)


def conv_transpose2d_backward(dy: ArrayLike, cache: Any) -> tuple[Array, Array, Array | None]:
    """Return dx, dweight, dbias: each product of the forward sum sends dy to both of its factors."""
    x, weight, has_bias, spots, shape, cut = cache
    dpadded = np.zeros(shape)
    dpadded[cut] = dy
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for (channel, h, w, i, j), spot in spots:
        dx[:, channel, h, w] += dpadded[spot] @ weight[channel, :, i, j]
        dweight[channel, :, i, j] += x[:, channel, h, w] @ dpadded[spot]
    return dx, dweight, dpadded[cut].sum((0, 2, 3)) if has_bias else None


def im2col(x: ArrayLike, kernel_size: Size, *, stride: Size = 1, padding: Padding = 0, dilation: Size = 1) -> Array:
    """Copy every window of x (N, C, H, W) into one column of a matrix (C*KH*KW, OH*OW*N)."""
    x = np.asarray(x, np.float64)
    window = Windows(x.shape, kernel_size, stride, padding, dilation)
    padded = window.pad(x)
    cols = np.zeros((x.shape[1] * math.prod(window.kernel), window.rows * window.columns * x.shape[0]))
    for column, (oh, ow, n) in enumerate(np.ndindex(window.rows, window.columns, x.shape[0])):
        rows, columns = window(oh, ow)
        cols[:, column] = padded[n, :, rows, columns].ravel()  # (C*KH*KW,)
    return cols


def col2im(
    cols: ArrayLike,
    x_shape: tuple[int, int, int, int],
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Array:
    """Add every column back to the places that `im2col` took it from: (C*KH*KW, OH*OW*N) -> (N, C, H, W)."""
    cols = np.asarray(cols, np.float64)
    window = Windows(x_shape, kernel_size, stride, padding, dilation)
    dpadded = window.pad(np.zeros(x_shape))
    for column, (oh, ow, n) in enumerate(np.ndindex(window.rows, window.columns, x_shape[0])):
        rows, columns = window(oh, ow)
        dpadded[n, :, rows, columns] += cols[:, column].reshape(x_shape[1], *window.kernel)  # (C, KH, KW)
    return window.crop(dpadded)


def taps(
    shape: tuple[int, ...], kernel: Size, stride: Size, padding: Padding, dilation: Size, ceil_mode: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Return for each row of windows the image rows that it covers, and the same for columns; padding is left out."""
    both = []
    for axis, side in enumerate(sides(padding, shape, kernel, stride, dilation)):
        size, k, s, d = shape[2 + axis], pair(kernel)[axis], pair(stride)[axis], pair(dilation)[axis]
        starts = [o * s - side[0] for o in range(output_size(size, k, s, side, d, ceil_mode))]
        both.append([[i for i in range(start, start + k * d, d) if 0 <= i < size] for start in starts])
    return both[0], both[1]


def max_pool2d(
    x: ArrayLike,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Any]:
    """Return the largest value of each window of x (N, C, H, W); padding never wins, nan always does."""
    x = np.asarray(x, np.float64)
    stride = kernel_size if stride is None else stride
    rows, columns = taps(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    y = np.full((*x.shape[:2], len(rows), len(columns)), -np.inf)
    winner: dict[tuple[int, ...], tuple[int, ...]] = {}  # (n, c, oh, ow) -> the place of the first largest value
    for n, c, oh, ow in np.ndindex(y.shape):
        for i in rows[oh]:
            for j in columns[ow]:
                best, value = y[n, c, oh, ow], x[n, c, i, j]
                if (n, c, oh, ow) not in winner or value > best or (math.isnan(value) and not math.isnan(best)):
                    y[n, c, oh, ow] = value
                    winner[n, c, oh, ow] = (n, c, i, j)
    return y, (x.shape, winner)


def max_pool2d_backward(dy: ArrayLike, cache: Any) -> Array:
    """Send each dy to the winner of its window; where windows overlap the gradients add up."""
    shape, winner = cache
    dx = np.zeros(shape)
    for window, place in winner.items():
        dx[place] += np.asarray(dy)[window]
    return dx


def avg_pool2d(
    x: ArrayLike,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, Any]:
    """Return the mean of each window of x (N, C, H, W).

    The sum is divided by the places of the window inside the image, or with `count_include_pad` inside the padded image
    (what `ceil_mode` adds behind the padding never counts).
    """
    x = np.asarray(x, np.float64)
    stride = kernel_size if stride is None else stride
    rows, columns = taps(x.shape, kernel_size, stride, padding, 1, ceil_mode)
    heights, widths = [len(row) for row in rows], [len(column) for column in columns]
    if count_include_pad:
        vertical, horizontal = sides(padding, x.shape, kernel_size, stride)
        (kh, kw), (sh, sw) = pair(kernel_size), pair(stride)
        heights = [min(kh, x.shape[2] + sum(vertical) - oh * sh) for oh in range(len(rows))]
        widths = [min(kw, x.shape[3] + sum(horizontal) - ow * sw) for ow in range(len(columns))]
    counts = np.outer(heights, widths)  # (OH, OW)
    y = np.zeros((*x.shape[:2], len(rows), len(columns)))
    for n, c, oh, ow in np.ndindex(y.shape):
        y[n, c, oh, ow] = sum(x[n, c, i, j] for i in rows[oh] for j in columns[ow]) / counts[oh, ow]
    return y, (x.shape, rows, columns, counts)


def avg_pool2d_backward(dy: ArrayLike, cache: Any) -> Array:
    """Share each dy equally among the places that were averaged."""
    shape, rows, columns, counts = cache
    dy = np.asarray(dy, np.float64)
    dx = np.zeros(shape)
    for n, c, oh, ow in np.ndindex(dy.shape):
        for i in rows[oh]:
            for j in columns[ow]:
                dx[n, c, i, j] += dy[n, c, oh, ow] / counts[oh, ow]
    return dx


def global_avg_pool2d(x: ArrayLike) -> tuple[Array, Any]:
    """Return the mean over each whole channel: (N, C, H, W) -> (N, C, 1, 1)."""
    shape = np.shape(x)
    return avg_pool2d(x, (shape[2], shape[3]))


def global_avg_pool2d_backward(dy: ArrayLike, cache: Any) -> Array:
    """Share each dy equally among the places of its channel."""
    return avg_pool2d_backward(dy, cache)


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> tuple[Array, Any]:
    """Return y[n, o] = bias[o] + sum over i of weight[o, i] * x[n, i]."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    b = np.zeros(weight.shape[0]) if bias is None else np.asarray(bias, np.float64)
    y = np.zeros((x.shape[0], weight.shape[0]))
    for n, o in np.ndindex(y.shape):
        y[n, o] = b[o] + np.dot(weight[o], x[n])
    return y, (x, weight, bias is not None)


def linear_backward(dy: ArrayLike, cache: Any) -> tuple[Array, Array, Array | None]:
    """Return dx, dweight, dbias."""
    x, weight, has_bias = cache
    dy = np.asarray(dy, np.float64)
    dx, dweight, dbias = np.zeros_like(x), np.zeros_like(weight), np.zeros(weight.shape[0])
    for n, o in np.ndindex(dy.shape):
        dx[n] += dy[n, o] * weight[o]
        dweight[o] += dy[n, o] * x[n]
        dbias[o] += dy[n, o]
    return dx, dweight, dbias if has_bias else None


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    running_mean: NDArray[Any],
    running_var: NDArray[Any],
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, Any]:
    """Normalise every channel of x (N, C) or (N, C, H, W), then scale by gamma (C,) and shift by beta (C,).

    In training by the batch's mean and biased variance, and the running statistics move by `momentum` towards the mean
    and the unbiased variance; otherwise by the running statistics. Source: Ioffe and Szegedy, arXiv:1502.03167.
    """
    x, gamma, beta = np.asarray(x, np.float64), np.asarray(gamma, np.float64), np.asarray(beta, np.float64)
    x_hat, y, scale = np.zeros_like(x), np.zeros_like(x), np.zeros(x.shape[1])
    for c in range(x.shape[1]):
        mean, var = float(running_mean[c]), float(running_var[c])
        if training:
            count = x[:, c].size
            mean = np.sum(x[:, c]) / count
            var = np.sum((x[:, c] - mean) ** 2) / count
            running_mean[c] += momentum * (mean - running_mean[c])
            running_var[c] += momentum * (var * count / (count - 1) - running_var[c])
        scale[c] = 1.0 / math.sqrt(var + eps)
        x_hat[:, c] = (x[:, c] - mean) * scale[c]
        y[:, c] = gamma[c] * x_hat[:, c] + beta[c]
    return y, (x_hat, gamma, scale, training)


def batch_norm_backward(dy: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Return dx, dgamma, dbeta; in training every x also moves the mean and the variance of its channel."""
    x_hat, gamma, scale, training = cache
    dy = np.asarray(dy, np.float64)
    dx, dgamma, dbeta = np.zeros_like(dy), np.zeros(dy.shape[1]), np.zeros(dy.shape[1])
    for c in range(dy.shape[1]):
        dbeta[c] = np.sum(dy[:, c])
        dgamma[c] = np.sum(dy[:, c] * x_hat[:, c])
        direct = gamma[c] * dy[:, c]
        if training:
            by_mean = np.sum(direct) / direct.size
            by_variance = np.sum(direct * x_hat[:, c]) / direct.size * x_hat[:, c]
            dx[:, c] = scale[c] * (direct - by_mean - by_variance)
        else:
            dx[:, c] = scale[c] * direct
    return dx, dgamma, dbeta


def dropout(x: ArrayLike, p: float = 0.5, *, training: bool, mask: ArrayLike | None = None) -> tuple[Array, Array]:
    """Zero a share p of the values and scale the rest by 1 / (1 - p).

    `mask` is True where a value is kept. An oracle cannot know the masks that `functional.dropout` draws from its
    hash: give the mask, or one is drawn from `xpcnn.random.generator()`.
    """
    x = np.asarray(x, np.float64)
    if not training or p == 0.0:
        return x.copy(), np.ones_like(x)
    kept = xpcnn.random.generator().random(x.shape) >= p if mask is None else np.asarray(mask, bool)
    factor = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        factor[place] = 1.0 / (1.0 - p) if kept[place] else 0.0
    return x * factor, factor


def dropout_backward(dy: ArrayLike, cache: Array) -> Array:
    """Pass dy where a value was kept, by the same factor."""
    return np.multiply(dy, cache)


def _each(x: ArrayLike, function: Callable[[float], float]) -> Array:
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        y[place] = function(float(x[place]))
    return y


def relu(x: ArrayLike) -> tuple[Array, Array]:
    """Return max(x, 0)."""
    return _each(x, lambda v: 0.0 if v <= 0 else v), _each(x, lambda v: 0.0 if v <= 0 else 1.0)


def relu_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return dy where x > 0, else 0."""
    return np.multiply(dy, cache)


def leaky_relu(x: ArrayLike, negative_slope: float = 0.01) -> tuple[Array, Array]:
    """Return x where x > 0, else negative_slope * x."""
    y = _each(x, lambda v: negative_slope * v if v <= 0 else v)
    return y, _each(x, lambda v: 1.0 if v > 0 else negative_slope)


def leaky_relu_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return dy where x > 0, else negative_slope * dy."""
    return np.multiply(dy, cache)


def sigmoid(x: ArrayLike) -> tuple[Array, Array]:
    """Return 1 / (1 + exp(-x)), written so that exp never overflows."""
    y = _each(x, lambda v: 1.0 / (1.0 + math.exp(-v)) if v >= 0 else math.exp(v) / (1.0 + math.exp(v)))
    return y, y


def sigmoid_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return dy * y * (1 - y)."""
    return np.multiply(dy, cache * (1.0 - cache))


def tanh(x: ArrayLike) -> tuple[Array, Array]:
    """Return (exp(x) - exp(-x)) / (exp(x) + exp(-x))."""
    y = _each(x, math.tanh)
    return y, y


def tanh_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return dy * (1 - y**2)."""
    return np.multiply(dy, 1.0 - cache**2)


def gelu(x: ArrayLike) -> tuple[Array, Array]:
    """Return x * Phi(x), Phi the normal distribution function. Source: Hendrycks and Gimpel, arXiv:1606.08415."""
    y = _each(x, lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2.0)))
    return y, np.asarray(x, np.float64)


def gelu_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return dy * (Phi(x) + x * phi(x)), phi the normal density."""

    def slope(v: float) -> float:
        return 0.5 * math.erfc(-v / math.sqrt(2.0)) + v * math.exp(-0.5 * v * v) / math.sqrt(2.0 * math.pi)

    return np.asarray(dy, np.float64) * _each(cache, slope)


def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """Return exp(x) / sum(exp(x)) along `axis`."""
    return np.exp(log_softmax(x, axis))


def softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1) -> Array:
    """Return dx[k] = sum over j of dy[j] * dy_j/dx_k, where dy_j/dx_k = y[j] * ((1 if j == k else 0) - y[k])."""
    dy, y = np.moveaxis(np.asarray(dy, np.float64), axis, -1), np.moveaxis(np.asarray(y, np.float64), axis, -1)
    dx = np.zeros_like(y)
    for place in np.ndindex(y.shape[:-1]):
        dx[place] = y[place] * (dy[place] - np.dot(dy[place], y[place]))
    return np.moveaxis(dx, -1, axis)


def log_softmax(x: ArrayLike, axis: int = -1) -> Array:
    """Return x - log(sum(exp(x))) along `axis`; the largest x is taken out first, so that exp never overflows."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    y = np.zeros_like(x)
    for place in np.ndindex(x.shape[:-1]):
        largest = max(x[place])
        y[place] = x[place] - largest - math.log(sum(math.exp(v - largest) for v in x[place]))
    return np.moveaxis(y, -1, axis)


def log_softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1) -> Array:
    """Return dx[k] = sum over j of dy[j] * dy_j/dx_k, where dy_j/dx_k = (1 if j == k else 0) - exp(y[k])."""
    dy, y = np.moveaxis(np.asarray(dy, np.float64), axis, -1), np.moveaxis(np.asarray(y, np.float64), axis, -1)
    dx = np.zeros_like(y)
    for place in np.ndindex(y.shape[:-1]):
        dx[place] = dy[place] - np.exp(y[place]) * np.sum(dy[place])
    return np.moveaxis(dx, -1, axis)


def cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, label_smoothing: float = 0.0, reduction: Literal["mean", "sum"] = "mean"
) -> tuple[Array, Array]:
    """Return the loss (0-d) of logits (N, K) and its gradient (N, K).

    labels are (N,) class numbers, or (N, K) one-hot or probabilities t; the loss of an image is
    -sum over k of t[k] * log_softmax(logits)[k], where smoothing first makes t into (1 - s) * t + s / K.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(labels)
    images, classes = logits.shape
    if targets.ndim == 1:
        targets = np.array([[float(k == label) for k in range(classes)] for label in targets]).reshape(logits.shape)
    log_y = log_softmax(logits)
    loss, dlogits = 0.0, np.zeros_like(logits)
    for n in range(images):
        t = [(1.0 - label_smoothing) * targets[n, k] + label_smoothing / classes for k in range(classes)]
        for k in range(classes):
            loss -= t[k] * log_y[n, k] if t[k] else 0.0  # also where log_y is -inf
            dlogits[n, k] = math.exp(log_y[n, k]) * sum(t) - t[k]
    divisor = images if reduction == "mean" else 1
    return np.array(loss / divisor), dlogits / divisor
