"""Elementwise activations as plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from xpcnn.functional.reference.windows import Array


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


def silu(x: ArrayLike) -> tuple[Array, Array]:
    """Return x / (1 + exp(-x)). Source: Elfwing et al., arXiv:1702.03118."""
    x = np.asarray(x, np.float64)
    return x * sigmoid(x)[0], x


def silu_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return dy * (s + x * s * (1 - s)), s the sigmoid of x."""
    s, rest = sigmoid(cache)[0], sigmoid(-cache)[0]
    return np.asarray(dy, np.float64) * (s + cache * s * rest)


def hardswish(x: ArrayLike) -> tuple[Array, Array]:
    """Return x * min(max(x + 3, 0), 6) / 6. Source: Howard et al., arXiv:1905.02244."""
    return _each(x, lambda v: v * min(max(v + 3.0, 0.0), 6.0) / 6.0), np.asarray(x, np.float64)


def hardswish_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return 0 up to x = -3, dy from x = 3 on, and dy * (2 * x + 3) / 6 between."""
    return np.multiply(dy, _each(cache, lambda v: 0.0 if v <= -3 else 1.0 if v >= 3 else (2.0 * v + 3.0) / 6.0))


def elu(x: ArrayLike, alpha: float = 1.0) -> tuple[Array, Array]:
    """Return x where x > 0, else alpha * (exp(x) - 1). Source: Clevert et al., arXiv:1511.07289."""
    return _each(x, lambda v: alpha * math.expm1(v) if v <= 0 else v), _each(
        x, lambda v: alpha * math.exp(v) if v <= 0 else 1.0
    )


def elu_backward(dy: ArrayLike, cache: Array) -> Array:
    """Return dy where x > 0, else dy * alpha * exp(x)."""
    return np.multiply(dy, cache)
