"""Operators that bring numbers to a mean of 0 and a variance of 1, and what goes with them."""

from __future__ import annotations

from typing import Any

from xpcnn import functional as F
from xpcnn.backend import Array
from xpcnn.onnx.operators.registry import Call, Results, operator, unbroadcast, wrong


def _normalise(call: Call, x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array, Any]:
    """Return (x - mean) / sqrt(variance + eps) along axes, the mean, 1 / sqrt(...), and dx for its gradient."""
    xp = call.xp
    mean = xp.mean(x, axis=axes, keepdims=True)
    low = xp.subtract(x, mean)
    rate = xp.divide(1.0, xp.sqrt(xp.add(xp.mean(xp.multiply(low, low), axis=axes, keepdims=True), eps)))
    y = xp.multiply(low, rate)

    def backward(dy: Array) -> Array:
        centred = xp.subtract(dy, xp.mean(dy, axis=axes, keepdims=True))
        along = xp.multiply(y, xp.mean(xp.multiply(dy, y), axis=axes, keepdims=True))
        return xp.multiply(xp.subtract(centred, along), rate)

    return y, mean, rate, backward


def _per_channel(a: Array, ndim: int) -> Array:
    return a.reshape(-1, *(1,) * (ndim - 2))


@operator("BatchNormalization")
def _batch_norm(call: Call, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array) -> Results:
    eps, momentum = call.get("epsilon", 1e-5), call.get("momentum", 0.9)
    if call.get("training_mode", 0):
        return _batch_norm_of_batch(call, x, gamma, beta, mean, variance, eps, momentum)
    if call.backend is not None and call.training:  # as torch trains, the running statistics in place
        flat = x.reshape(x.shape[0], x.shape[1], -1, 1)
        y, cache = F.batch_norm(flat, gamma, beta, mean, variance, training=True, momentum=1 - momentum, eps=eps)

        def through(dy: Array) -> tuple[Any, ...]:
            dx, dgamma, dbeta = F.batch_norm_backward(dy.reshape(flat.shape), cache)
            return dx.reshape(x.shape), dgamma, dbeta, None, None

        return y.reshape(x.shape), through
    xp = call.xp
    mean_, variance_, gamma_, beta_ = (_per_channel(a, x.ndim) for a in (mean, variance, gamma, beta))
    rate = xp.divide(1.0, xp.sqrt(xp.add(variance_, eps)))
    normal = xp.multiply(xp.subtract(x, mean_), rate)

    def backward(dy: Array) -> tuple[Any, ...]:
        dgamma = unbroadcast(call, xp.multiply(dy, normal), gamma_.shape).reshape(gamma.shape)
        dbeta = unbroadcast(call, dy, beta_.shape).reshape(beta.shape)
        return xp.multiply(dy, xp.multiply(gamma_, rate)), dgamma, dbeta, None, None

    return xp.add(xp.multiply(normal, gamma_), beta_).astype(x.dtype), backward


def _batch_norm_of_batch(call: Call, x: Array, gamma: Array, beta: Array, mean: Any, variance: Any, eps: float,
                         momentum: float) -> Results:  # fmt: skip
    """Compute as a file does that asks for training: with the batch's own statistics, whatever the mode."""
    xp = call.xp
    axes = (0, *range(2, x.ndim))
    normal, batch_mean, _, inner = _normalise(call, x, axes, eps)
    low = xp.subtract(x, batch_mean)
    batch_variance = xp.mean(xp.multiply(low, low), axis=axes)
    gamma_, beta_ = _per_channel(gamma, x.ndim), _per_channel(beta, x.ndim)

    def mixed(old: Array, new: Array) -> Array:
        return xp.add(xp.multiply(old, momentum), xp.multiply(new.reshape(old.shape), 1 - momentum))

    def backward(dy: Array, *_: Any) -> tuple[Any, ...]:
        dgamma = xp.sum(xp.multiply(dy, normal), axis=axes)
        return inner(xp.multiply(dy, gamma_)), dgamma, xp.sum(dy, axis=axes), None, None

    y = xp.add(xp.multiply(normal, gamma_), beta_)
    return (y, mixed(mean, batch_mean), mixed(variance, batch_variance)), backward


@operator("InstanceNormalization")
def _instance_norm(call: Call, x: Array, gamma: Array, beta: Array) -> Results:
    normal, _, _, inner = _normalise(call, x, tuple(range(2, x.ndim)), call.get("epsilon", 1e-5))
    return _scaled(call, x, normal, gamma, beta, inner)


def _scaled(call: Call, x: Array, normal: Array, gamma: Array, beta: Array, inner: Any) -> Results:
    xp = call.xp
    gamma_, beta_ = _per_channel(gamma, x.ndim), _per_channel(beta, x.ndim)

    def backward(dy: Array) -> tuple[Any, ...]:
        dgamma = unbroadcast(call, xp.multiply(dy, normal), gamma_.shape).reshape(gamma.shape)
        return inner(xp.multiply(dy, gamma_)), dgamma, unbroadcast(call, dy, beta_.shape).reshape(beta.shape)

    return xp.add(xp.multiply(normal, gamma_), beta_), backward


@operator("GroupNormalization")
def _group_norm(call: Call, x: Array, gamma: Array, beta: Array) -> Results:
    groups, shape = call.get("num_groups", 1), tuple(x.shape)
    if groups < 1 or shape[1] % groups:
        raise wrong(f"num_groups: expected a divisor of {shape[1]} channels, got {groups}")
    split = x.reshape(shape[0], groups, -1)
    normal, _, _, inner = _normalise(call, split, (2,), call.get("epsilon", 1e-5))
    if call.version < 21:  # one scale for each group
        y, back = _scaled(call, split, normal, gamma, beta, inner)

        def backward(dy: Array) -> tuple[Any, ...]:
            dx, *others = back(dy.reshape(split.shape))  # type: ignore[misc]
            return dx.reshape(shape), *others

        return y.reshape(shape), backward
    return _scaled(
        call, x, normal.reshape(shape), gamma, beta, lambda dy: inner(dy.reshape(split.shape)).reshape(shape)
    )


@operator("LayerNormalization")
def _layer_norm(call: Call, x: Array, gamma: Array, beta: Array = None) -> Results:
    xp = call.xp
    axis = call.get("axis", -1) % x.ndim
    normal, mean, rate, inner = _normalise(call, x, tuple(range(axis, x.ndim)), call.get("epsilon", 1e-5))
    y = xp.multiply(normal, gamma)
    y = y if beta is None else xp.add(y, beta)

    def backward(dy: Array, *_: Any) -> tuple[Any, ...]:
        dgamma = unbroadcast(call, xp.multiply(dy, normal), gamma.shape)
        dbeta = None if beta is None else unbroadcast(call, dy, beta.shape)
        return inner(xp.multiply(dy, gamma)), dgamma, dbeta

    return (y, mean, rate)[: call.outputs] if call.outputs > 1 else y, backward


@operator("LRN")
def _lrn(call: Call, x: Array) -> Results:
    xp = call.xp
    size, alpha, beta = call.get("size", 1), call.get("alpha", 1e-4), call.get("beta", 0.75)
    below, above = (size - 1) // 2, size - 1 - (size - 1) // 2
    base = xp.add(xp.multiply(_neighbours(call, xp.multiply(x, x), below, above), alpha / size), call.get("bias", 1.0))
    scale = xp.power(base, -beta)

    def backward(dy: Array) -> tuple[Array]:
        inside = xp.multiply(xp.multiply(dy, x), xp.power(base, -beta - 1))
        shared = _neighbours(call, inside, above, below)
        return (xp.subtract(xp.multiply(dy, scale), xp.multiply(xp.multiply(shared, x), 2 * alpha * beta / size)),)

    return xp.multiply(x, scale), backward


def _neighbours(call: Call, x: Array, below: int, above: int) -> Array:
    """Return the sums over channels from `below` below to `above` above each."""
    y = call.zeros(x.shape, x)
    count = x.shape[1]
    for shift in range(-below, above + 1):
        first, last = max(0, -shift), min(count, count - shift)
        if last > first:
            target = y[:, first:last]
            call.xp.add(target, x[:, first + shift : last + shift], out=target)
    return y


@operator("Dropout", host=(1, 2))
def _dropout(call: Call, x: Array, ratio: Any = None, training: Any = None) -> Results:
    share = call.get("ratio", 0.5) if ratio is None else float(ratio)
    xp = call.xp
    if call.backend is not None and call.training and share and (training is None or bool(training)):
        y, cache = F.dropout(x, share, training=True)
        return y, lambda dy, *_: (F.dropout_backward(dy, cache), None, None)
    if training is not None and bool(training) and share:
        raise wrong("training_mode: expected false outside of training, got true with a share to drop")
    mask = xp.ones(x.shape, dtype=bool)
    return ((x, mask) if call.outputs > 1 else x), lambda dy, *_: (dy, None, None)
