"""Winograd's way of a convolution: against the loops, in every cut, and where it is told to keep out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpcnn
from tests.functional.checks import check_op
from tests.functional.strategies import values
from xpcnn import functional as F
from xpcnn import nn
from xpcnn.backend import use_backend
from xpcnn.backend.numpy.convolution import mending, winograd
from xpcnn.backend.numpy.convolution.mending import suspects
from xpcnn.errors import ConfigError
from xpcnn.functional import reference as R
from xpcnn.windows import windows as make_windows

CONV = (F.conv2d, F.conv2d_backward), (R.conv2d, R.conv2d_backward)


@pytest.fixture
def backend(monkeypatch):
    """NumPy's backend, whose every 3x3 convolution of stride 1 goes this way."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_IMAGES", 1)
    with use_backend("numpy") as backend:
        backend.plans.clear()
        yield backend
        backend.plans.clear()


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (3, 3), (10, 6)])
@pytest.mark.parametrize("padding", [0, 1, ((2, 0), (1, 3))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_agrees_with_the_loops(backend, rng, size, padding, dtype):
    arrays = [values(rng, shape, dtype) for shape in [(2, 3, *size), (4, 3, 3, 3), (4,)]]
    assert winograd.suits(backend, arrays[1], make_windows(size, 3, padding=padding), 1, 2)
    check_op(backend, *CONV, arrays, rng=rng, padding=padding)


@pytest.mark.parametrize("slab_bytes", [1, 4000, 8000, 40_000])
@pytest.mark.parametrize("columns", [1, 14])
def test_it_agrees_in_small_blocks(backend, rng, monkeypatch, slab_bytes, columns):
    monkeypatch.setattr(winograd, "COLUMNS", columns)
    monkeypatch.setattr(backend, "slab_bytes", slab_bytes)
    arrays = [values(rng, (2, 3, 14, 9)), values(rng, (4, 3, 3, 3)), values(rng, (4,))]
    check_op(backend, *CONV, arrays, rng=rng, padding=1)


def test_it_can_be_switched_off(backend, rng, monkeypatch):
    x, weight = values(rng, (2, 3, 6, 6), "float32"), values(rng, (4, 3, 3, 3), "float32")
    for _ in range(10):  # a plan is made, and must not be played once the switch has turned
        with_transforms, _ = F.conv2d(x, weight)
    assert xpcnn.get_winograd()
    xpcnn.set_winograd(False)
    try:
        monkeypatch.setattr(winograd, "forward_tasks", None)
        monkeypatch.setattr(winograd, "gradient_tasks", None)
        assert not xpcnn.get_winograd()
        check_op(backend, *CONV, [x, weight, None], rng=rng)
        assert not np.array_equal(F.conv2d(x, weight)[0], with_transforms)
    finally:
        xpcnn.set_winograd(True)


def test_the_switch_takes_a_bool():
    with pytest.raises(ConfigError, match="enabled: expected True or False, got 1"):
        xpcnn.set_winograd(1)


# --- what a pixel must not reach --------------------------------------------------------------------------------------

# Of a usual output: what a pixel leaves in outputs that do not see it, and what float32 loses in those that do.
LEAK, ROUNDING = 5e-4, 1e-6


def large(rng, size=(11, 10)):
    """Return what goes through the transforms unasked: images (12, 16, H, W), weights and a bias."""
    return [values(rng, shape, "float32") for shape in [(12, 16, *size), (17, 16, 3, 3), (17,)]]


def sees(shape, pixel, padding=1):
    """Return which outputs (OH, OW) have a pixel in their 3x3 window."""
    rows, columns = (np.abs(np.arange(n) - p + 1 - padding) <= 1 for n, p in zip(shape, pixel, strict=True))
    return rows[:, None] & columns


def exact(*arrays):
    """Return y, dx, dweight and dbias of a convolution with padding 1 in float64 and plain sums, for a given dy."""
    *inputs, dy = (a.astype("float64") for a in arrays)
    xpcnn.set_winograd(False)
    try:
        y, cache = F.conv2d(*inputs, padding=1)
        return y, *F.conv2d_backward(dy, cache)
    finally:
        xpcnn.set_winograd(True)


@pytest.fixture
def transforms():
    """NumPy's backend, whose large convolutions go this way unasked."""
    with use_backend("numpy") as backend:
        backend.plans.clear()
        yield backend
        backend.plans.clear()


@settings(max_examples=25, deadline=None)
@given(
    magnitude=st.floats(0, 35),
    image=st.integers(0, 11),
    channel=st.integers(0, 15),
    size=st.sampled_from([(11, 10), (4, 4), (6, 3), (3, 9)]),
    pixel=st.tuples(st.integers(0, 10), st.integers(0, 10)),
    seed=st.integers(0, 1000),
)
def test_a_large_pixel_leaves_others_alone(transforms, magnitude, image, channel, size, pixel, seed):
    """By magnitude: an output's error is bounded by what is usual and by what it sees, not by what its tile holds."""
    rng = np.random.default_rng(seed)
    x, weight, bias = large(rng, size)
    dy = values(rng, (12, 17, *size), "float32")
    pixel = tuple(p % n for p, n in zip(pixel, size, strict=True))
    x[image, channel, *pixel] = 10.0**magnitude
    dy[image, channel, *pixel] = -(10.0**magnitude)
    wanted = exact(x, weight, bias, dy)
    y, cache = F.conv2d(x, weight, bias, padding=1)
    dx, dweight, _ = F.conv2d_backward(dy, cache)
    for ours, theirs in ((y, wanted[0]), (dx, wanted[1])):
        error, usual = np.abs(ours - theirs), np.median(np.abs(theirs))
        far = np.ones(error.shape, bool)
        far[image] = ~sees(size, pixel)
        assert error[far].max() <= LEAK * usual
        assert (error <= LEAK * usual + 10 * ROUNDING * np.abs(weight).max() * 10.0**magnitude)[~far].all()
    others = np.delete(np.abs(dweight - wanted[2]), channel, axis=0)  # filters whose dy is usual
    others = np.delete(others, channel, axis=1)
    assert others.max() <= LEAK * np.median(np.abs(wanted[2]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (5, 9), (10, 9), (4, 8)])
@pytest.mark.parametrize("where", ["x", "dy", "both"])
def test_what_is_not_finite_stays_where_it_is_seen(transforms, rng, value, pixel, where):
    x, weight, bias = large(rng)
    dy = values(rng, (12, 17, 11, 10), "float32")
    if where != "dy":
        x[3, 2, *pixel] = value
    if where != "x":
        dy[3, 2, *pixel] = value
    with np.errstate(all="ignore"):
        wanted = exact(x, weight, bias, dy)
        y, cache = F.conv2d(x, weight, bias, padding=1)
        results = y, *F.conv2d_backward(dy, cache)
    for ours, theirs in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))
        finite = np.isfinite(theirs)
        np.testing.assert_allclose(ours[finite], theirs[finite], atol=1e-3 * np.abs(theirs[finite]).max())
    if where == "x":
        assert (~np.isfinite(y)).sum() == 17 * sees((11, 10), pixel).sum()


def test_an_infinite_weight_gives_infinity(transforms, rng):
    x, weight, bias = large(rng)
    weight[2, 3, 1, 1] = np.inf
    dy = values(rng, (12, 17, 11, 10), "float32")
    with np.errstate(all="ignore"):
        wanted = exact(x, weight, bias, dy)
        y, cache = F.conv2d(x, weight, bias, padding=1)
        dx, _, _ = F.conv2d_backward(dy, cache)
    np.testing.assert_array_equal(np.isinf(y), np.isinf(wanted[0]))
    np.testing.assert_array_equal(np.isinf(dx), np.isinf(wanted[1]))
    assert np.isinf(y[:, 2]).all()
    assert np.isfinite(np.delete(y, 2, axis=1)).all()


@pytest.mark.parametrize("way", ["plan", "record", "inference"])
@pytest.mark.parametrize("threads", [1, 2])
def test_replays_look_at_the_values_of_each_call(transforms, rng, way, threads):
    """What is recorded is a list of calls: made with usual values, it must mend what later ones hold."""
    x, weight, bias = large(rng)
    before = xpcnn.get_num_threads()
    xpcnn.set_num_threads(threads)
    try:
        usual, bad = x.copy(), x.copy()
        bad[5, 1, 4, 4] = np.nan
        bad[7, 1, 4, 4] = 1e8
        layer = nn.Conv2d(16, 17, 3, padding=1)
        layer.weight.data, layer.bias.data = weight, bias
        given, result = usual.copy(), np.empty((12, 17, 11, 10), "float32")

        def step():
            result[...] = 0
            transforms.for_array(given).xp.copyto(result, F.conv2d(given, weight, bias, padding=1)[0])

        if way == "plan":
            call = lambda a: F.conv2d(a, weight, bias, padding=1)[0]  # noqa: E731
        elif way == "inference":
            call = nn.Inference(layer)
        else:
            replay = transforms.capture(step)

            def call(a):
                given[...] = a
                replay()
                return result.copy()

        outputs = [call(usual) for _ in range(10)]
        mended, again = call(bad), call(usual)
    finally:
        xpcnn.set_num_threads(before)
    np.testing.assert_array_equal(again, outputs[0])
    far = np.ones((12, 11, 10), bool)
    far[[5, 7]] = ~sees((11, 10), (4, 4))
    far = np.broadcast_to(far[:, None], mended.shape)
    assert np.isnan(mended[5])[:, sees((11, 10), (4, 4))].all()
    np.testing.assert_allclose(mended[far], outputs[0][far], atol=1e-2)
    assert np.isfinite(mended[far]).all()


def test_usual_images_are_not_suspect(transforms, rng, monkeypatch):
    """Backgrounds of zeros, and images that count much more than others, are no reason to compute anything twice."""
    found = []
    monkeypatch.setattr(mending, "suspects", lambda *a: found.append(suspects(*a)) or found[-1])
    x, weight, bias = large(rng)
    sparse, uneven = np.maximum(x, 0), x * np.array([1e-6] * 11 + [1e3], "float32").reshape(-1, 1, 1, 1)
    sparse[:, :, 4:] = 0
    for images in (x, sparse, uneven):
        F.conv2d(images, weight, bias, padding=1)
    assert [images.size for images in found] == [0, 0, 0]
    x[4, 2, 5, 5] = 1e6
    F.conv2d(x, weight, bias, padding=1)
    assert found[-1].tolist() == [4]
