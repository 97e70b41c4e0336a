"""Normalisation as plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpcnn.functional.reference.windows import Array


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


def _normalise(rows: Array, eps: float) -> tuple[Array, Array]:
    """Return (x - mean) / sqrt(variance + eps) of each row (R, n), and 1 / sqrt(variance + eps)."""
    scale = np.zeros(len(rows))
    normal = np.zeros_like(rows)
    for r, row in enumerate(rows):
        mean = np.sum(row) / row.size
        scale[r] = 1.0 / math.sqrt(np.sum((row - mean) ** 2) / row.size + eps)
        normal[r] = (row - mean) * scale[r]
    return normal, scale


def _normalise_backward(direct: Array, normal: Array, scale: Array) -> Array:
    """Return dx of `_normalise` for a gradient of its result: every x also moves the mean and variance of its row."""
    dx = np.zeros_like(direct)
    for r, row in enumerate(direct):
        by_variance = np.sum(row * normal[r]) / row.size * normal[r]
        dx[r] = scale[r] * (row - np.sum(row) / row.size - by_variance)
    return dx


def layer_norm(
    x: ArrayLike,
    normalized_shape: int | tuple[int, ...],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Any]:
    """Normalise the last axes, `normalized_shape`, of every sample. Source: Ba et al., arXiv:1607.06450."""
    x = np.asarray(x, np.float64)
    last = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    rows = x.reshape(-1, math.prod(last))
    normal, scale = _normalise(rows, eps)
    y = normal * np.ravel(1.0 if weight is None else weight) + np.ravel(0.0 if bias is None else bias)
    return y.reshape(x.shape), (normal, scale, weight, bias)


def layer_norm_backward(dy: ArrayLike, cache: Any) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight, dbias."""
    normal, scale, weight, bias = cache
    rows = np.reshape(np.asarray(dy, np.float64), normal.shape)
    dx = _normalise_backward(rows * np.ravel(1.0 if weight is None else weight), normal, scale)
    dweight = None if weight is None else np.sum(rows * normal, axis=0).reshape(np.shape(weight))
    return dx.reshape(np.shape(dy)), dweight, None if bias is None else np.sum(rows, axis=0).reshape(np.shape(bias))


def group_norm(
    x: ArrayLike, num_groups: int, weight: ArrayLike | None = None, bias: ArrayLike | None = None, eps: float = 1e-5
) -> tuple[Array, Any]:
    """Normalise C / num_groups channels of each image together: x (N, C, ...). Source: Wu and He, arXiv:1803.08494."""
    x = np.asarray(x, np.float64)
    normal, scale = _normalise(x.reshape(x.shape[0] * num_groups, -1), eps)
    y = normal.reshape(x.shape).copy()
    for c in range(x.shape[1]):
        y[:, c] *= 1.0 if weight is None else np.asarray(weight)[c]
        y[:, c] += 0.0 if bias is None else np.asarray(bias)[c]
    return y, (normal, scale, weight, bias)


def group_norm_backward(dy: ArrayLike, cache: Any) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight, dbias."""
    normal, scale, weight, bias = cache
    dy = np.asarray(dy, np.float64)
    channels = range(dy.shape[1])
    direct = dy.copy()
    for c in channels:
        direct[:, c] *= 1.0 if weight is None else np.asarray(weight)[c]
    dx = _normalise_backward(direct.reshape(normal.shape), normal, scale).reshape(dy.shape)
    x_hat = normal.reshape(dy.shape)
    dweight = None if weight is None else np.array([np.sum(dy[:, c] * x_hat[:, c]) for c in channels])
    return dx, dweight, None if bias is None else np.array([np.sum(dy[:, c]) for c in channels])
