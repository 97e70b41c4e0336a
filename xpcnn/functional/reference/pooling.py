"""Pooling as plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from xpcnn.functional.reference.windows import Array, Padding, Size, output_size, pair, sides


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
