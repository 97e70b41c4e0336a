"""Saliency and Grad-CAM against slopes measured by moving pixels and feature maps; nothing of the model changes."""

import numpy as np
import pytest

import xpcnn
from xpcnn import explain, get_backend, nn, optim
from xpcnn.backend import backend_of
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError, StateError

pytestmark = pytest.mark.usefixtures("backend")


def net(dtype="float64"):
    xpcnn.manual_seed(5)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Residual(body), nn.Tanh(),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 5),
    )  # fmt: skip
    made = made.to(dtype=dtype)
    rng = np.random.default_rng(1)
    for name, buffer in made.named_buffers():
        if "running" in name:
            buffer[...] = get_backend().asarray(rng.random(buffer.shape) + 0.5, buffer.dtype)
    return made


def images(count=2, dtype="float64"):
    return get_backend().asarray(np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(dtype))


def host(array):
    return backend_of(array).to_numpy(array).copy()


def scores(model, x):
    modes = [(module, module.training) for module in model.modules()]
    with nn.no_grad():
        y = host(model.eval()(x))
    for module, training in modes:
        module.training = training
    return y


@pytest.mark.parametrize("target", [None, 2, [4, 1], np.int64(2), np.array(3), np.array([4, 1]), range(2)])
def test_saliency_against_moved_pixels(target):
    model, x = net(), images()
    classes = scores(model, x).argmax(axis=1) if target is None else np.broadcast_to(target, 2)
    found = host(explain.saliency(model, x, target))
    assert found.shape == (2, 8, 8)
    plain, h = host(x), 1e-6
    slopes = np.zeros((2, 3, 8, 8))
    for c in range(3):
        for i in range(8):
            for j in range(8):
                sides = []
                for sign in (1, -1):
                    moved = plain.copy()
                    moved[:, c, i, j] += sign * h
                    sides.append(scores(model, get_backend().asarray(moved))[[0, 1], classes])
                slopes[:, c, i, j] = (sides[0] - sides[1]) / (2 * h)
    np.testing.assert_allclose(found, abs(slopes).max(axis=1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layer", [None, "0", "2", "4", "4.body.0", "4.body.2", "5"])
def test_grad_cam_against_moved_maps(layer):
    """The mean slope of a map is the score's answer to a number that is added to all of it, by a hook."""
    model, x = net(), images()
    modules = dict(model.named_modules())
    inner = modules[layer or "4.body.0"]
    seen = []
    with inner.register_forward_hook(lambda module, args, output: seen.append(host(output))):
        classes = scores(model, x).argmax(axis=1)
    maps, h = seen[0], 1e-6
    weights = np.zeros(maps.shape[:2])
    for k in range(maps.shape[1]):
        sides = []
        for sign in (1, -1):
            step = np.zeros((1, maps.shape[1], 1, 1))
            step[0, k] = sign * h
            there = get_backend().asarray(step)
            with inner.register_forward_hook(lambda module, args, output, there=there: output + there):
                sides.append(scores(model, x)[[0, 1], classes])
        weights[:, k] = (sides[0] - sides[1]) / (2 * h) / maps[0, 0].size
    expected = np.maximum((weights[:, :, None, None] * maps).sum(axis=1), 0)
    found = host(explain.grad_cam(model, x, layer=layer))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(host(explain.grad_cam(model, x, layer=inner)), found)
    assert found.max() > 0


@pytest.mark.parametrize("explained", [explain.saliency, explain.grad_cam])
def test_the_model_stays_as_it_is(explained):
    model = net().train()
    optimizer = optim.SGD(model.parameters(), 0.1)
    x = images(4)
    y = model(x)  # a step of the user's own is under way
    before = {name: host(value) for name, value in model.state_dict().items()}
    freezes = [parameter.requires_grad for parameter in model.parameters()]
    explained(model, x)
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == freezes
    assert all(not host(parameter.grad).any() for parameter in model.parameters())
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(host(value), before[name])
    model.backward(y)
    optimizer.step()
    with pytest.raises(StateError):
        model.backward(y)


def test_one_image_and_other_precisions():
    model, x = net("float32"), images(1, "float32")
    single = explain.saliency(model, x[0])
    np.testing.assert_array_equal(host(single), host(explain.saliency(model, x)))
    assert str(single.dtype) == "float32"
    half = explain.grad_cam(net("float32").half(), x)
    np.testing.assert_allclose(host(half), host(explain.grad_cam(model, x)), rtol=0.05, atol=0.01)
    assert str(half.dtype) == "float32"


def test_layers_of_one_s_own():
    class Double(nn.Module):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return dy * 2

    model = nn.Sequential(nn.Conv2d(3, 2, 3), Double(), nn.Flatten(), nn.Linear(72, 4)).to(dtype="float64")
    assert explain.grad_cam(model, images(), layer=model[1]).shape == (2, 6, 6)


SHARED = nn.ReLU()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, x: explain.saliency(m, x[0, 0]),
            ShapeError,
            r"x: expected \(N, C, H, W\) or \(C, H, W\), got \(8, 8\)",
        ),
        (lambda m, x: explain.saliency("net", x), ConfigError, "model: expected an nn.Module, got str"),
        (lambda m, x: explain.saliency(m, x, 5), DataError, "target: expected a class from 0 to 4, got 5"),
        (lambda m, x: explain.saliency(m, x, [1]), ShapeError, "target: expected a class, or one for each of 2 images"),
        (lambda m, x: explain.saliency(m, x, [1, 0.5]), DTypeError, "target: expected integers, got 0.5"),
        (lambda m, x: explain.saliency(m, x, 1.0), DTypeError, "target: expected integers, got 1.0"),
        (lambda m, x: explain.saliency(m, x, "a"), DTypeError, "target: expected integers, got 'a'"),
        (lambda m, x: explain.saliency(m[:3], x), ShapeError, r"model: expected scores \(N, K\) from it"),
        (lambda m, x: explain.grad_cam(m, x, layer="9"), ConfigError, r"layer: expected one of 0, 1, .*, got '9'"),
        (lambda m, x: explain.grad_cam(m, x, layer=nn.ReLU()), ConfigError, "layer: expected a layer of the model"),
        (
            lambda m, x: explain.grad_cam(m, x, layer="8"),
            ShapeError,
            r"layer: expected one with a result \(N, K, h, w\)",
        ),
        (
            lambda m, x: explain.grad_cam(m[7:], x[:, :1, :6, :6]),
            ConfigError,
            "layer: expected a Conv2d in the model",
        ),
        (
            lambda m, x: explain.grad_cam(nn.Sequential(SHARED, m[0], SHARED, *m[1:]), x, layer=SHARED),
            ConfigError,
            "layer: expected one that is called once in a forward, got '0', 2 calls",
        ),
    ],
)
def test_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call(net(), images())
