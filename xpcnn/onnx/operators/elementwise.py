"""Operators that treat each number alone, and those that combine two arrays number by number."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpcnn.backend import Array
from xpcnn.functional.special import erf as error_function
from xpcnn.onnx.operators.registry import Call, Results, is_float, operator, unbroadcast, wrong


def _unary(name: str, apply: Callable[[Call, Array], Array], slope: Callable[[Call, Array, Array], Any] | None) -> None:
    """Add y = apply(x) with dx = dy slope(x, y); None is a slope of 0."""

    def function(call: Call, x: Array, *_: Any) -> Results:
        y = apply(call, x)
        if slope is None:
            return y, lambda dy: (None,)
        return y, lambda dy: (call.xp.multiply(dy, slope(call, x, y)),)

    operator(name)(function)


def _mask(call: Call, condition: Array, like: Array) -> Array:
    return condition.astype(like.dtype)


def _softplus(call: Call, x: Array) -> Array:
    xp = call.xp
    return xp.add(xp.log1p(xp.exp(xp.negative(xp.absolute(x)))), xp.maximum(x, 0))


def _sigmoid(call: Call, x: Array) -> Array:
    xp = call.xp
    small = xp.exp(xp.negative(xp.absolute(x)))
    return xp.divide(xp.where(xp.less(x, 0), small, xp.ones_like(x)), xp.add(small, 1))


def _leak(call: Call, x: Array, below: Any, above: float = 1.0) -> Array:
    """Return the slope `above` where x is positive, `below` elsewhere."""
    xp = call.xp
    return xp.where(xp.greater(x, 0), xp.full_like(x, above), below)


def _exponential(call: Call, x: Array, scale: float, rate: float = 1.0, above: float = 1.0) -> Array:
    xp = call.xp
    below = xp.multiply(xp.expm1(xp.multiply(xp.minimum(x, 0), rate)), scale)
    return xp.where(xp.greater(x, 0), xp.multiply(x, above), below)


def _erf(call: Call, x: Array) -> Array:
    from xpcnn.backend import resolve

    return error_function(call.backend or resolve("numpy"), x).astype(x.dtype)


def _gelu(call: Call, x: Array) -> Array:
    xp = call.xp
    if call.get("approximate", b"none") in (b"tanh", "tanh"):
        return xp.multiply(xp.multiply(x, 0.5), xp.add(xp.tanh(_inner(call, x)), 1))
    return xp.multiply(xp.multiply(x, 0.5), xp.add(_erf(call, xp.multiply(x, math.sqrt(0.5))), 1))


def _inner(call: Call, x: Array) -> Array:
    xp = call.xp
    return xp.multiply(xp.add(x, xp.multiply(xp.multiply(xp.multiply(x, x), x), 0.044715)), math.sqrt(2 / math.pi))


def _gelu_slope(call: Call, x: Array, y: Array) -> Array:
    xp = call.xp
    if call.get("approximate", b"none") in (b"tanh", "tanh"):
        t = xp.tanh(_inner(call, x))
        rate = xp.multiply(xp.add(xp.multiply(xp.multiply(x, x), 3 * 0.044715), 1), math.sqrt(2 / math.pi))
        other = xp.multiply(xp.multiply(xp.subtract(1, xp.multiply(t, t)), rate), xp.multiply(x, 0.5))
        return xp.add(xp.multiply(xp.add(t, 1), 0.5), other)
    density = xp.multiply(xp.exp(xp.multiply(xp.multiply(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    share = xp.multiply(xp.add(_erf(call, xp.multiply(x, math.sqrt(0.5))), 1), 0.5)
    return xp.add(share, xp.multiply(x, density))


def _clipped(call: Call, x: Array, rate: float, offset: float) -> Array:
    xp = call.xp
    return xp.maximum(xp.minimum(xp.add(xp.multiply(x, rate), offset), 1), 0)


def _inside(call: Call, y: Array) -> Array:
    xp = call.xp
    return _mask(call, xp.logical_and(xp.greater(y, 0), xp.less(y, 1)), y)


def _hard_swish_slope(call: Call, x: Array, y: Array) -> Array:
    gate = _clipped(call, x, 1 / 6, 0.5)
    return call.xp.add(gate, call.xp.multiply(x, call.xp.multiply(_inside(call, gate), 1 / 6)))


def _mish_slope(call: Call, x: Array, y: Array) -> Array:
    xp = call.xp
    t = xp.tanh(_softplus(call, x))
    return xp.add(t, xp.multiply(xp.multiply(x, _sigmoid(call, x)), xp.subtract(1, xp.multiply(t, t))))


def _swish_slope(call: Call, x: Array, y: Array) -> Array:
    xp, alpha = call.xp, call.get("alpha", 1.0)
    s = _sigmoid(call, xp.multiply(x, alpha))
    return xp.add(s, xp.multiply(xp.multiply(x, alpha), xp.multiply(s, xp.subtract(1, s))))


def _elu_slope(call: Call, x: Array, y: Array, alpha: float, rate: float = 1.0, above: float = 1.0) -> Array:
    xp = call.xp
    return _leak(call, x, xp.multiply(xp.exp(xp.multiply(xp.minimum(x, 0), rate)), alpha * rate), above)


_SELU = 1.67326319217681884765625, 1.05070102214813232421875

_unary("Abs", lambda c, x: c.xp.absolute(x), lambda c, x, y: c.xp.sign(x))
_unary("Neg", lambda c, x: c.xp.negative(x), lambda c, x, y: -1)
_unary("Exp", lambda c, x: c.xp.exp(x), lambda c, x, y: y)
_unary("Log", lambda c, x: c.xp.log(x), lambda c, x, y: c.xp.divide(1, x))
_unary("Sqrt", lambda c, x: c.xp.sqrt(x), lambda c, x, y: c.xp.divide(0.5, y))
_unary("Reciprocal", lambda c, x: c.xp.divide(1, x).astype(x.dtype), lambda c, x, y: c.xp.negative(c.xp.multiply(y, y)))
_unary("Floor", lambda c, x: c.xp.floor(x), None)
_unary("Ceil", lambda c, x: c.xp.ceil(x), None)
_unary("Sign", lambda c, x: c.xp.sign(x), None)
_unary("Not", lambda c, x: c.xp.logical_not(x), None)
_unary("Identity", lambda c, x: x, lambda c, x, y: 1)
_unary("Erf", _erf, lambda c, x, y: c.xp.multiply(c.xp.exp(c.xp.negative(c.xp.multiply(x, x))), 2 / math.sqrt(math.pi)))
_unary("Relu", lambda c, x: c.xp.maximum(x, 0), lambda c, x, y: _mask(c, c.xp.greater(x, 0), x))
_unary("Sigmoid", _sigmoid, lambda c, x, y: c.xp.multiply(y, c.xp.subtract(1, y)))
_unary("Tanh", lambda c, x: c.xp.tanh(x), lambda c, x, y: c.xp.subtract(1, c.xp.multiply(y, y)))
_unary("Softplus", _softplus, lambda c, x, y: _sigmoid(c, x))
_unary(
    "Softsign",
    lambda c, x: c.xp.divide(x, c.xp.add(c.xp.absolute(x), 1)),
    lambda c, x, y: c.xp.divide(1, c.xp.square(c.xp.add(c.xp.absolute(x), 1))),
)
_unary(
    "LeakyRelu",
    lambda c, x: c.xp.multiply(x, _leak(c, x, c.get("alpha", 0.01))),
    lambda c, x, y: _leak(c, x, c.get("alpha", 0.01)),
)
_unary(
    "Elu",
    lambda c, x: _exponential(c, x, c.get("alpha", 1.0)),
    lambda c, x, y: _elu_slope(c, x, y, c.get("alpha", 1.0)),
)
_unary(
    "Celu",
    lambda c, x: _exponential(c, x, c.get("alpha", 1.0), 1 / c.get("alpha", 1.0)),
    lambda c, x, y: _elu_slope(c, x, y, c.get("alpha", 1.0), 1 / c.get("alpha", 1.0)),
)
_unary(
    "Selu",
    lambda c, x: _exponential(c, x, c.get("alpha", _SELU[0]) * c.get("gamma", _SELU[1]), 1.0, c.get("gamma", _SELU[1])),
    lambda c, x, y: _elu_slope(
        c, x, y, c.get("alpha", _SELU[0]) * c.get("gamma", _SELU[1]), 1.0, c.get("gamma", _SELU[1])
    ),
)
_unary(
    "HardSigmoid",
    lambda c, x: _clipped(c, x, c.get("alpha", 0.2), c.get("beta", 0.5)),
    lambda c, x, y: c.xp.multiply(_inside(c, y), c.get("alpha", 0.2)),
)
_unary("HardSwish", lambda c, x: c.xp.multiply(x, _clipped(c, x, 1 / 6, 0.5)), _hard_swish_slope)
_unary("Mish", lambda c, x: c.xp.multiply(x, c.xp.tanh(_softplus(c, x))), _mish_slope)
_unary("Swish", lambda c, x: c.xp.multiply(x, _sigmoid(c, c.xp.multiply(x, c.get("alpha", 1.0)))), _swish_slope)
_unary("Gelu", _gelu, _gelu_slope)
_unary(
    "ThresholdedRelu",
    lambda c, x: c.xp.multiply(x, _mask(c, c.xp.greater(x, c.get("alpha", 1.0)), x)),
    lambda c, x, y: _mask(c, c.xp.greater(x, c.get("alpha", 1.0)), x),
)


# --- two arrays -------------------------------------------------------------------------------------------------------


def _aligned(call: Call, a: Array, b: Array) -> Array:
    """Return b as operators before version 7 align it: by the attribute `axis`, not at the end."""
    if call.version < 7 and call.get("broadcast") and call.get("axis") is not None:
        axis = call.get("axis") % max(1, a.ndim)
        return b.reshape(*b.shape, *(1,) * (a.ndim - axis - b.ndim))
    return b


def _binary(
    name: str,
    apply: Callable[[Call, Array, Array], Array],
    slopes: Callable[[Call, Array, Array, Array, Array], tuple[Array, Array]] | None,
) -> None:
    """Add y = apply(a, b); `slopes` gives both gradients of dy, of the result's shape."""

    def function(call: Call, a: Array, b: Array) -> Results:
        b_shape = tuple(b.shape)
        b = _aligned(call, a, b)
        y = apply(call, a, b)

        def backward(dy: Array) -> tuple[Array | None, ...]:
            if slopes is None:
                return None, None
            da, db = slopes(call, a, b, y, dy)
            return unbroadcast(call, da, tuple(a.shape)), unbroadcast(call, db, tuple(b.shape)).reshape(b_shape)

        return y, backward

    operator(name)(function)


def _divide(call: Call, a: Array, b: Array) -> Array:
    xp = call.xp
    if is_float(a):
        return xp.divide(a, b)
    if a.dtype.kind == "u":
        return xp.floor_divide(a, b)
    size = xp.floor_divide(xp.absolute(a), xp.absolute(b))  # ONNX rounds to 0
    return xp.multiply(size, xp.multiply(xp.sign(a), xp.sign(b)))


def _power(call: Call, a: Array, b: Array) -> Array:
    y = call.xp.power(a, b)
    return y if y.dtype == a.dtype else y.astype(a.dtype)


def _power_slopes(call: Call, a: Array, b: Array, y: Array, dy: Array) -> tuple[Array, Array]:
    xp = call.xp
    da = xp.multiply(dy, xp.multiply(b, xp.power(a, xp.subtract(b, 1)))).astype(dy.dtype)
    logarithm = xp.log(xp.where(xp.greater(a, 0), a, xp.ones_like(a)))
    return da, xp.multiply(dy, xp.multiply(y, logarithm))


def _prelu(call: Call, x: Array, slope: Array) -> Array:
    if call.version < 7 and slope.ndim == 1 and slope.shape[0] > 1:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
    return call.xp.where(call.xp.less(x, 0), call.xp.multiply(x, slope), x)


def _prelu_slopes(call: Call, x: Array, slope: Array, y: Array, dy: Array) -> tuple[Array, Array]:
    xp = call.xp
    below = _mask(call, xp.less(x, 0), x)
    dx = xp.multiply(dy, xp.add(xp.multiply(below, xp.subtract(slope, 1)), 1))
    return dx, xp.multiply(dy, xp.multiply(x, below))


_binary("Add", lambda c, a, b: c.xp.add(a, b), lambda c, a, b, y, dy: (dy, dy))
_binary("Sub", lambda c, a, b: c.xp.subtract(a, b), lambda c, a, b, y, dy: (dy, c.xp.negative(dy)))
_binary(
    "Mul",
    lambda c, a, b: c.xp.multiply(a, b),
    lambda c, a, b, y, dy: (c.xp.multiply(dy, b), c.xp.multiply(dy, a)),
)
_binary(
    "Div",
    _divide,
    lambda c, a, b, y, dy: (c.xp.divide(dy, b), c.xp.negative(c.xp.multiply(dy, c.xp.divide(y, b)))),
)
_binary("Pow", _power, _power_slopes)
_binary("PRelu", _prelu, _prelu_slopes)
_binary("Equal", lambda c, a, b: c.xp.equal(a, b), None)
_binary("Greater", lambda c, a, b: c.xp.greater(a, b), None)
_binary("GreaterOrEqual", lambda c, a, b: c.xp.greater_equal(a, b), None)
_binary("Less", lambda c, a, b: c.xp.less(a, b), None)
_binary("LessOrEqual", lambda c, a, b: c.xp.less_equal(a, b), None)
_binary("And", lambda c, a, b: c.xp.logical_and(a, b), None)
_binary("Or", lambda c, a, b: c.xp.logical_or(a, b), None)


@operator("Where")
def _where(call: Call, condition: Array, a: Array, b: Array) -> Results:
    xp = call.xp

    def backward(dy: Array) -> tuple[Any, ...]:
        zero = xp.zeros_like(dy)
        da, db = xp.where(condition, dy, zero), xp.where(condition, zero, dy)
        return None, unbroadcast(call, da, a.shape), unbroadcast(call, db, b.shape)

    return xp.where(condition, a, b), backward


def _many(
    name: str, join: Callable[[Any, Array, Array], Array], gives: Callable[[Call, Array, Array, int], Array]
) -> None:
    """Add y = join of any number of arrays; `gives` says how much of dy each of them takes."""

    def function(call: Call, *arrays: Array) -> Results:
        if not arrays:
            raise wrong("expected one input or more, got none")
        y = functools.reduce(lambda a, b: join(call.xp, a, b), arrays)
        count = len(arrays)
        if name == "Mean":
            y = call.xp.divide(y, count).astype(y.dtype)

        def backward(dy: Array) -> tuple[Array, ...]:
            return tuple(
                unbroadcast(call, call.xp.multiply(dy, gives(call, each, y, count)), each.shape) for each in arrays
            )

        return y, backward

    operator(name)(function)


def _winner(call: Call, x: Array, y: Array, count: int) -> Array:
    return call.xp.equal(x, y).astype(y.dtype)


_many("Sum", lambda xp, a, b: xp.add(a, b), lambda c, x, y, n: c.xp.ones_like(y))
_many("Mean", lambda xp, a, b: xp.add(a, b), lambda c, x, y, n: c.xp.full_like(y, 1 / n))
_many("Max", lambda xp, a, b: xp.maximum(a, b), _winner)
_many("Min", lambda xp, a, b: xp.minimum(a, b), _winner)


@operator("Clip", host=(1, 2))
def _clip(call: Call, x: Array, low: Any = None, high: Any = None) -> Results:
    if call.version < 11:
        low, high = call.get("min"), call.get("max")
    xp, y = call.xp, x
    low, high = (None if each is None else np.asarray(each).item() for each in (low, high))
    if low is not None:
        y = xp.maximum(y, low)
    if high is not None:
        y = xp.minimum(y, high)

    def backward(dy: Array) -> tuple[Any, ...]:
        return xp.multiply(dy, xp.equal(x, y).astype(dy.dtype)), None, None

    return y, backward


TYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
         11: "float64", 12: "uint32", 13: "uint64"}  # fmt: skip


@operator("Cast")
def _cast(call: Call, x: Array) -> Results:
    kind = TYPES.get(call.get("to", 0))
    if kind is None:
        raise wrong(f"expected a type that NumPy has, got number {call.get('to')}")
    y = x.astype(kind)
    return y, lambda dy: (dy.astype(x.dtype) if is_float(x) and is_float(y) else None,)
