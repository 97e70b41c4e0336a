import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.checks import check_op
from tests.functional.strategies import dtypes, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.functional import reference as R

LAYER = (F.layer_norm, F.layer_norm_backward), (R.layer_norm, R.layer_norm_backward)
GROUP = (F.group_norm, F.group_norm_backward), (R.group_norm, R.group_norm_backward)
# Variances of what is drawn stay away from 0, where rounding of the deviations shows in full.
EPS = 0.1


def normaliser(pair, option):
    """Return forward and backward with (x, weight, bias) as arguments."""
    (forward, backward), (loop, loop_backward) = pair
    return (
        (lambda x, weight=None, bias=None: forward(x, option, weight, bias, EPS), backward),
        (lambda x, weight=None, bias=None: loop(x, option, weight, bias, EPS), loop_backward),
    )


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    last=st.integers(1, 4),
    affine=st.sampled_from([(True, True), (True, False), (False, False)]),
    layout=layouts,
    dtype=dtypes,
    seed=seeds,
)
def test_layer_norm_agrees_with_the_loops(backend, shape, last, affine, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    last = tuple(shape[-last:])
    arrays = [values(rng, tuple(shape), dtype), *(values(rng, last, dtype) if each else None for each in affine)]
    check_op(backend, *normaliser(LAYER, last), arrays, layout=layout, rng=rng)


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    affine=st.sampled_from([(True, True), (True, False), (False, False)]),
    layout=layouts,
    dtype=dtypes,
    seed=seeds,
)
def test_group_norm_agrees_with_the_loops(backend, shape, groups, channels, affine, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    n, *rest = shape
    shape = (n, groups * channels, *rest)
    arrays = [values(rng, shape, dtype), *(values(rng, shape[1:2], dtype) if each else None for each in affine)]
    check_op(backend, *normaliser(GROUP, groups), arrays, layout=layout, rng=rng)


def test_in_small_slabs(backend, rng, monkeypatch):
    monkeypatch.setattr(backend, "slab_bytes", 1)
    weights = [values(rng, (6,)), values(rng, (6,))]
    check_op(backend, *normaliser(GROUP, 3), [values(rng, (3, 6, 4, 4)), *weights], rng=rng)


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_rounding_goes_by_the_deviations_and_not_by_the_mean(backend, rng, mean):
    x = (values(rng, (4, 6, 9, 9)) + mean).astype("float32")
    y, _ = F.group_norm(backend.asarray(x), 2)
    expected, _ = R.group_norm(x.astype("float64"), 2)
    assert np.max(np.abs(backend.to_numpy(y) - expected)) < 1e-5


def test_a_sample_is_by_itself(backend, rng):
    x = values(rng, (5, 4, 3, 3), "float32")
    for function in (lambda a: F.group_norm(a, 2), lambda a: F.layer_norm(a, (4, 3, 3))):
        whole = backend.to_numpy(function(backend.asarray(x))[0])
        alone = backend.to_numpy(function(backend.asarray(x[2:3]))[0])
        assert np.allclose(whole[2:3], alone, atol=1e-6)


@pytest.mark.parametrize("half", ["float16", "float32"])
def test_float16_is_computed_in_float32(backend, rng, half):
    x, w = values(rng, (3, 4, 40, 40), "float16"), values(rng, (4,), "float16")
    y, cache = F.group_norm(backend.asarray(x), 2, backend.asarray(w.astype(half)))
    expected, kept = R.group_norm(x, 2, w)
    assert y.dtype == "float16"
    assert np.max(np.abs(backend.to_numpy(y) - expected)) < 2e-3 * np.max(np.abs(expected))
    dx, dweight, dbias = F.group_norm_backward(y, cache)
    assert (dx.dtype, dweight.dtype, dbias) == ("float16", half, None)
    exact = R.group_norm_backward(backend.to_numpy(y), kept)[1]
    assert np.allclose(backend.to_numpy(dweight), exact, rtol=2e-3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: F.layer_norm(x, (4, 3)), ShapeError, r"x: expected a shape that ends with \(4, 3\), got"),
        (lambda x: F.layer_norm(x, ()), ShapeError, r"normalized_shape: expected one axis or more, got \(\)"),
        (lambda x: F.layer_norm(x, 0), ShapeError, "normalized_shape: expected 1 or more, got 0"),
        (lambda x: F.layer_norm(x, 5, x), ShapeError, r"weight: expected shape \(5,\), got \(2, 4, 3, 5\)"),
        (lambda x: F.layer_norm(x, 5, eps=0), ConfigError, "eps: expected a number above 0, got 0"),
        (lambda x: F.layer_norm(x.astype("int32"), 5), DTypeError, "x: expected a floating type"),
        (lambda x: F.group_norm(x, 3), ShapeError, "x: expected a multiple of 3 channels for as many"),
        (lambda x: F.group_norm(x, 0), ShapeError, "num_groups: expected 1 or more, got 0"),
        (lambda x: F.group_norm(x[0, 0, 0], 1), ShapeError, r"x: expected shape \(N, C\) or \(N, C, H, W\), got"),
        (lambda x: F.group_norm(x, 2, x[0, :, 0, 0].astype("float64")), DTypeError, "weight: expected the dtype of x"),
        (lambda x: F.group_norm(x, 2, None, x[0, 0, 0]), ShapeError, r"bias: expected shape \(4,\), got \(5,\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(backend, call, error, text):
    with pytest.raises(error, match=text):
        call(backend.zeros((2, 4, 3, 5), "float32"))
