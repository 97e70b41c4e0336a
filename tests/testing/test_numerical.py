import numpy as np
import pytest

from xpcnn import testing
from xpcnn.errors import DTypeError, ShapeError


def test_numerical_gradient_of_a_polynomial(backend):
    x = backend.asarray(np.array([[1.0, -2.0], [0.5, 3.0]]))
    weights = np.array([[1.0, 2.0], [3.0, 4.0]])
    gradient = testing.numerical_gradient(lambda a: np.sum(weights * backend.to_numpy(a) ** 3), x)
    assert np.allclose(gradient, 3 * weights * backend.to_numpy(x) ** 2, rtol=1e-8)


def test_numerical_gradient_takes_a_number_of_the_backend(backend):
    x = backend.asarray(np.array([1.0, -2.0]))
    assert np.allclose(testing.numerical_gradient(lambda a: (a * a).sum(), x), [2.0, -4.0])


def test_the_array_is_restored_bit_by_bit_also_when_the_function_raises(rng):
    x = rng.normal(size=(3, 4)).T
    before = x.copy()
    testing.numerical_gradient(lambda a: np.sum(a), x, 1e-3)
    assert np.array_equal(x, before)

    def fails(a):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        testing.numerical_gradient(fails, x)
    assert np.array_equal(x, before)


def test_numerical_gradient_may_ignore_its_argument(rng):
    """The exercise notebook's way: the function reads the array where it lies."""
    weight, x = rng.normal(size=(2, 3)), rng.normal(size=3)
    assert np.allclose(testing.numerical_gradient(lambda _: np.sum(weight @ x), weight), np.tile(x, (2, 1)))


def test_the_step_is_taken_as_the_array_rounds_it():
    x = np.array([1000.0], np.float32)
    assert testing.numerical_gradient(lambda a: 2.0 * float(a[0]), x, 1e-3)[0] == 2.0


def test_numerical_gradient_refuses_what_has_none():
    with pytest.raises(DTypeError, match="array: expected floating point, got int64"):
        testing.numerical_gradient(np.sum, np.arange(3))
    with pytest.raises(ShapeError, match=r"f: expected one number, got an array of shape \(3,\); sum it"):
        testing.numerical_gradient(lambda a: a, np.ones(3))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 0.0], [1.0, 1e-9], 0.1),  # below 1e-8 an error counts as absolute
        ([3.0], [1.0], 0.5),
        ([1.0], [-1.0], 1.0),
        ([], [], 0.0),
        (2.0, 2.0, 0.0),
    ],
)
def test_relative_error_is_the_exercise_notebooks(a, b, expected):
    assert testing.relative_error(np.array(a), np.array(b)) == pytest.approx(expected)


def test_relative_error_of_device_arrays_of_nan_and_of_other_shapes(backend):
    x = backend.asarray(np.array([1.0, 3.0]))
    assert testing.relative_error(x, np.array([1.0, 1.0])) == 0.5
    assert np.isnan(testing.relative_error(np.array([np.nan]), np.array([1.0])))
    with pytest.raises(ShapeError, match=r"b: expected the shape of a \(2,\), got \(3,\)"):
        testing.relative_error(x, np.ones(3))
