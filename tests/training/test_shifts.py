"""Probabilities averaged over shifts of an image, against shifts made pixel by pixel."""

import numpy as np
import pytest

from xpcnn import nn, recipes
from xpcnn.data import DataLoader
from xpcnn.errors import ShapeError, XpcnnError
from xpcnn.training import Predictor, load_model, save_model
from xpcnn.training.shifts import shifted


def network(size=5):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size * (size + 2), 3))


def images(rng, count=4, size=5):
    return rng.random((count, 2, size, size + 2)).astype("float32")


def moved(x, down, right):
    """Return images (N, C, H, W) moved, pixel by pixel; what comes in is the nearest pixel that there was."""
    out = np.empty_like(x)
    rows, columns = x.shape[2:]
    for i in range(rows):
        for j in range(columns):
            out[:, :, i, j] = x[:, :, min(max(i - down, 0), rows - 1), min(max(j - right, 0), columns - 1)]
    return out


def expected(model, x, shift):
    """Return the mean of softmax(model(x)) over the nine images, in float64."""
    backend, total = model.backend, 0.0
    for down in (-shift, 0, shift):
        for right in (-shift, 0, shift):
            logits = backend.to_numpy(model.eval()(backend.asarray(moved(x, down, right)))).astype(float)
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            total = total + shares / shares.sum(axis=1, keepdims=True)
    return total / 9


@pytest.mark.parametrize("shift", [1, 2, 7])
def test_a_predictor_averages(backend, rng, shift, tmp_path):
    model, x = network(), images(rng)
    wanted = expected(model, x, shift)
    found = Predictor(model, image_shape=x.shape[1:], average_shifts=shift)
    np.testing.assert_allclose(backend.to_numpy(found.probabilities(x)), wanted, rtol=1e-5)
    save_model(model, tmp_path / "a", image_shape=x.shape[1:], average_shifts=shift)
    read = load_model(tmp_path / "a")
    assert read.average_shifts == shift
    np.testing.assert_allclose(backend.to_numpy(read.probabilities(x)), wanted, rtol=1e-5)


def test_an_evaluation_is_of_the_average(backend, rng):
    model, x, labels = network(), images(rng, 7), rng.integers(0, 3, 7)
    found = recipes.evaluate(model, DataLoader(x, labels, 3, shuffle=False), average_shifts=1)
    wanted = expected(model, x, 1)
    np.testing.assert_allclose(backend.to_numpy(found.probabilities), wanted, rtol=1e-5)
    assert found.metrics.loss == pytest.approx(-np.log(wanted[range(7), labels]).mean(), rel=1e-5)
    assert found.metrics.accuracy == (wanted.argmax(axis=1) == labels).mean()


def test_a_class_that_is_ruled_out_has_a_loss(backend):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data[...] = backend.asarray([[1e4] * 4, [-1e4] * 4], "float32")
    loader = DataLoader(np.ones((1, 1, 2, 2), "float32"), [1], 1, shuffle=False)
    assert 80 < recipes.evaluate(model, loader, average_shifts=1).metrics.loss < 90, "-log of the least float32"


def test_shifts_lie_as_layers_have_them(backend, rng):
    x = backend.asarray(images(rng))
    assert all(each.transpose(1, 2, 3, 0).flags.c_contiguous for each in shifted(x, 1))


def test_mistakes(backend):
    for wrong in (-1, 0.5, True, "1"):
        with pytest.raises(XpcnnError, match="average_shifts: expected"):
            Predictor(network(), average_shifts=wrong)
    with pytest.raises(ShapeError, match=r"average_shifts: expected images \(N, C, H, W\) to shift, got .* \(1, 4\)"):
        Predictor(nn.Linear(4, 2), image_shape=(4,), average_shifts=1).probabilities(np.ones((1, 4)))
