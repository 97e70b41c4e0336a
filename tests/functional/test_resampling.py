import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.checks import check_op
from tests.functional.strategies import dtypes, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.functional import resampling

ADAPTIVE = (
    (F.adaptive_avg_pool2d, F.adaptive_avg_pool2d_backward),
    (
        R.adaptive_avg_pool2d,
        R.adaptive_avg_pool2d_backward,
    ),
)
UPSAMPLE = (F.upsample, F.upsample_backward), (R.upsample, R.upsample_backward)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
modes = st.sampled_from([("nearest", None), ("bilinear", None), ("bilinear", False), ("bilinear", True)])


@given(shape=shapes, size=sizes, whole=st.booleans(), layout=layouts, dtype=dtypes, seed=seeds)
def test_adaptive_pooling_agrees_with_the_loops(backend, shape, size, whole, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    size = (None, size[1]) if whole else size
    check_op(backend, *ADAPTIVE, [values(rng, shape, dtype)], layout=layout, rng=rng, output_size=size)


@given(shape=shapes, size=sizes, mode=modes, layout=layouts, dtype=dtypes, seed=seeds)
def test_upsampling_to_a_size_agrees_with_the_loops(backend, shape, size, mode, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    options = {"size": size, "mode": mode[0], "align_corners": mode[1]}
    check_op(backend, *UPSAMPLE, [values(rng, shape, dtype)], layout=layout, rng=rng, **options)


@given(shape=shapes, scale=st.sampled_from([1, 2, 3, 1.5, 2.5, (1, 4), (2.25, 1.75)]), mode=modes, seed=seeds)
def test_upsampling_by_a_factor_agrees_with_the_loops(backend, shape, scale, mode, seed):
    rng = np.random.default_rng(seed)
    options = {"scale_factor": scale, "mode": mode[0], "align_corners": mode[1]}
    check_op(backend, *UPSAMPLE, [values(rng, shape)], rng=rng, **options)


@pytest.mark.parametrize("size", [2, 3, 4, (6, 14)])
def test_in_small_slabs(backend, rng, monkeypatch, size):
    monkeypatch.setattr(backend, "slab_bytes", 1)
    check_op(backend, *ADAPTIVE, [values(rng, (2, 5, 6, 7))], rng=rng, output_size=size)
    check_op(backend, *UPSAMPLE, [values(rng, (2, 5, 6, 7))], rng=rng, size=size, mode="bilinear")


def test_nearest_repeats_pixels_to_the_bit(backend):
    x = np.array([[[[np.nan, np.inf], [-0.0, 3.0]]]], "float32")
    y, _ = F.upsample(backend.asarray(x), scale_factor=(2, 3))
    assert np.array_equal(backend.to_numpy(y), x.repeat(2, 2).repeat(3, 3), equal_nan=True)


def test_a_pixel_that_is_no_number_stays_in_its_windows(backend):
    x = np.ones((1, 1, 4, 4), "float32")
    x[..., 0, 0] = np.nan
    for y, _ in (
        F.adaptive_avg_pool2d(backend.asarray(x), 3),
        F.upsample(backend.asarray(x), 3, mode="bilinear", align_corners=True),
    ):
        assert np.argwhere(np.isnan(backend.to_numpy(y))).tolist() == [[0, 0, 0, 0]]


def test_even_factors_take_few_calls():
    """As many as the factor has phases and edges, whatever the size."""
    for how in (
        resampling.Resampling("nearest", None, (2.0, 2.0)),
        resampling.Resampling("bilinear", None, (2.0, 2.0)),
    ):
        assert len(resampling._runs(how, 0, 10)) == len(resampling._runs(how, 0, 200)) <= 5


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, ConfigError, "size: expected it or scale_factor, one of the two, got None and None"),
        ({"size": 2, "scale_factor": 2}, ConfigError, "size: expected it or scale_factor, one of the two, got 2 and 2"),
        ({"size": 0}, ShapeError, "size: expected 1 or more, got 0"),
        ({"size": 2.5}, DTypeError, "size: expected integers, got 2.5"),
        ({"size": (1, 2, 3)}, ShapeError, r"size: expected an integer or \(height, width\), got \(1, 2, 3\)"),
        ({"scale_factor": 0}, ConfigError, "scale_factor: expected a number above 0, got 0"),
        ({"scale_factor": (1, 2, 3)}, ShapeError, r"scale_factor: expected a number or \(height, width\)"),
        ({"scale_factor": 0.1}, ShapeError, r"scale_factor: expected a result of 1 pixel or more, got 3 \* 0.1"),
        ({"size": 2, "mode": "bicubic"}, ConfigError, 'mode: expected "nearest" or "bilinear", got \'bicubic\''),
        ({"size": 2, "align_corners": True}, ConfigError, 'align_corners: expected None with mode "nearest", got True'),
        ({"size": 2, "mode": "bilinear", "align_corners": 2}, ConfigError, "align_corners: expected True or False"),
    ],
)
def test_upsampling_refuses_what_does_not_fit(backend, options, error, text):
    with pytest.raises(error, match=text):
        F.upsample(backend.zeros((1, 1, 3, 4), "float32"), **options)


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        (0, ShapeError, "output_size: expected 1 or more, got 0"),
        ((1, 2, 3), ShapeError, r"output_size: expected an integer or \(height, width\), got \(1, 2, 3\)"),
        (1.5, DTypeError, "output_size: expected integers, got 1.5"),
    ],
)
def test_adaptive_pooling_refuses_what_does_not_fit(backend, size, error, text):
    with pytest.raises(error, match=text):
        F.adaptive_avg_pool2d(backend.zeros((1, 1, 3, 4), "float32"), size)
