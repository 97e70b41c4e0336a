"""Convolution, transposed convolution, im2col and col2im as plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from xpcnn.functional.reference.windows import Array, Padding, Size, Windows, pair, sides


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
