"""float16: every layer against itself in float64, and what `half` and `to` change."""

import copy

import numpy as np
import pytest

from xpcnn import manual_seed, nn
from xpcnn.backend import backend_of
from xpcnn.errors import DTypeError
from xpcnn.functional import softmax
from xpcnn.nn.precision import call, computes_in_float16

from .layers import LAYERS, in_float64, make

# Relative by norm, over results and all gradients: four roundings to 11 bits.
BOUND = 2e-3


@pytest.fixture(params=["through float32", "as it is"])
def product(request, backend, monkeypatch):
    """Products on copies in float32, and as a device makes them that multiplies float16 itself."""
    monkeypatch.setattr(backend, "multiplies_float16", request.param == "as it is")
    return backend


def host(array):
    return backend_of(array).to_numpy(array).astype("float64")


def error(found, expected):
    """Relative by norm over several arrays at once: a gradient that is zero in theory has no error of its own."""
    difference = sum(np.sum((a - b) ** 2) for a, b in zip(found, expected, strict=True))
    return float(np.sqrt(difference / sum(np.sum(b**2) for b in expected)))


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_against_float64(product, rng, name):
    layer, x = make(name, rng)
    x = (2 * x / np.abs(x).max()).astype("float16")
    exact = in_float64(copy.deepcopy(layer))
    layer.half()
    for mine, its in zip(layer.parameters(), exact.parameters(), strict=True):
        its.data = product.asarray(host(mine.data))  # the same weights, rounded
    manual_seed(0)  # the same masks
    y = layer(product.asarray(x))
    manual_seed(0)
    expected = exact(product.asarray(x.astype("float64")))
    dy = rng.normal(size=y.shape).astype("float16")
    dx, dx_expected = layer.backward(product.asarray(dy)), exact.backward(product.asarray(dy.astype("float64")))
    assert y.dtype == dx.dtype == np.float16
    assert error([host(y)], [host(expected)]) < BOUND
    gradients = [host(dx), *(host(p.grad) for p in layer.parameters())]
    assert error(gradients, [host(dx_expected), *(host(p.grad) for p in exact.parameters())]) < BOUND


@pytest.mark.parametrize("name", LAYERS)
def test_a_dy_of_another_dtype_is_refused_and_costs_nothing(backend, rng, name):
    layer, x = make(name, rng, "float16")
    layer.half()
    y = layer(backend.asarray(x))
    dy = np.ones(y.shape)
    if name not in ("Sequential of nothing",) and not name.startswith("Flatten"):
        with pytest.raises(DTypeError, match="dy: expected dtype float16, got float32"):
            layer.backward(backend.asarray(dy.astype("float32")))
    if not name.startswith("Residual"):  # whose body has been asked by then
        assert layer.backward(backend.asarray(dy.astype("float16"))).dtype == np.float16


def test_half_leaves_batch_norm_in_float32(backend):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
    net[2].register_buffer("drawn", backend.zeros((1,), "uint32"), persistent=False)
    assert not computes_in_float16(net)
    assert net.half() is net
    assert computes_in_float16(net)
    kinds = {name: str(array.dtype) for name, array in net.state_dict().items()}
    assert {kinds[f"{i}.{name}"] for i in (0, 4) for name in ("weight", "bias")} == {"float16"}
    assert {kinds[f"1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")} == {"float32"}
    assert all(p.grad.dtype == p.data.dtype for p in net.parameters())
    assert {str(array.dtype) for _, array in net.named_buffers()} == {"float32", "uint32"}
    net.float()
    assert {str(array.dtype) for array in net.state_dict().values()} == {"float32"}
    net.to(dtype=np.float64)
    assert {str(array.dtype) for array in net.state_dict().values()} == {"float64"}


def test_to_moves_and_casts(backend):
    net = nn.Linear(3, 2).to("numpy", dtype="float16")
    assert net.backend.name == "numpy"
    assert net.weight.data.dtype == np.float16


def test_layers_are_made_in_float16(backend):
    assert nn.Linear(3, 2, dtype="float16").weight.data.dtype == np.float16
    norm = nn.BatchNorm1d(3, dtype="float16")
    assert norm.weight.data.dtype == norm.running_var.dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("bfloat16", "got bfloat16, which NumPy has not and CuPy 14 only in part .* use float16 with optim.GradScaler"),
        ("int32", "dtype: expected float16, float32 or float64, got 'int32'"),
        (np.int8, "got 'int8'"),
        ("half", "got 'half'"),
    ],
)
def test_other_dtypes_are_refused(backend, dtype, message):
    net = nn.Linear(3, 2)
    with pytest.raises(DTypeError, match=message) as caught:
        net.to(dtype=dtype)
    assert "\n" not in str(caught.value)
    assert net.weight.data.dtype == np.float32


def test_call_takes_and_gives_float32(backend, rng):
    net = nn.Sequential(nn.Linear(4, 3)).half()
    x = rng.normal(size=(5, 4)).astype("float32")
    y = call(net, backend.asarray(x))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(host(y), host(net(backend.asarray(x.astype("float16")))))
    with pytest.raises(DTypeError, match="weight: expected the dtype of x, float32, got float16"):
        net(backend.asarray(x))


def test_losses_and_softmax_sum_in_float32(backend, rng):
    """A loss of 2,000 samples of one class has no room in float16, nor the sum of 3,000 exponentials."""
    logits = np.zeros((2000, 40), "float16")
    labels = backend.asarray(np.zeros(2000, "int64"))
    loss = nn.CrossEntropyLoss(reduction="sum")
    value = loss(backend.asarray(logits), labels)
    assert value.dtype == np.float32
    assert float(host(value)) == pytest.approx(2000 * np.log(40), rel=1e-6)
    assert loss.backward().dtype == np.float16
    mse = nn.MSELoss(reduction="sum")
    zeros = backend.asarray(np.zeros((100, 100), "float16"))
    assert float(host(mse(backend.asarray(np.full((100, 100), 4, "float16")), zeros))) == 160000
    assert mse.backward().dtype == np.float16
    x = rng.normal(size=(5, 3000)).astype("float16")
    exact = np.exp(x.astype("float64"))
    exact /= exact.sum(axis=1, keepdims=True)
    y = host(softmax(backend.asarray(x)))
    assert np.mean(y != exact.astype("float16")) < 1e-3  # but for those that lie between two roundings


def test_batch_norm_survives_what_float16_cannot_sum(product, rng):
    """A channel of 4,096 values of about 100: their sum is six times float16's largest number."""
    x = (100 + rng.normal(size=(4, 2, 32, 32))).astype("float16")
    norm = nn.BatchNorm2d(2).half()
    y = host(norm(product.asarray(x)))
    exact = x.astype("float64")
    exact = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.sqrt(exact.var((0, 2, 3), keepdims=True) + 1e-5)
    assert error([y], [exact]) < 5e-4
    assert host(norm.running_mean) == pytest.approx(0.1 * x.astype("float64").mean((0, 2, 3)), rel=1e-5)


def test_products_add_up_in_float32(product, rng):
    """4,096 terms of 1 + 2^-10 in float16 sums would stop at 2,048; gradients of a bias likewise."""
    layer = nn.Linear(4096, 1).half()
    layer.weight.data[...] = 1
    x = np.full((1, 4096), 1 + 2**-10, "float16")
    assert float(host(layer(product.asarray(x)))[0, 0]) == 4100
    layer = nn.Linear(1, 1).half()
    layer(product.asarray(x.T))
    layer.backward(product.asarray(np.ones((4096, 1), "float16")), input_gradient=False)
    assert float(host(layer.bias.grad)[0]) == 4096
    assert float(host(layer.weight.grad)[0, 0]) == 4100


def test_the_gradient_of_a_weight_adds_up_in_float32_over_tiles(product, monkeypatch):
    """Ninety-three rows, a tile each, of thirty-one ones: above 2,048 float16 sums would lose every odd one."""
    monkeypatch.setattr(product, "column_bytes", 1)
    layer = nn.Conv2d(1, 1, 3, bias=False).half()
    layer(product.asarray(np.ones((1, 1, 95, 33), "float16")))
    layer.backward(product.asarray(np.ones((1, 1, 93, 31), "float16")), input_gradient=False)
    np.testing.assert_array_equal(host(layer.weight.grad), np.float16(93 * 31))


def test_a_convolution_for_winograd_is_as_exact(backend, rng):
    """Whose transforms would lose two digits in float16."""
    layer = nn.Conv2d(16, 16, 3, padding=1).half()
    exact = in_float64(copy.deepcopy(layer))
    x = rng.normal(size=(12, 16, 8, 8)).astype("float16")
    y, expected = layer(backend.asarray(x)), exact(backend.asarray(x.astype("float64")))
    assert error([host(y)], [host(expected)]) < 4e-4
