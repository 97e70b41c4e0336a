"""Chains of views on real CuPy arrays: no hidden copies, CuPy's dispatch, and cuBLAS given every layout as it lies."""

import cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xpcnn.functional as F
from xpcnn.backend import backend_of
from xpcnn.backend.cupy.cublas import COMPUTE_32F, COMPUTE_32F_FAST_TF32, operand
from xpcnn.backend.cupy.fused import fits, row_sums
from xpcnn.backend.cupy.updates import FUSED
from xpcnn.errors import MixedBackendsError
from xpcnn.functional.layout import batch_first, batch_last

from .host_cupy import HostCupyBackend, device, view

pytestmark = pytest.mark.gpu_static
RNG = np.random.default_rng(0)


def images(*shape):
    """Return a batch (N, C, H, W) as it lies inside a network, on the host and as a CuPy array."""
    host = RNG.standard_normal(shape[1:] + shape[:1]).astype("float32")  # (C, H, W, N)
    return host.transpose(3, 0, 1, 2), device(host).transpose(3, 0, 1, 2)


def features(n, d):
    host = RNG.standard_normal((d, n)).astype("float32")
    return host.T, device(host).T


def close(got, expected):
    assert isinstance(got, cupy.ndarray)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(view(got), expected, rtol=2e-5, atol=2e-5)


def test_a_copying_reshape_raises_here():
    """The net under these tests: what copies on CuPy cannot pass in silence."""
    _, x = images(2, 3, 4, 5)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        x.reshape(-1)


def test_logical_and_memory_views_are_free():
    _, x = images(2, 3, 4, 5)
    memory = batch_last(None, x)
    assert memory.shape == (3, 4, 5, 2)
    assert memory.flags.c_contiguous
    assert memory.data.ptr == batch_first(memory).data.ptr == x.data.ptr
    flat = batch_first(memory.reshape(-1, 2))
    assert flat.shape == (2, 60)
    assert flat.data.ptr == x.data.ptr


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"padding": "same"},
        {"dilation": 2},
        {"groups": 2},
        {"stride": 2, "groups": 2},
    ],
)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("column_bytes", [1 << 20, 1 << 10])
def test_convolution(host_cupy, options, kernel, column_bytes):
    host_cupy.column_bytes = column_bytes  # whole, and in tiles of output rows
    x, x_device = images(3, 4, 7, 6)
    weight = RNG.standard_normal((6, 4 // options.get("groups", 1), kernel, kernel)).astype("float32")
    bias = RNG.standard_normal(6).astype("float32")
    y, cache = F.conv2d(x, weight, bias, **options)
    dy = RNG.standard_normal((*y.shape[1:], y.shape[0])).astype("float32")
    expected = y, *F.conv2d_backward(dy.transpose(3, 0, 1, 2), cache)
    got, cache = F.conv2d(x_device, device(weight), device(bias), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy, "add", lambda a, b, out: view(out).__iadd__(view(b)))  # shares of tiles, in their order
        gradients = F.conv2d_backward(device(dy).transpose(3, 0, 1, 2), cache)
    for mine, theirs in zip((got, *gradients), expected, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"padding": 1}, {"ceil_mode": True}])
def test_max_pool(host_cupy, options):
    x, x_device = images(3, 2, 7, 6)
    y, cache = F.max_pool2d(x, 3, **options)
    got, device_cache = F.max_pool2d(x_device, 3, **options)
    close(got, y)
    dy = RNG.standard_normal((*y.shape[1:], y.shape[0])).astype("float32")
    dx = F.max_pool2d_backward(device(dy).transpose(3, 0, 1, 2), device_cache)
    close(dx, F.max_pool2d_backward(dy.transpose(3, 0, 1, 2), cache))


@pytest.mark.parametrize("make", [lambda: images(4, 3, 5, 2), lambda: features(8, 3)])
def test_batch_norm_and_relu(host_cupy, make):
    x, x_device = make()
    gamma, beta, mean, var = (RNG.random(3).astype("float32") for _ in range(4))
    on_device = [device(a) for a in (gamma, beta, mean, var)]
    y, cache = F.batch_norm(x, gamma, beta, mean, var, training=True)
    got, device_cache = F.batch_norm(x_device, *on_device, training=True)
    close(got, y)
    close(on_device[2], mean)
    close(on_device[3], var)
    expected = F.batch_norm_backward(y, cache)
    for mine, theirs in zip(F.batch_norm_backward(got, device_cache), expected, strict=True):
        close(mine, theirs)
    z, cache = F.relu(y)
    got, device_cache = F.relu(got)
    close(got, z)
    close(F.relu_backward(got, device_cache), F.relu_backward(z, cache))


def test_linear(host_cupy):
    x, x_device = features(5, 7)
    weight, bias = RNG.standard_normal((4, 7)).astype("float32"), RNG.standard_normal(4).astype("float32")
    y, cache = F.linear(x, weight, bias)
    got, device_cache = F.linear(x_device, device(weight), device(bias))
    close(got, y)
    for mine, theirs in zip(F.linear_backward(got, device_cache), F.linear_backward(y, cache), strict=True):
        close(mine, theirs)


def test_backend_of_real_arrays(host_cupy):
    _, x = images(1, 1, 2, 2)
    assert backend_of(x, None, x[0]) is host_cupy
    with pytest.raises(MixedBackendsError, match=r"expected all on one backend, got cupy and numpy"):
        F.linear(x.reshape(4, 1).T, np.ones((2, 4), "float32"))
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array"):
        np.asarray(x)


# --- cuBLAS -----------------------------------------------------------------------------------------------------------

LAYOUTS = ["plain", "turned", "padded", "turned padded", "sparse"]


def laid_out(shape, layout, dtype):
    """Return random numbers whose last two axes lie in memory as named."""
    shape = tuple(shape)
    lead, (rows, columns) = shape[:-2], shape[-2:]
    if layout.startswith("turned"):
        array = laid_out(
            (*lead, columns, rows), layout.removeprefix("turned ") if "padded" in layout else "plain", dtype
        )
        return array.transpose(*range(len(lead)), len(lead) + 1, len(lead))
    extra = 3 if layout in ("padded", "sparse") else 0
    across = 2 if layout == "sparse" else 1
    whole = device(RNG.integers(-4, 5, (*lead, rows, columns * across + extra)).astype(dtype))
    return whole[..., : columns * across : across]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from(LAYOUTS[:-1]),
    st.sampled_from(LAYOUTS[:-1]),
    st.sampled_from(LAYOUTS[:-1]),
    st.sampled_from([(False, False), (True, True), (True, False), (False, True)]),
    st.sampled_from(["float16", "float32", "float64"]),
    st.booleans(),
)
def test_products_of_every_layout(sizes, a_layout, b_layout, out_layout, stacks, dtype, accumulate):
    backend = HostCupyBackend()
    m, k, n = sizes
    a = laid_out(((3, m, k) if stacks[0] else (m, k)), a_layout, dtype)
    b = laid_out(((3, k, n) if stacks[1] else (k, n)), b_layout, dtype)
    out = laid_out(((3, m, n) if any(stacks) else (m, n)), out_layout, dtype)
    assert backend.cublas.takes(a, b, out)
    expected = np.matmul(view(a), view(b)) + (view(out) if accumulate else 0)
    if accumulate:
        backend.cublas.product(a, b, out, accumulate=True)
    else:
        assert backend.matmul(a, b, out=out) is out
    np.testing.assert_array_equal(view(out), expected)
    if not accumulate:
        np.testing.assert_array_equal(view(backend.matmul(a, b)), expected)


def test_what_cublas_does_not_take():
    takes = HostCupyBackend().cublas.takes
    a, b = laid_out((2, 3), "plain", "float32"), laid_out((3, 4), "plain", "float32")
    assert takes(a, b, None)
    assert not takes(laid_out((2, 3), "sparse", "float32"), b, None)
    assert not takes(a, laid_out((3, 4), "plain", "float64"), None)
    assert not takes(a, laid_out((4, 4), "plain", "float32"), None)
    assert not takes(a, b, laid_out((2, 5), "plain", "float32"))
    assert not takes(a, b, laid_out((2, 4), "sparse", "float32"))
    assert not takes(*(laid_out(s, "plain", "int32") for s in ((2, 3), (3, 4))), None)
    assert not takes(laid_out((2, 2, 3), "plain", "float32"), laid_out((5, 3, 4), "plain", "float32"), None)
    assert operand(device(np.zeros((0, 3), "float32"))) is None


def test_float16_goes_to_cublas_as_it_is_and_adds_up_in_float32(monkeypatch):
    """Dense layers and pointwise convolutions, forward and backward: no cast, no copy, no launch."""
    backend = HostCupyBackend()
    monkeypatch.setattr("xpcnn.backend.base._by_type", {cupy.ndarray: backend})
    x, weight = (laid_out(shape, "plain", "float16") for shape in ((5, 4), (3, 5)))  # (in, N), (out, in)
    y, cache = F.linear(x.T, weight)
    np.testing.assert_array_equal(view(y).T, view(weight) @ view(x))
    dx, dweight, _ = F.linear_backward(y, cache)
    np.testing.assert_array_equal(view(dweight), view(y).T @ view(x).T)
    np.testing.assert_array_equal(view(dx).T, view(weight).T @ view(y).T)
    batch, filters = laid_out((5, 2, 3, 4), "plain", "float16"), laid_out((3, 5, 1, 1), "plain", "float16")
    y, _ = F.conv2d(batch.transpose(3, 0, 1, 2), filters)
    np.testing.assert_array_equal(view(y), np.einsum("fc,chwn->nfhw", view(filters)[:, :, 0, 0], view(batch)))
    assert {array.dtype for array in (y, dx, dweight)} == {np.dtype("float16")}
    assert {compute for _, compute in backend.library.calls} == {COMPUTE_32F}
    backend.allow_tf32 = True
    backend.matmul(weight, x)
    assert backend.library.calls[-1] == ("gemm", COMPUTE_32F)


def test_float16_goes_to_kernels_as_it_is_but_for_losses():
    """What a loss sums over has no room in float16; an array of each dtype is refused, and a master in float16."""
    backend = HostCupyBackend()
    launched = []
    backend.kernels.launch = lambda name, dtype, *rest: launched.append((name, dtype.char))
    a, single = (laid_out((2, 3), "plain", dtype) for dtype in ("float16", "float32"))
    assert fits(a)
    assert FUSED["relu_forward"](backend, a, a) is None
    assert FUSED["add_bias"](backend, a, laid_out((2, 1), "plain", "float16").reshape(2)) is None
    row_sums(backend, a, None)
    flags = {"decays": False, "nesterov": False, "shrinks": False}
    assert FUSED["sgd_update"](backend, single, a, single, rounded=a, **flags) is None
    assert launched == [("relu_forward", "e"), ("add_bias", "e"), ("row_sums", "e"), ("sgd_update", "e")]
    assert FUSED["relu_forward"](backend, a, single) is NotImplemented
    assert FUSED["sgd_update"](backend, a, a, a, **flags) is NotImplemented
    assert FUSED["softmax_cross_entropy"](backend, a, a, 1.0) is NotImplemented
    assert len(launched) == 4


@pytest.mark.parametrize(
    ("shape", "fit"), [((65535, 4), True), ((65536, 4), False), ((4, 0), False), ((2, 1 << 30), False)]
)
def test_float16_that_kernels_cannot_count_goes_through_float32(shape, fit):
    assert HostCupyBackend().stores_float16(shape) is fit


def test_tf32_is_a_switch_for_float32_alone():
    backend = HostCupyBackend()
    single, double = (laid_out((2, 2), "plain", dtype) for dtype in ("float32", "float64"))
    backend.matmul(single, single)
    backend.allow_tf32 = True
    backend.matmul(single, single)
    backend.matmul(double, double)
    kinds = [compute for _, compute in backend.library.calls]
    assert kinds[:2] == [COMPUTE_32F, COMPUTE_32F_FAST_TF32]
    assert kinds[2] not in (COMPUTE_32F, COMPUTE_32F_FAST_TF32)
