import numpy as np
import pytest

from xpcnn.testing import assert_close


def refuses(actual, expected, message, **options):
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, expected, **options)


def test_backend_shape_and_dtype_come_before_values(backend, rng):
    host = rng.normal(size=(2, 3)).astype("float32")
    device = backend.asarray(host.copy())
    assert_close(device, backend.asarray(host.copy()))
    refuses(device, backend.asarray(host.T.copy()), r"shape: expected \(3, 2\), got \(2, 3\)")
    refuses(device, backend.asarray(host.astype("float64")), "dtype: expected float64, got float32")
    assert_close(device, host.astype("float64"), same_backend=False, same_dtype=False)
    if backend.name != "numpy":
        refuses(device, host, f"backend: expected numpy, got {backend.name}")


def test_values_agree_to_the_digits_of_the_dtype():
    for dtype, near, far in (("float32", 5e-6, 5e-5), ("float64", 1e-12, 1e-10), ("float16", 3e-3, 3e-2)):
        x = np.array([0.0, -4.0], dtype)
        assert_close(x + np.array(4 * near, dtype), x)
        refuses(x + np.array(4 * far, dtype), x, "values: 2 of 2 entries are further apart")
    assert_close(np.array([1.1]), np.array([1.0]), tolerance=0.2)
    refuses(np.array([1.1]), np.array([1.0]), r"worst at \(0,\): expected np.float64\(1.0\)", tolerance=0.05)
    refuses(np.array([1.1]), np.array([1.0]), "values", tolerance=0.05, terms=1.5)
    assert_close(np.array([1.1]), np.array([1.0]), tolerance=0.05, terms=3.0)


def test_integers_and_booleans_must_be_equal():
    assert_close(np.array([1, 2]), np.array([1, 2]))
    refuses(np.array([1, 2]), np.array([1, 3]), "values: 1 of 2")
    refuses(np.array([True]), np.array([False]), "values")


def test_nan_equals_nan_and_infinity_the_same_infinity():
    x = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert_close(x, x.copy())
    refuses(x, np.array([0.0, np.inf, -np.inf, 1.0]), "values: 1 of 4")
    refuses(np.array([np.inf]), np.array([-np.inf]), "values: 1 of 1")
    refuses(np.array([0.0]), np.array([np.nan]), "values: 1 of 1")


def test_empty_and_zero_dimensional_arrays():
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)))
    assert_close(np.array(1.0), np.array(1.0))
    refuses(np.array(1.0), np.array(2.0), "values: 1 of 1")
