import numpy as np
import pytest

from xpcnn import nn
from xpcnn.errors import DTypeError, ShapeError


def test_starts_with_a_gradient_of_zero(backend):
    parameter = nn.Parameter(backend.asarray(np.ones((2, 3), "float32")), "w")
    assert backend.owns(parameter.grad)
    assert parameter.grad.shape == parameter.data.shape == parameter.shape == (2, 3)
    assert parameter.grad.dtype == "float32"
    assert parameter.size == 6
    assert not np.any(backend.to_numpy(parameter.grad))
    assert repr(parameter) == "Parameter('w', shape=(2, 3), dtype=float32)"


def test_zero_grad_is_seen_whenever_the_gradient_is_read(backend):
    parameter = nn.Parameter(backend.asarray(np.ones(3, "float32")))
    ones = backend.asarray(np.ones(3, "float32"))
    parameter.accumulate(ones)
    held = parameter.grad
    parameter.zero_grad()
    assert backend.to_numpy(parameter.grad).tolist() == [0, 0, 0]
    parameter.accumulate(ones)
    parameter.accumulate(ones)
    assert backend.to_numpy(parameter.grad).tolist() == [2, 2, 2]
    assert held is parameter.grad
    assert backend.to_numpy(ones).tolist() == [1, 1, 1]


def test_takes_other_arrays_of_its_shape(backend):
    parameter = nn.Parameter(backend.asarray(np.ones(3, "float32")), "w")
    other = backend.asarray(np.zeros(3, "float32"))
    parameter.data = other
    parameter.grad = other
    assert parameter.data is other
    with pytest.raises(ShapeError, match=r"w.data: expected shape \(3,\), got \(4,\)"):
        parameter.data = backend.zeros((4,), "float32")
    with pytest.raises(ShapeError, match=r"w.grad: expected shape \(3,\), got \(1, 3\)"):
        parameter.grad = backend.zeros((1, 3), "float32")
    with pytest.raises(DTypeError, match=r"array: expected an array of .*, got list"):
        parameter.data = [1.0, 2.0, 3.0]


def test_is_floating(backend):
    with pytest.raises(DTypeError, match="data: expected a floating type, got int64"):
        nn.Parameter(backend.zeros((3,), "int64"))
    with pytest.raises(DTypeError, match="got list"):
        nn.Parameter([1.0])


def test_numpy_takes_the_values(backend):
    values = np.arange(6, dtype="float32").reshape(2, 3)
    parameter = nn.Parameter(backend.asarray(values), "w")
    for array in (np.asarray(parameter), np.array(parameter), np.asarray(parameter, "float64")):
        np.testing.assert_array_equal(array, values)
    assert np.asarray(parameter).dtype == "float32"
    assert np.asarray(parameter, "float64").dtype == "float64"
    on_host = isinstance(parameter.data, np.ndarray)
    assert np.shares_memory(np.asarray(parameter), parameter.data) if on_host else True
    assert not (on_host and np.shares_memory(np.array(parameter), parameter.data))
    assert np.asarray(parameter, copy=False) is parameter.data if on_host else True
    with pytest.raises(ValueError, match="copy"):
        np.asarray(parameter, None if not on_host else "float64", copy=False)
