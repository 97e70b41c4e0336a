"""The dense layer, dropout and concatenation as plain loops."""

from __future__ import annotations

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
