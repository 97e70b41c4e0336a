"""A convolution without columns before a batch norm, whose statistics come of its sums: layers, as they are trained."""

import numpy as np
import pytest

from xpcnn import nn
from xpcnn.backend import register_backend, use_backend
from xpcnn.backend.cupy.updates import FUSED

from .shim import ShimBackend

pytestmark = pytest.mark.gpu_static


@pytest.fixture
def implicit():
    """Stand where the backend "fake" stands, and convolve without columns."""
    from xpcnn import backend as switch

    before, device = switch._backends["fake"], ShimBackend()
    device.name, device.owns = "fake", before.owns
    device.implicit_gemm, device.keeps_columns = True, False  # as the setter of CuPy's backend has them
    register_backend(device)
    switch._by_type.clear()
    with use_backend("fake"):
        yield device
    register_backend(before)
    switch._by_type.clear()


def plain():
    return nn.Sequential(nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.BatchNorm2d(20), nn.ReLU())


def averaging():
    return nn.Sequential(nn.Conv2d(3, 20, 3, bias=False), nn.BatchNorm2d(20, momentum=None), nn.MaxPool2d(2), nn.ReLU())


def residual():
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1),
                         nn.BatchNorm2d(3))  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Residual(body), nn.ReLU())


def with_shortcut():
    body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5))
    short = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5))
    return nn.Sequential(nn.Residual(body, short), nn.ReLU())


NETS = {make.__name__: make for make in (plain, averaging, residual, with_shortcut)}
NORMS = {"plain": 1, "averaging": 1, "residual": 2, "with_shortcut": 2}


def values(rng, shape):
    """Random numbers that float16 holds."""
    return rng.standard_normal(shape).astype("float16")


def trained(make, backend, dtype, mean, batch):
    """Return what a forward and a backward give: y, dx, gradients, running statistics."""
    rng = np.random.default_rng(0)
    net = make()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data[...] = backend.asarray(values(rng, layer.weight.shape).astype("float32"))
            if layer.bias is not None:
                layer.bias.data[...] = backend.asarray((np.ones(layer.bias.size) * mean).astype("float32"))
    net.to(dtype=dtype)
    x = values(rng, (batch, 3, 8, 8)).astype(dtype)
    y = net(backend.asarray(x))
    dy = values(rng, y.shape).astype(dtype)
    dx = net.backward(backend.asarray(dy))
    arrays = y, dx, *(each.grad for each in net.parameters()), *(array for _, array in net.named_buffers())
    return [backend.to_numpy(each).astype("float64") for each in arrays]


@pytest.mark.parametrize(("mean", "bound"), [(0, 1e-5), (1e4, 3e-3)])  # at 10^4 float32 has steps of 10^-3
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("name", NETS)
def test_it_trains_as_numpy_does_in_float64(implicit, name, mean, bound, batch):
    found = trained(NETS[name], implicit, "float32", mean, batch)
    launched = implicit.kernels.launched
    assert launched.count("merge_moments") == launched.count("batch_norm_train") == NORMS[name]
    assert "batch_norm_sums" not in launched
    with use_backend("numpy") as numpy:
        agree(found, trained(NETS[name], numpy, "float64", mean, batch), bound)


@pytest.mark.parametrize(("dtype", "tf32"), [("float32", False), ("float32", True), ("float16", False)])
@pytest.mark.parametrize("mean", [0, 500])
@pytest.mark.parametrize("name", NETS)
def test_the_pass_that_it_saves_would_find_the_same(implicit, monkeypatch, name, dtype, tf32, mean):
    monkeypatch.setattr(implicit, "allow_tf32", tf32)
    found = trained(NETS[name], implicit, dtype, mean, 5)
    assert implicit.kernels.launched.count("merge_moments") == NORMS[name]
    monkeypatch.setattr(implicit, "fused", {each: FUSED[each] for each in FUSED if each != "conv2d_sums"})
    implicit.kernels.launched.clear()
    passed = trained(NETS[name], implicit, dtype, mean, 5)
    assert implicit.kernels.launched.count("batch_norm_sums") == NORMS[name]
    agree(found, passed, 1e-3 if dtype == "float16" else 1e-5)


def agree(found, expected, bound):
    for mine, exact in zip(found, expected, strict=True):
        # A bias before a batch norm has no gradient but what rounding leaves of a sum of numbers about 1.
        np.testing.assert_allclose(mine, exact, rtol=bound, atol=bound * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("how", ["evaluation", "frozen statistics", "hook", "float64", "groups", "switched off"])
def test_where_nothing_is_summed_up(implicit, how):
    groups, dtype = (3, "float32") if how == "groups" else (1, "float64" if how == "float64" else "float32")
    net = nn.Sequential(nn.Conv2d(3, 6, 3, groups=groups), nn.BatchNorm2d(6)).to(dtype=dtype)
    if how == "evaluation":
        net.eval()
    elif how == "frozen statistics":
        net[1].eval()
    elif how == "hook":
        net[0].register_forward_hook(lambda module, args, output: output * 2)
    elif how == "switched off":
        implicit.implicit_gemm = False
    y = net(implicit.asarray(np.ones((2, 3, 5, 5), dtype)))
    dx = net.backward(y)
    assert dx.shape == (2, 3, 5, 5)
    assert "merge_moments" not in implicit.kernels.launched
