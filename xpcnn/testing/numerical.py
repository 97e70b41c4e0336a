"""Derivatives by differences, and how far two arrays are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpcnn.backend import backend_of
from xpcnn.errors import DTypeError, ShapeError

# The central difference of a function of size 1 is best at the cube root of float64's 2.2e-16; see Press et al.,
# Numerical Recipes, section 5.7.
STEP = 1e-5
RELATIVE_ERROR_FLOOR = 1e-8  # of the exercise notebook: below it an error counts as absolute


def to_host(array: Any) -> NDArray[Any]:
    """Return a host copy of an array of any backend, of a scalar or of a list."""
    if isinstance(array, np.ndarray | np.generic | int | float | list | tuple):
        return np.array(array)
    host: NDArray[Any] = backend_of(array).to_numpy(array)
    return host


def numerical_gradient(f: Callable[[Any], Any], array: Any, h: float = STEP) -> NDArray[np.float64]:
    """Return d f / d array by central differences, (f(array + h) - f(array - h)) / 2h for one entry after the other.

    Parameters
    ----------
    f : callable
        Takes `array` and returns one number. It may ignore its argument and use the array where that lies, such as a
        parameter inside a model: `array` itself is changed and restored bit by bit, also when `f` raises.
    array : array of any backend, floating point
        Use float64; in float32 the difference keeps about three digits.
    h : float
        The step.

    Returns
    -------
    numpy.ndarray of float64, with the shape of `array`

    Raises
    ------
    DTypeError
        `array` is not floating point.
    ShapeError
        `f` returned more than one number.

    Examples
    --------
    >>> from xpcnn import testing
    >>> testing.numerical_gradient(lambda x: float((x**2).sum()), np.array([1.0, 2.0])).round(6)
    array([2., 4.])
    """
    original = to_host(array)
    if original.dtype.kind != "f":
        raise DTypeError(f"array: expected floating point, got {original.dtype}; use array.astype('float64')")
    gradient = np.zeros(original.shape)
    for place in np.ndindex(original.shape):
        value = float(original[place])
        try:
            array[place] = value + h
            above = _one_number(f(array))
            array[place] = value - h
            below = _one_number(f(array))
        finally:
            array[place] = value
        step = float(original.dtype.type(value + h)) - float(original.dtype.type(value - h))  # as rounded in the array
        gradient[place] = (above - below) / step
    return gradient


def relative_error(a: Any, b: Any) -> float:
    """Return the largest |a - b| / max(1e-8, |a| + |b|) over all entries, the exercise notebook's measure.

    Two arrays of any backend, or numbers; 0 for empty arrays, nan where either has nan.

    Raises
    ------
    ShapeError
        The shapes differ.

    Examples
    --------
    >>> from xpcnn import testing
    >>> testing.relative_error(np.array([1.0]), np.array([1.1])) < 0.1
    True
    """
    left, right = to_host(a).astype(np.float64), to_host(b).astype(np.float64)
    if left.shape != right.shape:
        raise ShapeError(f"b: expected the shape of a {left.shape}, got {right.shape}")
    if left.size == 0:
        return 0.0
    return float(np.max(np.abs(left - right) / np.maximum(RELATIVE_ERROR_FLOOR, np.abs(left) + np.abs(right))))


def _one_number(value: Any) -> float:
    number = to_host(value)
    if number.size != 1:
        raise ShapeError(f"f: expected one number, got an array of shape {number.shape}; sum it")
    return float(number.reshape(()))
