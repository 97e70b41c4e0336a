import math
from functools import partial

import numpy as np
import pytest

from xpcnn import nn, optim
from xpcnn.datasets import load_mnist
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.testing import initial_loss_check, overfit_check


def classifier(std, width=32):
    spread = partial(nn.init.normal, std=std)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width, weight_init=spread), nn.ReLU(), nn.Linear(width, 10, weight_init=spread)
    )


def state_of(backend, net):
    return {name: backend.to_numpy(array).copy() for name, array in net.state_dict().items()}


def unchanged(backend, net, before):
    return all(np.array_equal(backend.to_numpy(array), before[name]) for name, array in net.state_dict().items())


def test_small_weights_give_the_loss_of_no_opinion(backend):
    report = initial_loss_check(classifier(1e-3), (1, 28, 28), 10)
    assert report
    assert report.loss == pytest.approx(math.log(10), rel=0.01)
    assert "ok" in str(report)


def test_large_weights_fail_the_check(backend):
    net = classifier(0.5)
    before = state_of(backend, net)
    report = initial_loss_check(net, (1, 28, 28), 10)
    assert not report
    assert "are the initial weights too large?" in str(report)
    assert unchanged(backend, net, before)


def test_the_number_of_classes_must_be_the_models(backend):
    with pytest.raises(ShapeError, match=r"model: expected logits of shape \(50, 11\), got \(50, 10\)"):
        initial_loss_check(classifier(1e-3), (1, 28, 28), 11)


def test_a_hundred_images_are_learnt_by_heart(backend):
    train, _ = load_mnist()
    x = (train.images[:100, None] / 255.0).astype("float32")
    net = classifier(0.05, width=100)
    before = state_of(backend, net)
    report = overfit_check(net, x, train.labels[:100].astype(np.int64), optimizer=partial(optim.Adam, lr=5e-3))
    assert report, str(report)
    assert len(report.losses) == 40
    assert report.losses[-1] < report.losses[0]
    assert unchanged(backend, net, before)


def test_a_network_that_does_not_learn_fails_the_check(backend, rng):
    x, labels = rng.normal(size=(20, 1, 28, 28)).astype("float32"), rng.integers(0, 10, 20)
    report = overfit_check(classifier(1e-3), x, labels, epochs=1, optimizer=partial(optim.SGD, lr=0.0))
    assert not report
    assert "check backward, learning rate, initial weights" in str(report)
    with pytest.raises(ConfigError, match="expected 1 or more, got 0, 20 and 50"):
        overfit_check(classifier(1e-3), x[:0], labels[:0])
