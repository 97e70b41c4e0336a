import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.checks import agrees
from tests.functional.strategies import dtypes, lay_out, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.testing import numerical_gradient

shapes = st.one_of(
    st.tuples(st.integers(2, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.integers(1, 3)),
)


def draw(rng, shape, dtype):
    channels = (shape[1],)
    x = values(rng, shape, dtype) * 2 + 1
    statistics = [values(rng, channels, dtype), rng.uniform(0.5, 2.0, channels).astype(dtype)]
    return [x, values(rng, channels, dtype), values(rng, channels, dtype)], statistics


def check(backend, shape, training, layout, dtype, rng, **options):
    arrays, statistics = draw(rng, shape, dtype)
    expected_statistics = [array.astype("float64") for array in statistics]
    y_expected, cache_expected = R.batch_norm(*arrays, *expected_statistics, training=training, **options)
    dy = values(rng, shape, dtype)
    gradients_expected = R.batch_norm_backward(dy, cache_expected)

    inputs = [lay_out(backend, array, layout) for array in [*arrays, dy]]
    running = [backend.asarray(array.copy()) for array in statistics]
    y, cache = F.batch_norm(*inputs[:3], *running, training=training, **options)
    for array in running:
        array[...] = array + 1.0  # another batch may move them before the backward of this one
    gradients = F.batch_norm_backward(inputs[3], cache)
    for array, expected in zip(running, expected_statistics, strict=True):
        agrees(backend, array, expected + 1.0, dtype)
    agrees(backend, y, y_expected, dtype)
    # dx is a small difference of larger numbers: allow what they lose.
    scale = max(1.0, *(np.max(np.abs(g)) for g in gradients_expected))
    for gradient, expected in zip(gradients, gradients_expected, strict=True):
        assert backend.owns(gradient)
        assert gradient.dtype == dtype
        limit = (2e-5 if dtype == "float32" else 1e-11) * scale
        assert np.max(np.abs(backend.to_numpy(gradient) - expected)) < limit
    for device, host in zip(inputs, [*arrays, dy], strict=True):
        assert np.array_equal(backend.to_numpy(device), host)


@given(shape=shapes, training=st.booleans(), layout=layouts, dtype=dtypes, seed=seeds)
def test_batch_norm_agrees_with_the_loops(backend, shape, training, layout, dtype, seed):
    # With a generous eps the few values of a tiny batch keep their digits.
    check(backend, shape, training, layout, dtype, np.random.default_rng(seed), momentum=0.3, eps=0.1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(16, 3), (8, 3, 5, 4)])
def test_batch_norm_with_its_defaults(backend, rng, shape, training):
    check(backend, shape, training, "chwn", "float32", rng)


def test_batch_norm_in_small_slabs(backend, rng, monkeypatch):
    monkeypatch.setattr(backend, "slab_bytes", 1)
    check(backend, (4, 5, 3, 3), True, "nchw", "float64", rng)


def test_batch_norm_of_values_far_from_zero(backend, rng):
    x = (values(rng, (64, 2, 3, 3)) + 1000.0).astype("float32")
    ones, zeros = (backend.asarray(np.full(2, value, "float32")) for value in (1.0, 0.0))
    y, _ = F.batch_norm(backend.asarray(x), ones, zeros, backend.copy(zeros), backend.copy(ones), training=True)
    y = backend.to_numpy(y)
    assert np.allclose(y.mean(axis=(0, 2, 3)), 0.0, atol=1e-3)
    assert np.allclose(y.std(axis=(0, 2, 3)), 1.0, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 2, 3)])
def test_backward_is_the_derivative(backend, rng, shape, training):
    arrays, statistics = draw(rng, shape, "float64")

    def forward():
        running = [backend.asarray(array.copy()) for array in statistics]
        return F.batch_norm(*map(backend.asarray, arrays), *running, training=training)

    _, cache = forward()
    dy = values(rng, shape)
    gradients = F.batch_norm_backward(backend.asarray(dy), cache)
    for array, gradient in zip(arrays, gradients, strict=True):
        numerical = numerical_gradient(lambda _: np.sum(dy * backend.to_numpy(forward()[0])), array)
        assert np.allclose(backend.to_numpy(gradient), numerical, rtol=0, atol=1e-7)


def test_batch_norm_refuses_what_does_not_fit(backend):
    def norm(x, channels=3, dtype="float32", training=True, **replaced):
        names = ("gamma", "beta", "running_mean", "running_var")
        arrays = {name: backend.zeros((channels,), dtype) for name in names} | replaced
        return F.batch_norm(x, *arrays.values(), training=training)

    x = backend.zeros((2, 3, 2, 2), "float32")
    with pytest.raises(ShapeError, match=r"gamma: expected shape \(3,\), got \(4,\)"):
        norm(x, channels=4)
    with pytest.raises(ShapeError, match=r"running_var: expected shape \(3,\), got \(2,\)"):
        norm(x, running_var=backend.zeros((2,), "float32"))
    with pytest.raises(DTypeError, match="gamma: expected dtype float32, got float64"):
        norm(x, dtype="float64")
    with pytest.raises(DTypeError, match="x: expected a floating type such as float32, got int32"):
        norm(x.astype("int32"), dtype="int32")
    with pytest.raises(ShapeError, match=r"x: expected shape \(N, C, H, W\) or \(N, D\), got \(2, 3, 4\)"):
        norm(backend.zeros((2, 3, 4), "float32"))
    with pytest.raises(ShapeError, match=r"one value per channel in training, got shape \(1, 3\); use a larger batch"):
        norm(x[:1, :, 0, 0])
    with pytest.raises(ShapeError, match=r"one value per channel in training, got shape \(1, 3, 1, 1\)"):
        norm(x[:1, :, :1, :1])
    y, cache = norm(x[:1, :, :1, :1], training=False)
    with pytest.raises(ShapeError, match=r"dy: expected shape \(1, 3, 1, 1\), got \(2, 3, 2, 2\)"):
        F.batch_norm_backward(x, cache)
    with pytest.raises(DTypeError, match="dy: expected dtype float32, got float64"):
        F.batch_norm_backward(y.astype("float64"), cache)


def test_training_writes_to_no_read_only_statistics():
    """A replayed call would write through the lock."""
    x, ones = np.random.default_rng(0).normal(size=(5, 3)), np.ones(3)
    locked = np.zeros(3)
    locked.flags.writeable = False
    with pytest.raises(
        ConfigError, match="running_mean: expected an array that training may write to, got a read-only"
    ):
        F.batch_norm(x, ones, ones, locked, ones.copy(), training=True)
    F.batch_norm(x, ones, ones, locked, ones.copy(), training=False)


def test_a_function_counts_no_batches():
    ones = np.ones(3)
    with pytest.raises(ConfigError, match="momentum: expected a number from 0 to 1, got None; a layer counts batches"):
        F.batch_norm(np.ones((5, 3)), ones, ones, ones.copy(), ones.copy(), training=True, momentum=None)
