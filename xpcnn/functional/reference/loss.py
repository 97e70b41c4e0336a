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
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Array, Array]:
    """Return the loss (0-d) of logits (N, K, ...) and its gradient (N, K, ...).

    labels are (N, ...) class numbers, or one-hot or probabilities t like the logits; the loss of a sample or pixel is
    -sum over k of weight[k] * t[k] * log_softmax(logits)[k], where smoothing first makes t into (1 - s) * t + s / K.
    The mean is over the labels' weights, or over the number of pixels where labels are probabilities.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(labels)
    classes = logits.shape[1]
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    loss, total, dlogits = 0.0, 0.0, np.zeros_like(logits)
    for n, *pixel in np.ndindex(logits.shape[0], *logits.shape[2:]):
        place = (n, slice(None), *pixel)
        if targets.ndim < logits.ndim:
            label = int(targets[(n, *pixel)])
            if label == ignore_index:
                continue
            t = [float(k == label) for k in range(classes)]
            total += w[label]
        else:
            t = [float(each) for each in targets[place]]
            total += 1.0
        t = [w[k] * ((1.0 - label_smoothing) * t[k] + label_smoothing / classes) for k in range(classes)]
        log_y = log_softmax(logits[place])
        loss -= sum(t[k] * log_y[k] for k in range(classes) if t[k])  # also where log_y is -inf
        dlogits[place] = [math.exp(log_y[k]) * sum(t) - t[k] for k in range(classes)]
    if reduction == "mean":
        return np.array(loss / total if total else math.nan), dlogits / (total or 1.0)
    return np.array(loss), dlogits


def _reduced(losses: Array, slopes: Array, reduction: str) -> tuple[Array, Array]:
    divisor = losses.size if reduction == "mean" else 1
    return np.array(np.sum(losses) / divisor), slopes / divisor


def mse_loss(x: ArrayLike, target: ArrayLike, *, reduction: str = "mean") -> tuple[Array, Array]:
    """Return the mean or sum of (x - target)**2, and its gradient."""
    difference = np.asarray(x, np.float64) - np.asarray(target, np.float64)
    return _reduced(difference**2, 2.0 * difference, reduction)


def l1_loss(x: ArrayLike, target: ArrayLike, *, reduction: str = "mean") -> tuple[Array, Array]:
    """Return the mean or sum of |x - target|, and its gradient; 0 where both are equal."""
    difference = np.asarray(x, np.float64) - np.asarray(target, np.float64)
    return _reduced(np.abs(difference), np.sign(difference), reduction)


def binary_cross_entropy_with_logits(
    x: ArrayLike, target: ArrayLike, *, pos_weight: ArrayLike | None = None, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return the mean or sum of -(p * t * log s(x) + (1 - t) * log s(-x)), s the sigmoid, and its gradient."""
    x, t = np.asarray(x, np.float64), np.asarray(target, np.float64)
    p = np.broadcast_to(1.0 if pos_weight is None else np.asarray(pos_weight, np.float64), x.shape)
    losses, slopes = np.zeros_like(x), np.zeros_like(x)
    for place in np.ndindex(x.shape):
        yes, no = np.logaddexp(0.0, -x[place]), np.logaddexp(0.0, x[place])  # -log s(x), -log s(-x)
        losses[place] = p[place] * t[place] * yes + (1.0 - t[place]) * no
        slopes[place] = (1.0 - t[place]) * np.exp(-yes) - p[place] * t[place] * np.exp(-no)
    return _reduced(losses, slopes, reduction)
