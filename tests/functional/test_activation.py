import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.checks import check_op
from tests.functional.strategies import dtypes, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.functional.special import erfc
from xpcnn.testing import numerical_gradient

NAMES = ["relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "hardswish", "elu"]
shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
)


def find(module, name):
    return getattr(module, name), getattr(module, f"{name}_backward")


@pytest.mark.parametrize("name", NAMES)
@given(shape=shapes, scale=st.sampled_from([0.1, 1.0, 20.0]), layout=layouts, dtype=dtypes, seed=seeds)
def test_activations_agree_with_the_loops(backend, name, shape, scale, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    x = (values(rng, shape) * scale).astype(dtype)
    x[(0,) * min(2, x.ndim)] = 0.0
    x[(-1,) * min(2, x.ndim)] = 1.0  # errors are measured beside the largest result and gradient
    options = {"leaky_relu": {"negative_slope": 0.2}, "elu": {"alpha": 0.7}}.get(name, {})
    check_op(backend, find(F, name), find(R, name), [x], layout=layout, rng=rng, **options)


@pytest.mark.parametrize("name", NAMES)
def test_activations_in_small_slabs(backend, rng, monkeypatch, name):
    monkeypatch.setattr(backend, "slab_bytes", 1)
    check_op(backend, find(F, name), find(R, name), [values(rng, (2, 5, 3, 3))], rng=rng)


@pytest.mark.parametrize("name", NAMES)
def test_backward_is_the_derivative(backend, rng, name):
    forward, backward = find(F, name)
    x = values(rng, (4, 5))
    y, cache = forward(backend.asarray(x))
    dy = values(rng, y.shape)
    dx = backend.to_numpy(backward(backend.asarray(dy), cache))
    numerical = numerical_gradient(lambda _: np.sum(dy * backend.to_numpy(forward(backend.asarray(x))[0])), x)
    assert np.allclose(dx, numerical, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_values(backend, name, dtype):
    with backend.errstate():
        x = np.array([[-np.inf, -1e30, -100.0, 0.0, 100.0, 1e30]], dtype)
        y, cache = find(F, name)[0](backend.asarray(x))
        dx = backend.to_numpy(find(F, name)[1](backend.asarray(np.ones_like(x)), cache))
    y = backend.to_numpy(y)
    expected = {
        "relu": [0.0, 0.0, 0.0, 0.0, 100.0, 1e30],
        "leaky_relu": [-np.inf, -1e28, -1.0, 0.0, 100.0, 1e30],
        "sigmoid": [0.0, 0.0, 0.0, 0.5, 1.0, 1.0],
        "tanh": [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0],
        "gelu": [np.nan, 0.0, 0.0, 0.0, 100.0, 1e30],
        "silu": [np.nan, 0.0, -3.72e-42, 0.0, 100.0, 1e30],
        "hardswish": [np.nan, 0.0, 0.0, 0.0, 100.0, 1e30],
        "elu": [-1.0, -1.0, -1.0, 0.0, 100.0, 1e30],
    }[name]
    finite = slice(1, None) if np.isnan(expected[0]) else slice(None)  # -inf * 0 is nan in PyTorch too
    assert np.allclose(y[0, finite], np.array(expected, dtype)[finite], rtol=1e-6, atol=1e-30)
    assert np.all(np.isfinite(dx[0, 1:]))


def test_rectifiers_pass_positive_values_unchanged(backend, rng):
    x = values(rng, (50, 40), "float32")
    for y, _ in (F.relu(backend.asarray(x)), F.leaky_relu(backend.asarray(x)), F.leaky_relu(backend.asarray(x), 0.3)):
        assert np.array_equal(backend.to_numpy(y)[x > 0], x[x > 0])


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan(backend, name):
    y, _ = find(F, name)[0](backend.asarray(np.array([[np.nan, 1.0]], "float32")))
    assert np.isnan(backend.to_numpy(y)).tolist() == [[True, False]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erfc_is_right_to_rounding(backend, dtype):
    x = np.concatenate([np.linspace(-7, 30, 8001), [0.46875, 4.0, -0.0, 1e-30]]).astype(dtype)
    expected = np.array([math.erfc(v) for v in x.astype(float)])
    actual = backend.to_numpy(erfc(backend, backend.asarray(x)))
    assert actual.dtype == np.dtype(dtype)
    bound = (3 + x.astype(float) ** 2) * np.finfo(dtype).eps * expected + np.finfo(dtype).tiny
    assert np.all(np.abs(actual - expected) <= bound)


@pytest.mark.parametrize("name", NAMES)
def test_activations_refuse_what_does_not_fit(backend, name):
    forward, backward = find(F, name)
    with pytest.raises(DTypeError, match="x: expected a floating type such as float32, got int64"):
        forward(backend.zeros((2, 3), "int64"))
    y, cache = forward(backend.zeros((2, 3), "float32"))
    with pytest.raises(ShapeError, match=r"dy: expected shape \(2, 3\), got \(3, 2\)"):
        backward(y.T, cache)
    with pytest.raises(DTypeError, match="dy: expected dtype float32, got float64"):
        backward(y.astype("float64"), cache)


def test_elu_refuses_an_alpha_that_is_no_number(backend):
    with pytest.raises(ConfigError, match="alpha: expected a finite number, got None"):
        F.elu(backend.zeros((2, 3), "float32"), None)


def test_leaky_relu_refuses_a_slope_that_is_no_number(backend):
    with pytest.raises(ConfigError, match="negative_slope: expected a finite number, got nan"):
        F.leaky_relu(backend.zeros((2, 3), "float32"), float("nan"))
