"""Convolution without columns, run on the CPU, against the portable body: sums of integers, which are exact."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.backend.cupy import convolution
from xpcnn.backend.cupy.convolution import DEPTH, FILE, SHARE_SLICES, TENSOR_CORES, TILES, Tile, choose, split
from xpcnn.backend.cupy.kernels import source
from xpcnn.functional.convolution import conv2d_forward, conv2d_gradients, conv2d_input_gradient
from xpcnn.windows import windows

from .shim import ShimBackend, signatures
from .test_compile import ARCHITECTURES, compile_for
from .test_kernels import SEEDS, device, portable

pytestmark = pytest.mark.gpu_static
implicit = ShimBackend()
implicit.implicit_gemm = True
# Small integers are numbers of TF32, so that tensor cores lose nothing of them.
WAYS = st.sampled_from([("float32", False), ("float32", True), ("float16", False)])  # dtype, allow_tf32


@st.composite
def convolutions(draw):
    """Windows, a batch size and numbers of channels and filters, such that no product of matrices stands there bare."""
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    kernel = tuple(draw(st.integers(1, 4)) for _ in "hw")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(0, e - s) for e, s in zip(extent, size, strict=True)]
    pad = tuple(tuple(draw(st.integers(low, low + 2)) for _ in "ab") for low in least)
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    over = windows(size, kernel, stride=stride, padding=pad, dilation=dilation)
    c, f = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 6, 17, 33, 65]))
    n = draw(st.sampled_from([1, 2, 3, 4, 8, 33]))
    return over, c, f, n


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def stored(arrays, way):
    """Bring arrays to the device in the dtype of a way; None stays."""
    return [None if array is None else device(array.astype(way[0])) for array in arrays]


def agree(got, expected, way):
    """Compare with a float32 result, rounded once to what is stored."""
    assert got.dtype == way[0]
    np.testing.assert_array_equal(got._host, expected._host.astype(way[0]))


def run(name, tile, way, *args):
    """Run a primitive by its kernel with a tile of this shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implicit, "allow_tf32", way[1])
        patch.setattr(convolution, "choose", lambda *sizes: tile)
        return implicit.fused[name](implicit, *args)


@given(convolutions(), st.sampled_from(TILES), WAYS, st.booleans(), SEEDS)
def test_forward(case, tile, way, has_bias, seed):
    over, c, f, n = case
    x, weight = integers(seed, c, over.h.size, over.w.size, n), integers(seed + 1, f, c, *over.kernel)
    arrays = x, weight, integers(seed + 2, f) if has_bias else None
    got = run("conv2d_forward", tile, way, *stored(arrays, way), over, 1)
    if over.is_pointwise or over.is_whole:
        assert got is NotImplemented
        return
    assert implicit.kernels.launched.pop() == "convolve"
    agree(got, conv2d_forward.portable(portable, *stored(arrays, ("float32",)), over, 1), way)


@given(convolutions(), st.sampled_from(TILES), WAYS, st.sampled_from([None, 0.0, 1e3, 1e4]), SEEDS)
def test_sums(case, tile, way, mean, seed):
    """Mean and variance of each channel of y, which is the forward's, against those of its numbers in float64."""
    over, c, f, n = case
    rng = np.random.default_rng(seed)
    x, weight = (rng.standard_normal(shape) for shape in ((c, over.h.size, over.w.size, n), (f, c, *over.kernel)))
    arrays = stored((x, weight, None if mean is None else rng.standard_normal(f) + mean), way)
    got = run("conv2d_sums", tile, way, *arrays, over, 1)
    if over.is_pointwise or over.is_whole:
        assert got is NotImplemented
        return
    assert implicit.kernels.launched[-2:] == ["convolve", "merge_moments"]
    y, sums = got
    np.testing.assert_array_equal(y._host, run("conv2d_forward", tile, way, *arrays, over, 1)._host)
    check_sums(y._host, sums._host)


def check_sums(y, sums):
    """Hold sums of y - y_0 and of its square to the rounding of float32, relative to what y differs from its mean."""
    assert sums.shape == (len(y), 1, 2)
    rows = y.reshape(len(y), -1).astype(np.float64)
    first, n, eps = rows[:, 0], rows.shape[1], np.finfo(np.float32).eps
    mean, variance = first + sums[:, 0, 0] / n, (sums[:, 0, 1] - sums[:, 0, 0] ** 2 / n) / n
    differences = rows - rows.mean(axis=1, keepdims=True)
    assert (np.abs(mean - rows.mean(axis=1)) <= 8 * eps * np.abs(differences).max(axis=1)).all()
    np.testing.assert_allclose(variance, np.mean(differences**2, axis=1), rtol=16 * eps, atol=0)


@pytest.mark.parametrize("size", [1e-12, 1e18])
@pytest.mark.parametrize("n", [1, 300])
def test_sums_of_squares_beyond_the_dtype(size, n):
    rng, over, way = np.random.default_rng(0), windows((7, 6), 3, padding=1), ("float32", False)
    x, weight = rng.standard_normal((5, 7, 6, n)) * size, rng.standard_normal((20, 5, 3, 3))
    y, sums = run("conv2d_sums", TILES[2], way, *stored((x, weight, None), way), over, 1)
    check_sums(y._host, sums._host)


def test_sums_of_numbers_a_step_apart():
    """Where even the nearest float is far from the mean, by what the numbers differ."""
    rng, over, way = np.random.default_rng(0), windows((7, 6), 3, padding=1), ("float32", False)
    x, weight = rng.standard_normal((5, 7, 6, 41)) * 1e-4, rng.standard_normal((20, 5, 3, 3))
    y, sums = run("conv2d_sums", TILES[2], way, *stored((x, weight, np.full(20, 1e4)), way), over, 1)
    assert np.ptp(y._host) < 10 * np.spacing(np.float32(1e4))
    check_sums(y._host, sums._host)


@pytest.mark.parametrize("value", [0.1, 1e4, 1e30])
def test_sums_of_equal_numbers_are_zero(value):
    x, weight = np.zeros((5, 7, 6, 41)), np.ones((20, 5, 3, 3))
    bias, way = np.full(20, value) * np.arange(1, 21), ("float32", False)
    _, sums = run("conv2d_sums", TILES[2], way, *stored((x, weight, bias), way), windows((7, 6), 3), 1)
    np.testing.assert_array_equal(sums._host, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 819, None])  # in the first tile, in the last, or in one channel of y alone
def test_what_is_not_finite_makes_its_channel_nan(value, place):
    x, weight = np.random.default_rng(0).random((1, 6, 6, 41)), np.ones((3, 1, 1, 2))
    bias, way = np.zeros(3), ("float32", False)
    (bias if place is None else x).reshape(-1)[place or 0] = value
    y, sums = run("conv2d_sums", TILES[3], way, *stored((x, weight, bias), way), windows((6, 6), (1, 2)), 1)
    scale, shift = device(np.ones(3, np.float32)), device(np.zeros(3, np.float32))
    out = implicit.empty((3, y.size // 3), np.float32)
    implicit.fused["batch_norm_train"](implicit, y.reshape(3, -1), scale, shift, 1e-5, out, sums=sums)
    affected = np.arange(3) == 0 if place is None else np.ones(3, bool)
    assert np.isnan(out._host[affected]).all()
    assert np.isfinite(out._host[~affected]).all()


@given(convolutions(), st.sampled_from(TILES), WAYS, SEEDS)
def test_input_gradient(case, tile, way, seed):
    over, c, f, n = case
    dy, weight = integers(seed, f, *over.out, n), integers(seed + 1, f, c, *over.kernel)
    got = run("conv2d_input_gradient", tile, way, *stored((dy, weight), way), over, 1)
    if over.is_pointwise or over.is_whole:
        assert got is NotImplemented
        return
    agree(got, conv2d_input_gradient.portable(portable, device(dy), device(weight), over, 1), way)


@given(convolutions(), st.sampled_from(TILES), WAYS, st.integers(1, 4), st.booleans(), st.booleans(), SEEDS)
def test_gradients(case, tile, way, shares, has_bias, in_place, seed):
    over, c, f, n = case
    x, dy = integers(seed, c, over.h.size, over.w.size, n), integers(seed + 1, f, *over.out, n)
    weight = integers(seed + 2, f, c, *over.kernel)
    slices = -(-dy[0].size // DEPTH)
    length = -(-slices // shares)
    given = implicit.empty(weight.shape, np.dtype(way[0])) if in_place else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "split", lambda *sizes: (tile, -(-slices // length), length * DEPTH))
        got = run("conv2d_gradients", tile, way, *stored((dy, x, weight), way), over, 1, has_bias, True, given)
    if over.is_pointwise or over.is_whole:
        assert got is NotImplemented
        return
    if in_place:
        assert got[1] is given
    expected = conv2d_gradients.portable(portable, device(dy), device(x), device(weight), over, 1, has_bias)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            agree(ours, theirs, way)


def test_shares_fill_the_device_and_cover_every_position():
    for filters, taps, positions, devices in ((16, 144, 1 << 17, 132), (512, 4608, 2048, 132), (6, 25, 100, 3)):
        tile, shares, share = split(filters, taps, positions, devices)
        across, down = tile.grid(filters, taps)
        assert (shares - 1) * share < positions <= shares * share
        assert share % DEPTH == 0
        assert shares == 1 or share >= DEPTH * SHARE_SLICES
        assert across * down * shares >= devices or share < 2 * DEPTH * SHARE_SLICES


@pytest.mark.parametrize(("dtype", "capability"), [("float64", (9, 0)), ("float16", (7, 5))])
def test_what_it_leaves_to_others(dtype, capability, monkeypatch):
    monkeypatch.setattr(implicit, "compute_capability", capability)
    over = windows((5, 5), 3)
    x, weight = device(np.ones((2, 5, 5, 4), dtype)), device(np.ones((4, 2, 3, 3), dtype))
    for name, args in (("conv2d_forward", (x, weight, None)), ("conv2d_input_gradient", (x, weight))):
        assert implicit.fused[name](implicit, *args, over, 1) is NotImplemented
    single = [device(np.ones(shape, np.float32)) for shape in ((2, 5, 5, 4), (4, 1, 3, 3))]
    assert implicit.fused["conv2d_forward"](implicit, *single, None, over, 2) is NotImplemented  # groups
    single[1] = device(np.ones((4, 2, 3, 3), np.float32))
    assert implicit.fused["conv2d_forward"](implicit, *single, None, over, 1) is not NotImplemented
    off = ShimBackend()
    assert off.fused["conv2d_forward"](off, *single, None, over, 1) is NotImplemented


def test_the_tile_follows_the_shape():
    assert choose(16, 1 << 17, 132) == Tile(16, 256, 4, 4)
    assert choose(32, 1 << 17, 132) == Tile(32, 128, 4, 4)
    assert choose(64, 1 << 17, 132) == Tile(64, 128, 4, 8)
    assert choose(256, 1 << 17, 132) == Tile(128, 128, 8, 8)
    assert choose(256, 1 << 9, 132) != Tile(128, 128, 8, 8)  # eight blocks on 132 multiprocessors


def rounded_to_tf32(a):
    """Keep 10 bits of mantissa, ties away from zero."""
    mantissa, exponent = np.frexp(a.astype(np.float64))
    scaled = np.abs(mantissa) * 2**11
    return (np.sign(mantissa) * np.floor(scaled + 0.5) * 2.0 ** (exponent - 11)).astype(np.float32)


def test_tf32_rounds_the_operands_and_nothing_else():
    rng, over, way = np.random.default_rng(0), windows((7, 6), 3, padding=1), ("float32", True)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 7, 6, 4), (20, 5, 3, 3)))
    got = run("conv2d_forward", TILES[2], way, *stored((x, weight, None), way), over, 1)._host
    exact, kept = (
        conv2d_forward.portable(portable, device(a), device(b), None, over, 1)._host
        for a, b in ((x.astype(float), weight.astype(float)), map(rounded_to_tf32, (x, weight)))
    )
    np.testing.assert_allclose(got, kept, rtol=1e-5, atol=1e-5)
    assert 1e-4 < np.abs(got - exact).max() < 1e-2
    x[0, 0, 0, 0] = np.nan
    got = run("conv2d_forward", TILES[2], way, *stored((x, weight, None), way), over, 1)._host
    assert np.isnan(got[0, 0, 0, 0])


KINDS = [("float", ()), ("float", TENSOR_CORES), ("Half", TENSOR_CORES)]
# There are no tensor cores for TF32 before compute capability 8.0.
BUILDS = [(name, kind, defines) for name in ARCHITECTURES for kind, defines in KINDS if not defines or name != "sm_75"]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("architecture", "kind", "defines"), BUILDS)
def test_kernels_compile(architecture, kind, defines, tile):
    binary = compile_for(architecture, kind, source(FILE), (*tile.defines, *defines))
    for name in signatures(source(FILE)):
        assert name.encode() in binary


def test_every_kernel_is_launched_here():
    assert set(signatures(source(FILE))) <= implicit.kernels.ever


def test_every_kernel_has_a_signature_that_the_shim_reads():
    assert len(signatures(source(FILE))) == len(re.findall("__global__", source(FILE)))
    assert "atomic" not in re.sub(r"//.*", "", source(FILE))


def test_a_missing_barrier_is_found():
    """The shim can fail: without the barrier inside the loop a slice is read before it is there."""
    over = windows((9, 9), 3)
    x, weight = (device(integers(seed, *shape)) for seed, shape in ((0, (8, 9, 9, 4)), (1, (16, 8, 3, 3))))
    text = source(FILE)
    barrier = "columns.store(b[now]);\n            __syncthreads();"
    assert barrier in text
    broken = ShimBackend()
    broken.implicit_gemm = True
    tile = choose(16, 7 * 7 * 4, broken.multiprocessors)
    variant = broken.kernels.variant(FILE, tile.defines)
    variant.text = text.replace(barrier, "columns.store(b[now]);")
    right = conv2d_forward.portable(portable, x, weight, None, over, 1)._host
    assert (broken.fused["conv2d_forward"](broken, x, weight, None, over, 1)._host != right).any()
    variant.text = None
    np.testing.assert_array_equal(broken.fused["conv2d_forward"](broken, x, weight, None, over, 1)._host, right)
