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
