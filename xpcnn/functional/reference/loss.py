"""Softmax and the losses as plain loops."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from xpcnn.functional.reference.windows import Array


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
