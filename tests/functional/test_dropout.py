import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.strategies import dtypes, lay_out, layouts, seeds, values
from xpcnn import functional as F
from xpcnn import random
from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.functional import reference as R

shapes = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


def mixed(h):
    """MurmurHash3's 32-bit finaliser in whole numbers."""
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def documented_mask(shape, p, key):
    """The mask of the module's docstring, element by element in batch-last order."""
    stream = mixed(key * 0x9E3779B9 % 2**32)
    memory = (*shape[1:], shape[0])
    kept = np.array([mixed(i ^ stream) >= p * 2**32 for i in range(int(np.prod(shape)))]).reshape(memory)
    return np.moveaxis(kept, -1, 0)


@given(shape=shapes, p=st.sampled_from([0.1, 0.5, 0.9]), layout=layouts, dtype=dtypes, seed=seeds)
def test_dropout_agrees_with_the_loops_and_its_documented_mask(backend, shape, p, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    x, dy = values(rng, shape, dtype), values(rng, shape, dtype)
    random.manual_seed(seed)
    mask = documented_mask(shape, p, random.draw_key())
    random.manual_seed(seed)
    device = lay_out(backend, x, layout)
    y, cache = F.dropout(device, p, training=True)
    dx = F.dropout_backward(lay_out(backend, dy, layout), cache)
    y_expected, cache_expected = R.dropout(x, p, training=True, mask=mask)
    for actual, expected in ((y, y_expected), (dx, R.dropout_backward(dy, cache_expected))):
        assert actual.dtype == dtype
        assert np.allclose(backend.to_numpy(actual), expected, rtol=1e-6)
    assert np.array_equal(backend.to_numpy(device), x)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_p(backend, p):
    x = backend.asarray(np.ones((100, 200), "float32"))
    y = backend.to_numpy(F.dropout(x, p, training=True)[0])
    assert abs(np.mean(y == 0) - p) < 4 * np.sqrt(p * (1 - p) / x.size) + 1e-9
    assert np.allclose(y[y != 0], 1 / (1 - p))
    assert abs(np.mean(y[:, ::2] == 0) - p) < 6 * np.sqrt(p * (1 - p) / x.size) + 1e-9


def test_masks_of_two_calls_share_nothing(backend):
    x = backend.asarray(np.ones((100, 200), "float32"))
    first, second = (backend.to_numpy(F.dropout(x, 0.5, training=True)[0]) == 0 for _ in range(2))
    assert abs(np.mean(first == second) - 0.5) < 4 * 0.5 / np.sqrt(x.size)


def test_masks_do_not_depend_on_slabs_or_backend(backend, monkeypatch):
    ones = np.ones((3, 4, 2, 5), "float32")

    def draw(active):
        random.manual_seed(7)
        return active.to_numpy(F.dropout(active.asarray(ones), 0.5, training=True)[0])

    whole = draw(backend)
    monkeypatch.setattr(backend, "slab_bytes", 1)
    assert np.array_equal(draw(backend), whole)
    with use_backend("numpy") as numpy_backend:
        assert np.array_equal(draw(numpy_backend), whole)


def test_evaluation_changes_nothing_and_draws_nothing(backend, rng):
    x = backend.asarray(values(rng, (3, 4), "float32"))
    before = random.get_state()
    y, cache = F.dropout(x, 0.5, training=False)
    assert random.get_state() == before
    assert np.array_equal(backend.to_numpy(y), backend.to_numpy(x))
    assert np.array_equal(backend.to_numpy(F.dropout_backward(x, cache)), backend.to_numpy(x))


def test_everything_may_be_dropped(backend):
    x = backend.asarray(np.full((3, 4), 2.0, "float32"))
    y, cache = F.dropout(x, 1.0, training=True)
    assert not backend.to_numpy(y).any()
    assert not backend.to_numpy(F.dropout_backward(x, cache)).any()


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan"), "half", None, True])
def test_dropout_refuses_a_share_that_is_none(backend, p):
    with pytest.raises(ConfigError, match="p: expected the share dropped, from 0 to 1, got"):
        F.dropout(backend.zeros((2, 3), "float32"), p, training=True)


def test_dropout_refuses_arrays_that_do_not_fit(backend):
    with pytest.raises(DTypeError, match="x: expected a floating type such as float32, got int64"):
        F.dropout(backend.zeros((2, 3), "int64"), training=True)
    _, cache = F.dropout(backend.zeros((2, 3), "float32"), training=True)
    with pytest.raises(ShapeError, match=r"dy: expected shape \(2, 3\), got \(3, 2\)"):
        F.dropout_backward(backend.zeros((3, 2), "float32"), cache)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5), (2, 3, 2, 2, 3)])
def test_dropout_of_any_shape(backend, shape):
    x = backend.xp.ones(shape, dtype="float32")
    y, cache = F.dropout(x, 0.5, training=True)
    assert y.shape == shape
    host = backend.to_numpy(y)
    assert np.all((host == 0) | (host == 2))
    assert np.array_equal(backend.to_numpy(F.dropout_backward(x, cache)), host)


@given(shape=st.tuples(*[st.integers(1, 4)] * 4), p=st.sampled_from([0.0, 0.3, 0.7, 1.0]), layout=layouts, seed=seeds)
def test_dropout2d_drops_whole_channels_by_the_documented_mask(backend, shape, p, layout, seed):
    rng = np.random.default_rng(seed)
    x, dy = values(rng, shape), values(rng, shape)
    x[0, 0, 0, 0] = np.inf
    random.manual_seed(seed)
    mask = documented_mask(shape[:2], p, random.draw_key()) if 0 < p < 1 else np.full(shape[:2], p == 0)
    random.manual_seed(seed)
    y, cache = F.dropout2d(lay_out(backend, x, layout), p, training=True)
    dx = F.dropout2d_backward(lay_out(backend, dy, layout), cache)
    factor = np.where(mask, 1 / (1 - p) if p < 1 else 0, 0)[:, :, None, None]
    with np.errstate(invalid="ignore"):
        assert np.allclose(backend.to_numpy(y), np.where(factor == 0, 0, x * factor))
        assert np.allclose(backend.to_numpy(dx), dy * factor)
    y_eval, _ = F.dropout2d(backend.asarray(x), p, training=False)
    assert np.array_equal(backend.to_numpy(y_eval), x)


def test_dropout2d_takes_images_alone(backend):
    with pytest.raises(ShapeError, match="x: expected shape"):
        F.dropout2d(backend.zeros((3, 4), "float32"), training=True)


def test_dropout2d_in_small_slabs_has_the_same_masks(backend, rng, monkeypatch):
    x = backend.asarray(values(rng, (3, 5, 2, 2), "float32"))
    random.manual_seed(4)
    whole = backend.to_numpy(F.dropout2d(x, training=True)[0]).copy()
    monkeypatch.setattr(backend, "slab_bytes", 1)
    random.manual_seed(4)
    assert np.array_equal(backend.to_numpy(F.dropout2d(x, training=True)[0]), whole)
