"""Adaptive pooling and upsampling as plain loops: each output is a sum of pixels times weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from xpcnn.functional.reference.windows import Array

Shares: TypeAlias = dict[int, float]  # input pixel -> its weight in one output


def _resample(x: ArrayLike, out: tuple[int, int], shares: Callable[[int, int], Shares]) -> tuple[Array, Any]:
    """Return y[n, c, i, j] = the sum over pixels (h, w) of their weights times x[n, c, h, w]."""
    x = np.asarray(x, np.float64)
    rows, columns = ([shares(axis, o) for o in range(out[axis])] for axis in (0, 1))
    y = np.zeros((*x.shape[:2], *out))
    for i, j in np.ndindex(out):
        for h, by_row in rows[i].items():
            for w, by_column in columns[j].items():
                y[:, :, i, j] += by_row * by_column * x[:, :, h, w]
    return y, (x.shape, rows, columns)


def _resample_backward(dy: ArrayLike, cache: Any) -> Array:
    """Send each dy back to the pixels of its sum, by their weights."""
    shape, rows, columns = cache
    dy, dx = np.asarray(dy, np.float64), np.zeros(shape)
    for i, j in np.ndindex(dy.shape[2:]):
        for h, by_row in rows[i].items():
            for w, by_column in columns[j].items():
                dx[:, :, h, w] += by_row * by_column * dy[:, :, i, j]
    return dx


def adaptive_avg_pool2d(x: ArrayLike, output_size: int | tuple[int | None, int | None] | None) -> tuple[Array, Any]:
    """Return means over windows from floor(o * size / out) to ceil((o + 1) * size / out): x (N, C, H, W)."""
    sizes = np.shape(x)[2:]
    wanted = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    out = [size if each is None else each for size, each in zip(sizes, wanted, strict=True)]

    def shares(axis: int, o: int) -> Shares:
        window = range(math.floor(o * sizes[axis] / out[axis]), math.ceil((o + 1) * sizes[axis] / out[axis]))
        return dict.fromkeys(window, 1.0 / len(window))

    return _resample(x, (out[0], out[1]), shares)


def adaptive_avg_pool2d_backward(dy: ArrayLike, cache: Any) -> Array:
    """Share each dy equally among the places that were averaged."""
    return _resample_backward(dy, cache)


def upsample(
    x: ArrayLike,
    size: int | tuple[int, int] | None = None,
    scale_factor: float | tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> tuple[Array, Any]:
    """Return images x (N, C, H, W) of another size: pixels repeated, or interpolated between two in each direction."""
    sizes = np.shape(x)[2:]
    scales = scale_factor if isinstance(scale_factor, tuple) else (scale_factor, scale_factor)
    wanted = size if isinstance(size, tuple) else (size, size)
    out = [
        int(each) if each is not None else math.floor(pixels * float(scale or 1.0))
        for pixels, each, scale in zip(sizes, wanted, scales, strict=True)
    ]

    def shares(axis: int, o: int) -> Shares:
        pixels, scale, last = sizes[axis], scales[axis], sizes[axis] - 1
        inverse = pixels / out[axis] if scale is None or out[axis] == pixels else 1.0 / scale
        if mode == "nearest":
            return {min(math.floor(o * inverse + 1e-9), last): 1.0}
        if align_corners:
            place = o * last / (out[axis] - 1) if out[axis] > 1 else 0.0
        else:
            place = min(max(0.0, (o + 0.5) * inverse - 0.5), last)
        low = math.floor(place)
        return {low: 1.0 - (place - low), min(low + 1, last): place - low} if low < last else {low: 1.0}

    return _resample(x, (out[0], out[1]), shares)


def upsample_backward(dy: ArrayLike, cache: Any) -> Array:
    """Send each dy back to the pixels that it was interpolated between."""
    return _resample_backward(dy, cache)
