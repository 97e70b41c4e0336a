"""The complementary error function over any array module, for those that have none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array, Backend

# Rational approximations of W. J. Cody 1969, "Rational Chebyshev approximations for the error function",
# Mathematics of Computation 23: below 0.46875, up to 4, and beyond. Relative error under 6e-19.
_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_LARGE = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip


# Where erfc underflows in float64; float32's smallest number lies at 10.
_END = 27.5


def erfc(backend: Backend, x: Array) -> Array:
    """Return 1 - erf(x), any shape, floating: 1 + x^2 roundings of its value at most, down to the smallest number."""
    xp = backend.xp
    size = xp.absolute(x)
    low = xp.minimum(size, 0.46875)
    middle = xp.minimum(xp.maximum(size, 0.46875), 4.0)
    high = xp.minimum(xp.maximum(size, 4.0), _END)
    near = xp.subtract(1.0, xp.multiply(low, _ratio(xp, _SMALL, xp.multiply(low, low))))
    between = xp.multiply(_bell(xp, middle), _ratio(xp, _MIDDLE, middle))
    inverse = xp.divide(1.0, xp.multiply(high, high))
    rest = xp.subtract(1.0 / math.sqrt(math.pi), xp.multiply(inverse, _ratio(xp, _LARGE, inverse)))
    far = xp.divide(xp.multiply(_bell(xp, high), rest), high)
    outside = xp.where(xp.less_equal(size, 4.0), between, far)
    above = xp.where(xp.less_equal(size, 0.46875), near, outside)
    return xp.where(xp.less(x, 0), xp.subtract(2.0, above), above)


def _bell(xp: Any, x: Array) -> Array:
    return xp.exp(xp.negative(xp.multiply(x, x)))


def _ratio(xp: Any, coefficients: tuple[Sequence[float], Sequence[float]], x: Array) -> Array:
    above, below = (_polynomial(xp, side, x) for side in coefficients)
    return xp.divide(above, below)


def _polynomial(xp: Any, coefficients: Sequence[float], x: Array) -> Array:
    value = xp.add(xp.multiply(x, coefficients[0]), coefficients[1])
    for coefficient in coefficients[2:]:
        value = xp.add(xp.multiply(value, x), coefficient)
    return value


def erf(backend: Backend, x: Array) -> Array:
    """Return the error function of x, any shape, floating, to a few roundings of its value."""
    xp = backend.xp
    low = xp.maximum(xp.minimum(x, 0.46875), -0.46875)
    near = xp.multiply(low, _ratio(xp, _SMALL, xp.multiply(low, low)))
    far = xp.multiply(xp.sign(x), xp.subtract(1.0, erfc(backend, xp.absolute(x))))
    return xp.where(xp.less_equal(xp.absolute(x), 0.46875), near, far)
