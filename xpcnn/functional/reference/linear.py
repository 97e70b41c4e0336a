"""The dense layer, dropout, the identity and concatenation as plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import xpcnn.random
from xpcnn.functional.reference.windows import Array


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


def dropout2d(x: ArrayLike, p: float = 0.5, *, training: bool, mask: ArrayLike | None = None) -> tuple[Array, Array]:
    """Zero a share p of the channels of each image; `mask` (N, C) as in `dropout`."""
    x = np.asarray(x, np.float64)
    _, channels = dropout(np.ones(x.shape[:2]), p, training=training, mask=mask)
    factor = np.zeros_like(x)
    for n, c in np.ndindex(channels.shape):
        factor[n, c] = channels[n, c]
    return np.where(factor == 0, 0.0, x) * factor, factor


def dropout2d_backward(dy: ArrayLike, cache: Array) -> Array:
    """Pass dy where a channel was kept, by the same factor."""
    return np.multiply(dy, cache)


def identity(x: ArrayLike) -> tuple[Array, None]:
    """Return x."""
    return np.asarray(x, np.float64), None


def identity_backward(dy: ArrayLike, cache: None) -> Array:
    """Return dy."""
    return np.asarray(dy, np.float64)


def pad_channels(x: ArrayLike, before: int = 0, after: int = 0) -> tuple[Array, Any]:
    """Put channels of zeros before and behind those of x (N, C, ...)."""
    x = np.asarray(x, np.float64)
    y = np.zeros((len(x), before + x.shape[1] + after, *x.shape[2:]))
    for n in range(len(x)):
        for c in range(x.shape[1]):
            y[n, before + c] = x[n, c]
    return y, (before, x.shape)


def pad_channels_backward(dy: ArrayLike, cache: Any) -> Array:
    """Return what lies in the place of x."""
    before, shape = cache
    return np.array([[image[before + c] for c in range(shape[1])] for image in np.asarray(dy, np.float64)])


def concat(arrays: Sequence[ArrayLike], axis: int = 1) -> tuple[Array, Any]:
    """Put arrays side by side along `axis`."""
    parts = [np.moveaxis(np.asarray(part, np.float64), axis, 0) for part in arrays]
    slices = [each for part in parts for each in part]
    return np.moveaxis(np.array(slices), 0, axis), ([len(part) for part in parts], axis)


def concat_backward(dy: ArrayLike, cache: Any) -> list[Array]:
    """Return the part of dy that lies in the place of each array."""
    lengths, axis = cache
    slices = iter(np.moveaxis(np.asarray(dy, np.float64), axis, 0))
    return [np.moveaxis(np.array([next(slices) for _ in range(length)]), 0, axis) for length in lengths]
