"""Depthwise convolution by products with banded matrices: against the loops, in every cut, and what is not finite."""

import numpy as np
import pytest

import xpcnn
from tests.functional.checks import check_op
from tests.functional.strategies import values
from xpcnn import functional as F
from xpcnn import nn
from xpcnn.backend import use_backend
from xpcnn.backend.numpy.convolution import depthwise, tiles
from xpcnn.functional import reference as R
from xpcnn.windows import windows as make_windows

CONV = (F.conv2d, F.conv2d_backward), (R.conv2d, R.conv2d_backward)


@pytest.fixture
def backend(monkeypatch):
    """NumPy's backend, from which the usual way of a convolution is taken."""
    monkeypatch.setattr(tiles, "forward_tasks", None)
    monkeypatch.setattr(tiles, "weight_tasks", None)
    with use_backend("numpy") as backend:
        backend.plans.clear()
        yield backend
        backend.plans.clear()


def arrays_of(rng, size, kernel=(3, 3), channels=3, n=2, dtype="float64"):
    shapes = (n, channels, *size), (channels, 1, *kernel), (channels,)
    return [values(rng, shape, dtype) for shape in shapes]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 7), (5, 9), (9, 5), (7, 19), (12, 33)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_agrees_with_the_loops(backend, rng, size, stride, dtype):
    arrays = arrays_of(rng, size, dtype=dtype)
    assert depthwise.suits(arrays[1], make_windows(size, 3, padding=1), 3)
    check_op(backend, *CONV, arrays, rng=rng, padding=1, stride=stride, groups=3)


@pytest.mark.parametrize("kernel", [(1, 1), (5, 2), (1, 4), (7, 7)])
@pytest.mark.parametrize(("padding", "dilation"), [(0, 1), (5, 1), (((2, 0), (1, 3)), 2), ("same", 1), (6, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_geometry(backend, rng, kernel, padding, dilation, stride):
    options = {"padding": padding, "dilation": dilation, "stride": stride}
    check_op(backend, *CONV, arrays_of(rng, (14, 17), kernel), rng=rng, groups=3, **options)


@pytest.mark.parametrize("strip", [1, 3])
@pytest.mark.parametrize("block_bytes", [1, 10_000])
@pytest.mark.parametrize("small_image", [0, 1296])
def test_every_cut(backend, rng, monkeypatch, strip, block_bytes, small_image):
    monkeypatch.setattr(depthwise, "STRIP", strip)
    monkeypatch.setattr(depthwise, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(depthwise, "SMALL_IMAGE", small_image)
    for stride in (1, 2):
        check_op(backend, *CONV, arrays_of(rng, (6, 5), channels=5), rng=rng, padding=1, stride=stride, groups=5)


def test_what_has_more_filters_or_channels_a_group_goes_the_usual_way(rng):
    windows = make_windows((6, 6), 3)
    assert not depthwise.suits(values(rng, (6, 1, 3, 3)), windows, 3)
    assert not depthwise.suits(values(rng, (6, 2, 3, 3)), windows, 3)
    assert not depthwise.suits(values(rng, (1, 1, 3, 3)), windows, 1)
    assert not depthwise.suits(values(rng, (2, 1, 12, 12)), make_windows((20, 20), 12), 2)


# --- what a pixel must not reach --------------------------------------------------------------------------------------


def same(ours, theirs):
    """Whether two arrays agree, nan and infinities in their places."""
    return np.allclose(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(4, 4), (9, 18)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("where", ["x", "dy", "weight", "bias"])
def test_what_is_not_finite_reaches_its_windows_alone(backend, rng, bad, size, stride, where):
    x, weight, bias = arrays_of(rng, size)
    options = {"padding": 1, "stride": stride, "groups": 3}
    y, cache = F.conv2d(x, weight, bias, **options)
    dy = values(rng, y.shape)
    for position in [(0, 0, 0, 0), (1, 1, 2, 2), (1, 2, -1, -1), (0, 1, 1, 0)]:
        given = {"x": x.copy(), "dy": dy.copy(), "weight": weight.copy(), "bias": bias.copy()}
        target = given[where]
        target[tuple(min(i, n - 1) for i, n in zip(position, target.shape, strict=False))] = bad
        with np.errstate(all="ignore"):
            expected, kept = R.conv2d(given["x"], given["weight"], given["bias"], **options)
            gradients = R.conv2d_backward(given["dy"], kept)
        y, cache = F.conv2d(given["x"], given["weight"], given["bias"], **options)
        assert same(y, expected)
        for ours, theirs in zip(F.conv2d_backward(given["dy"], cache), gradients, strict=True):
            assert same(ours, theirs)


def test_a_large_pixel_leaves_no_trace_elsewhere(backend, rng):
    x, weight, _ = arrays_of(rng, (9, 18), dtype="float32")
    clean, _ = F.conv2d(x, weight, padding=1, groups=3)
    x[0, 1, 4, 5] = 1e30
    y, _ = F.conv2d(x, weight, padding=1, groups=3)
    seen = np.zeros(y.shape, bool)
    seen[0, 1, 3:6, 4:7] = True
    assert np.array_equal(y[~seen], clean[~seen])


# --- recorded and shared out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("size", "stride"), [(32, 1), (32, 2), (4, 1)])
def test_compiled_is_as_written(backend, rng, threads, size, stride):
    before = xpcnn.get_num_threads()
    xpcnn.set_num_threads(threads)
    try:
        layer = nn.Conv2d(8, 8, 3, stride, 1, groups=8)
        x = values(rng, (32, 8, size, size), "float32")
        dy = values(rng, layer(x).shape, "float32")
        layer.backward(dy)

        def step(x, dy):
            layer.zero_grad()
            return layer(x), layer.backward(dy)

        written = [*step(x, dy), layer.weight.grad.copy(), layer.bias.grad.copy()]
        compiled = xpcnn.compile(step)
        for _ in range(12):
            results = [*compiled(x, dy), layer.weight.grad, layer.bias.grad]
            for ours, theirs in zip(results, written, strict=True):
                assert np.array_equal(ours, theirs)
    finally:
        xpcnn.set_num_threads(before)


def test_a_replay_mends_too(backend, rng):
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    infer = nn.Inference(nn.Sequential(layer).eval())
    x = values(rng, (3, 4, 9, 9), "float32")
    for _ in range(12):
        infer(x)
    x[1, 2, 4, 4] = np.inf
    expected, _ = R.conv2d(x, layer.weight.data, layer.bias.data, padding=1, groups=4)
    assert same(infer(x), expected)


def test_the_transposed_convolution(backend, rng):
    dy, weight = values(rng, (2, 3, 5, 6)), values(rng, (3, 1, 3, 3))
    y, _ = F.conv_transpose2d(dy, weight, stride=2, padding=1, output_padding=1, groups=3)
    expected, _ = R.conv_transpose2d(dy, weight, stride=2, padding=1, output_padding=1, groups=3)
    assert same(y, expected)
