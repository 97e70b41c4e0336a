"""Operators that sum, average or compare along axes; products of matrices; softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpcnn.backend import Array
from xpcnn.onnx.operators.registry import Call, Results, integers, operator, unbroadcast, wrong


def _reduction(
    name: str, apply: Callable[[Call, Array, tuple[int, ...]], Array], slope: Callable[..., Any] | None
) -> None:
    """Add y = apply(x, axes), axes kept; dx = dy slope(x, y, number of values that were joined)."""

    def function(call: Call, x: Array, axes: Any = None) -> Results:
        given = call.get("axes", []) if axes is None else axes
        chosen = tuple(axis % max(1, x.ndim) for axis in integers(given))
        if not chosen:
            if call.get("noop_with_empty_axes", 0):
                return (apply(call, x, ()) if name in _CHANGES else x), lambda dy: (
                    (dy if slope is None else call.xp.multiply(dy, slope(call, x, apply(call, x, ()), 1))),
                    None,
                )
            chosen = tuple(range(x.ndim))
        kept = apply(call, x, chosen)
        shape = tuple(kept.shape)
        count = math.prod(x.shape[axis] for axis in chosen)
        y = kept if call.get("keepdims", 1) else kept.reshape([n for i, n in enumerate(shape) if i not in chosen])

        def backward(dy: Array) -> tuple[Array, None]:
            if slope is None:
                raise wrong(f"{name} has no gradient here")
            return call.xp.multiply(dy.reshape(shape), slope(call, x, kept, count)).astype(x.dtype), None

        return y.astype(x.dtype), backward

    operator(name, host=(1,))(function)


_CHANGES = ("ReduceL1", "ReduceL2", "ReduceSumSquare")


def _fill(call: Call, x: Array) -> Array:
    return call.xp.ones_like(x)


def _least(dtype: Any, sign: int) -> Any:
    if dtype.kind == "b":
        return sign > 0
    if dtype.kind == "f":
        return sign * math.inf
    return np.iinfo(str(dtype)).max if sign > 0 else np.iinfo(str(dtype)).min


def _extreme(call: Call, x: Array, axes: tuple[int, ...], greatest: bool) -> Array:
    if any(x.shape[axis] == 0 for axis in axes):
        shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        return call.full(shape, _least(x.dtype, -1 if greatest else 1), x)
    return (call.xp.max if greatest else call.xp.min)(x, axis=axes, keepdims=True)


def _mean(call: Call, x: Array, axes: tuple[int, ...]) -> Array:
    return call.xp.mean(x, axis=axes, keepdims=True)


_reduction("ReduceMean", _mean, lambda c, x, y, n: c.xp.full_like(x, 1 / n))
_reduction("ReduceSum", lambda c, x, a: c.xp.sum(x, axis=a, keepdims=True), lambda c, x, y, n: _fill(c, x))
_reduction("ReduceMax", lambda c, x, a: _extreme(c, x, a, True), lambda c, x, y, n: c.xp.equal(x, y).astype(x.dtype))
_reduction("ReduceMin", lambda c, x, a: _extreme(c, x, a, False), lambda c, x, y, n: c.xp.equal(x, y).astype(x.dtype))
_reduction("ReduceProd", lambda c, x, a: c.xp.prod(x, axis=a, keepdims=True), None)
_reduction(
    "ReduceL1",
    lambda c, x, a: c.xp.sum(c.xp.absolute(x), axis=a, keepdims=True),
    lambda c, x, y, n: c.xp.sign(x),
)
_reduction(
    "ReduceL2",
    lambda c, x, a: c.xp.sqrt(c.xp.sum(c.xp.multiply(x, x), axis=a, keepdims=True)),
    lambda c, x, y, n: c.xp.divide(x, c.xp.maximum(y, 1e-30)),
)
_reduction(
    "ReduceSumSquare",
    lambda c, x, a: c.xp.sum(c.xp.multiply(x, x), axis=a, keepdims=True),
    lambda c, x, y, n: c.xp.multiply(x, 2),
)


@operator("ArgMax")
def _argmax(call: Call, x: Array) -> Results:
    axis = call.get("axis", 0) % x.ndim
    if call.get("select_last_index", 0):
        y = x.shape[axis] - 1 - call.xp.argmax(call.xp.flip(x, axis), axis=axis)
    else:
        y = call.xp.argmax(x, axis=axis)
    if call.get("keepdims", 1):
        y = y.reshape(*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return y.astype("int64"), lambda dy: (None,)


@operator("GlobalAveragePool")
def _global_mean(call: Call, x: Array) -> Results:
    axes = tuple(range(2, x.ndim))
    count = math.prod(x.shape[2:])
    return call.xp.mean(x, axis=axes, keepdims=True).astype(x.dtype), lambda dy: (
        call.xp.multiply(call.xp.ones_like(x), call.xp.divide(dy, count)),
    )


@operator("GlobalMaxPool")
def _global_max(call: Call, x: Array) -> Results:
    y = call.xp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)
    return y, lambda dy: (call.xp.multiply(dy, call.xp.equal(x, y).astype(x.dtype)),)


# --- products ---------------------------------------------------------------------------------------------------------


def _turned(a: Array) -> Array:
    return a.swapaxes(-1, -2)


@operator("MatMul")
def _matmul(call: Call, a: Array, b: Array) -> Results:
    xp = call.xp
    left = a.reshape(1, -1) if a.ndim == 1 else a
    right = b.reshape(-1, 1) if b.ndim == 1 else b
    y = xp.matmul(left, right)
    full = tuple(y.shape)
    shape = [n for i, n in enumerate(full) if not (a.ndim == 1 and i == len(full) - 2)]
    shape = shape[:-1] if b.ndim == 1 else shape

    def backward(dy: Array) -> tuple[Array, Array]:
        dy = dy.reshape(full)
        da = unbroadcast(call, xp.matmul(dy, _turned(right)), left.shape)
        db = unbroadcast(call, xp.matmul(_turned(left), dy), right.shape)
        return da.reshape(a.shape), db.reshape(b.shape)

    return y.reshape(shape), backward


@operator("Gemm")
def _gemm(call: Call, a: Array, b: Array, c: Array = None) -> Results:
    xp = call.xp
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    left = a.T if call.get("transA", 0) else a
    right = b.T if call.get("transB", 0) else b
    y = xp.matmul(left, right)
    if alpha != 1:
        y = xp.multiply(y, alpha)
    if c is not None:
        y = xp.add(y, c if beta == 1 else xp.multiply(c, beta))

    def backward(dy: Array) -> tuple[Any, ...]:
        scaled = xp.multiply(dy, alpha)
        da, db = xp.matmul(scaled, right.T), xp.matmul(left.T, scaled)
        dc = None if c is None else unbroadcast(call, xp.multiply(dy, beta), c.shape)
        return da.T if call.get("transA", 0) else da, db.T if call.get("transB", 0) else db, dc

    return y, backward


def _softmax_axes(call: Call, x: Array) -> tuple[int, ...]:
    axis = call.get("axis", 1 if call.version < 13 else -1)
    if call.version < 13:  # all from the axis on are one
        return tuple(range(axis % max(1, x.ndim), x.ndim))
    return (axis % max(1, x.ndim),)


@operator("Softmax")
def _softmax(call: Call, x: Array) -> Results:
    xp, axes = call.xp, _softmax_axes(call, x)
    e = xp.exp(xp.subtract(x, xp.max(x, axis=axes, keepdims=True)))
    y = xp.divide(e, xp.sum(e, axis=axes, keepdims=True))

    def backward(dy: Array) -> tuple[Array]:
        return (xp.multiply(y, xp.subtract(dy, xp.sum(xp.multiply(dy, y), axis=axes, keepdims=True))),)

    return y, backward


@operator("LogSoftmax")
def _log_softmax(call: Call, x: Array) -> Results:
    xp, axes = call.xp, _softmax_axes(call, x)
    low = xp.subtract(x, xp.max(x, axis=axes, keepdims=True))
    y = xp.subtract(low, xp.log(xp.sum(xp.exp(low), axis=axes, keepdims=True)))

    def backward(dy: Array) -> tuple[Array]:
        return (xp.subtract(dy, xp.multiply(xp.exp(y), xp.sum(dy, axis=axes, keepdims=True))),)

    return y, backward
