"""A network that classifies every pixel: trained by its Trainer, measured pixel by pixel."""

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn, optim
from xpcnn.errors import ShapeError
from xpcnn.training import Trainer
from xpcnn.training.metrics import write_hits


def unet():
    """One level of a U-Net: down, up again, beside what came before."""
    below = nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.ConvTranspose2d(8, 4, 2, 2)
    )
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Concat(nn.Identity(), below), nn.Conv2d(8, 3, 1))


def test_it_learns(backend, rng):
    x = values(rng, (6, 1, 8, 8), "float32")
    labels = (x[:, 0] > -0.5).astype("int64") + (x[:, 0] > 0.5)
    labels[:, 0] = 255
    model = unet()
    criterion = nn.CrossEntropyLoss(weight=[1.0, 2.0, 1.0], ignore_index=255)
    trainer = Trainer(model, optim.Adam(model.parameters(), 0.02), criterion)
    data = [(backend.asarray(x), backend.asarray(labels))] * 10
    before = trainer.evaluate(data)
    trainer.fit(data, epochs=4)
    after = trainer.evaluate(data)
    assert after.loss < before.loss / 2
    with nn.no_grad():
        predicted = backend.to_numpy(model.eval()(data[0][0])).argmax(axis=1)
    assert after.accuracy == pytest.approx(np.mean(predicted == labels))
    assert np.mean(predicted[:, 1:] == labels[:, 1:]) > 0.8
    assert np.allclose(backend.to_numpy(nn.Inference(model)(data[0][0])).argmax(axis=1), predicted)


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_hits_are_shares_of_pixels(backend, rng, as_probabilities):
    logits, labels = values(rng, (3, 4, 5, 2), "float32"), rng.integers(0, 4, (3, 5, 2))
    out = backend.zeros((), "float64")
    given = np.moveaxis(np.eye(4, dtype="float32")[labels], -1, 1) if as_probabilities else labels
    write_hits(backend.asarray(logits), backend.asarray(given), out)
    assert float(backend.to_numpy(out)) == pytest.approx(np.sum(logits.argmax(1) == labels) / 10)
    with pytest.raises(ShapeError, match=r"labels: expected \(N,\) or \(N, K\)"):
        write_hits(backend.asarray(logits), backend.asarray(labels[:, :1]), out)
