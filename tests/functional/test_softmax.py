import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.checks import agrees
from tests.functional.strategies import dtypes, lay_out, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.testing import numerical_gradient

NAMES = ["softmax", "log_softmax"]


def find(module, name):
    return getattr(module, name), getattr(module, f"{name}_backward")


@pytest.mark.parametrize("name", NAMES)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    axis=st.integers(-4, 3),
    layout=layouts,
    dtype=dtypes,
    seed=seeds,
)
def test_softmax_agrees_with_the_loops(backend, name, shape, axis, layout, dtype, seed):
    axis = axis % len(shape)
    rng = np.random.default_rng(seed)
    x, dy = values(rng, shape, dtype) * 3, values(rng, shape, dtype)
    expected = find(R, name)[0](x, axis)
    device, upstream = lay_out(backend, x, layout), lay_out(backend, dy, layout)
    y = find(F, name)[0](device, axis)
    agrees(backend, y, expected, dtype)
    dx = find(F, name)[1](upstream, y, axis)
    limit = 1e-5 if dtype == "float32" else 1e-13
    assert dx.dtype == dtype
    assert np.max(np.abs(backend.to_numpy(dx) - find(R, name)[1](dy, expected, axis))) < limit * 4
    assert np.array_equal(backend.to_numpy(device), x)
    assert np.array_equal(backend.to_numpy(upstream), dy)


@pytest.mark.parametrize("name", NAMES)
def test_backward_is_the_derivative(backend, rng, name):
    forward, backward = find(F, name)
    x = values(rng, (3, 4))
    y = forward(backend.asarray(x))
    dy = values(rng, y.shape)
    dx = backend.to_numpy(backward(backend.asarray(dy), y))
    numerical = numerical_gradient(lambda _: np.sum(dy * backend.to_numpy(forward(backend.asarray(x)))), x)
    assert np.allclose(dx, numerical, rtol=0, atol=1e-9)


def test_nothing_overflows(backend):
    x = backend.asarray(np.array([[1e4, 0.0, -1e4], [3e38, 3e38, 0.0]], "float32"))
    assert backend.to_numpy(F.softmax(x)).tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    y = backend.to_numpy(F.log_softmax(x))
    assert y[0].tolist() == [0.0, -1e4, -2e4]
    assert np.all(np.isfinite(y))


@pytest.mark.parametrize("name", NAMES)
def test_softmax_refuses_what_does_not_fit(backend, name):
    forward, backward = find(F, name)
    with pytest.raises(DTypeError, match="x: expected a floating type such as float32, got int64"):
        forward(backend.zeros((2, 3), "int64"))
    for shape, axis in (((2, 3), 2), ((2, 3), -3), ((2, 0), 1), ((2, 3), None)):
        with pytest.raises(ShapeError, match=rf"axis: expected an axis of x that is not empty, got {axis} for shape"):
            forward(backend.zeros(shape, "float32"), axis)
    y = forward(backend.zeros((2, 3), "float32"))
    with pytest.raises(ShapeError, match=r"dy: expected shape \(2, 3\), got \(3, 2\)"):
        backward(y.T, y)
    with pytest.raises(DTypeError, match="dy: expected dtype float32, got float64"):
        backward(y.astype("float64"), y)
