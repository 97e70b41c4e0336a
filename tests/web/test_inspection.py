"""What is shown of a network is what the network computes."""

import base64

import numpy as np
import pytest

from xpcnn import models, nn
from xpcnn.datasets import load_mnist
from xpcnn.errors import ConfigError, DataError
from xpcnn.explain import grad_cam
from xpcnn.training import Predictor
from xpcnn.web import Inspector


def values(found):
    """Return maps (C, h, w) as numbers again, to within a step of 255."""
    pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8)
    shares = pixels.reshape(found["count"], found["height"], found["width"]) / 255
    return found["low"] + shares * (found["high"] - found["low"])


def close(found, expected):
    expected = np.asarray(expected)
    step = (found["high"] - found["low"]) / 255
    np.testing.assert_allclose(values(found), expected, atol=0.51 * step + 1e-5)


@pytest.fixture
def digit():
    return load_mnist()[1].images[:1]


@pytest.fixture
def model(backend):
    return models.create("lenet5").eval()


def test_layers_are_the_networks_own(model, backend, digit):
    x = backend.asarray(np.pad(digit, [(0, 0), (2, 2), (2, 2)])[:, None].astype("float32") / 255)
    predictor = Predictor(model, image_shape=(1, 32, 32))
    found = Inspector(predictor).look(np.pad(digit, [(0, 0), (2, 2), (2, 2)])[:, None])
    close(found["seen"], backend.to_numpy(x)[0])
    wanted, y = [], x
    for path, layer in enumerate(model):
        y = layer(y)
        if y.ndim in (2, 4) and not isinstance(layer, (nn.Flatten, nn.Dropout)):
            wanted.append((str(path), type(layer).__name__, backend.to_numpy(y)[0]))
    assert [(each["path"], each["kind"]) for each in found["layers"]] == [each[:2] for each in wanted]
    for shown, (_, _, expected) in zip(found["layers"], wanted, strict=True):
        assert tuple(shown["shape"]) == expected.shape
        is_flat = expected.ndim == 1 or expected.shape[1:] == (1, 1)
        assert shown["flat"] is is_flat
        close(shown, expected.reshape(1, 1, -1)[..., :256] if is_flat else expected[:32])


def test_heat_is_grad_cam_of_the_last_convolution_that_has_rows(model, backend, digit):
    predictor = Predictor(model, digits=False, image_shape=(1, 32, 32))
    image = np.pad(digit, [(0, 0), (2, 2), (2, 2)])[:, None]
    found = Inspector(predictor).look(image, target=4)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    x = predictor.prepare(backend.asarray(image))
    expected = backend.to_numpy(grad_cam(model, x, 4, layer=convolutions[1]))
    assert expected.shape == (1, 10, 10)
    close(found["heat"], expected)
    assert found["heat"]["target"] == 4
    with pytest.raises(DataError, match="expected a class from 0 to 9, got 10"):
        Inspector(predictor).look(image, target=10)


def test_the_model_stays_as_it_is(model, backend, digit):
    model.train()
    before = {name: backend.to_numpy(array).copy() for name, array in model.state_dict().items()}
    Inspector(Predictor(model, image_shape=(1, 32, 32))).look(np.pad(digit, [(0, 0), (2, 2), (2, 2)]))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(backend.to_numpy(array), before[name])


def test_a_large_network_is_shown_in_part(backend):
    model = models.create("resnet20").eval()
    found = Inspector(Predictor(model, image_shape=(3, 32, 32))).look(np.zeros((1, 3, 32, 32), np.uint8))
    kinds = [each["kind"] for each in found["layers"]]
    assert len(kinds) <= 25
    assert set(kinds[:-1]) == {"Conv2d"}
    assert kinds[-1] == "Linear"
    assert max(each["count"] for each in found["layers"]) == 32


def test_large_maps_are_shown_by_means(backend):
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(1, 2)).eval()
    pixels = np.arange(130 * 100, dtype=np.uint8).reshape(1, 1, 130, 100)
    found = Inspector(Predictor(model, image_shape=(1, 130, 100))).look(pixels)
    layer = found["layers"][0]
    padded = np.pad(pixels[0, 0], [(0, 2), (0, 2)], mode="edge") / 255
    blocks = [[padded[i : i + 3, j : j + 3].mean() for j in range(0, 102, 3)] for i in range(0, 132, 3)]
    assert (layer["kind"], layer["shape"]) == ("ReLU", (1, 130, 100))
    close(layer, np.array(blocks)[None])


def test_features_and_one_score(backend):
    model = nn.Sequential(nn.Linear(5, 1)).eval()
    found = Inspector(Predictor(model, classes=["no", "yes"], image_shape=(5,))).look(np.ones((1, 5), "float32"))
    assert len(found["probabilities"]) == 2
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert found["heat"] is None
    assert "no images with rows" in found["no_heat"]
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(2, 1)).eval()
    inspector = Inspector(Predictor(images, image_shape=(1, 8, 8)))
    picture = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    assert inspector.look(picture, target=1)["heat"]["target"] == 1
    assert "explains the second class" in inspector.look(picture, target=0)["no_heat"]


def test_half_precision(backend, digit):
    model = models.create("tiny").eval()
    expected = Inspector(Predictor(model, image_shape=(28, 28))).look(digit)
    found = Inspector(Predictor(model.half(), image_shape=(28, 28))).look(digit)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=5e-3)
    assert found["heat"] is not None


def test_how_one_draws():
    grey = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(2, 2))
    assert Inspector(Predictor(grey, image_shape=(28, 28))).draws == "light"
    assert Inspector(Predictor(grey, digits=True)).draws == "dark"
    colour = nn.Sequential(nn.Conv2d(3, 2, 3), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(2, 2))
    assert Inspector(Predictor(colour, image_shape=(3, 28, 28))).draws is None


def test_wants_a_predictor():
    with pytest.raises(ConfigError, match="expected a Predictor, such as load_model gives, got Sequential"):
        Inspector(nn.Sequential())
