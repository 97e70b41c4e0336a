"""What an evaluation runs: the inference form of the model as it is now, and modules of one's own where they are."""

import pytest

from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.testing import assert_close
from xpcnn.training.evaluation import evaluate, fastest_forward

from .common import arrays, assert_same, loader, trainer


def by_hand(model, batches):
    """Mean loss and accuracy of the model itself."""
    criterion, losses, hits, count = nn.CrossEntropyLoss(), 0.0, 0, 0
    backend = model.backend
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for x, labels in batches:
        with nn.no_grad():
            logits = model(x)
        losses += float(backend.to_numpy(criterion(logits, labels))) * len(labels)
        hits += int((backend.to_numpy(logits).argmax(axis=1) == backend.to_numpy(labels)).sum())
        count += len(labels)
    for module, training in modes:
        module.training = training
    return losses / count, hits / count


def test_an_evaluation_follows_the_training(backend):
    mine = trainer()
    for _ in range(3):
        mine.fit(loader())
        before = arrays(mine.model)
        found = evaluate(mine.model, nn.CrossEntropyLoss(), loader(shuffle=False))
        assert_same(before, arrays(mine.model))
        loss, accuracy = by_hand(mine.model, loader(shuffle=False))
        assert found.loss == pytest.approx(loss, rel=1e-5)
        assert found.accuracy == accuracy


def test_ours_are_folded_and_ones_own_are_not(backend, rng):
    class Own(nn.ReLU):
        """As the library's."""

    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    assert isinstance(fastest_forward(plain), nn.Inference)
    mixed = nn.Sequential(nn.Conv2d(1, 2, 3), Own())
    assert fastest_forward(mixed) is mixed
    x = backend.asarray(values(rng, (3, 1, 8, 8), "float32"))
    plain.eval()
    with nn.no_grad():
        assert_close(fastest_forward(plain)(x), plain(x), tolerance=1e-5)
