"""Comparing arrays as strictly as a library over two backends needs: backend, shape and dtype before values."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.backend import backend_of
from xpcnn.testing.numerical import to_host


def default_tolerance(dtype: Any) -> float:
    """Return eps**(3/4) of a floating dtype (1e-5, 2e-12 and 6e-3 for float32, float64 and float16), 0 for others.

    Sums of a few thousand products lose about sqrt(n) * eps, well below it; a result computed in the next smaller
    dtype, or a wrong entry, is well above.
    """
    return float(np.finfo(dtype).eps) ** 0.75 if np.dtype(dtype).kind in "fc" else 0.0


def assert_close(
    actual: Any,
    expected: Any,
    *,
    tolerance: float | None = None,
    terms: float = 0.0,
    same_backend: bool = True,
    same_dtype: bool = True,
) -> None:
    """Check that two arrays are of one backend, shape and dtype, and then that their values agree.

    Parameters
    ----------
    actual, expected : arrays of any backend
    tolerance : float, optional
        Allowed |actual - expected| as a share of the largest finite |expected| of the array; the dtype decides
        (`default_tolerance`). nan equals nan, and an infinity the same infinity.
    terms : float
        The largest |term| of the sums that the array holds, where they may cancel: rounding goes by the terms.
    same_backend, same_dtype : bool
        Pass False to compare with an oracle on the host, or in float64.

    Raises
    ------
    AssertionError
        With the first thing that differs, and for values with the worst place.

    Examples
    --------
    >>> from xpcnn import testing
    >>> testing.assert_close(np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-13]))
    """
    if same_backend:
        names = [backend_of(array).name for array in (actual, expected)]
        if names[0] != names[1]:
            raise AssertionError(f"backend: expected {names[1]}, got {names[0]}")
    if tuple(actual.shape) != tuple(expected.shape):
        raise AssertionError(f"shape: expected {tuple(expected.shape)}, got {tuple(actual.shape)}")
    if same_dtype and actual.dtype != expected.dtype:
        raise AssertionError(f"dtype: expected {expected.dtype}, got {actual.dtype}")
    left, right = to_host(actual), to_host(expected)
    if left.size == 0:
        return
    share = default_tolerance(left.dtype) if tolerance is None else tolerance
    finite = right[np.isfinite(right)]
    allowed = share * max(terms, float(np.max(np.abs(finite))) if finite.size else 1.0)
    with np.errstate(invalid="ignore"):  # inf - inf
        error = np.array(np.abs(left.astype(np.float64) - right.astype(np.float64)))
    error[(left == right) | (np.isnan(left) & np.isnan(right))] = 0.0
    error[np.isnan(error)] = np.inf
    if not np.all(error <= allowed):
        worst = np.unravel_index(np.argmax(error), error.shape)
        raise AssertionError(
            f"values: {int(np.sum(error > allowed))} of {error.size} entries are further apart than {allowed:.3g}; "
            f"worst at {tuple(map(int, worst))}: expected {right[worst]!r}, got {left[worst]!r}"
        )
