"""Training on real digits: what a change of the maths, of a layer or of an update must never cost.

The bounds lie about two points below what a seed gives; each net sees a few thousand images, so that a run takes
seconds. The recipes at their full length are `nox -s seeds`.
"""

import numpy as np
import pytest

import xpcnn
from xpcnn import data, models, nn, optim
from xpcnn.data import DataLoader
from xpcnn.datasets import load_mnist
from xpcnn.training import Trainer

pytestmark = pytest.mark.convergence


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


PLAIN = data.ToFloat()
WIDE = data.Compose(data.ToFloat(), data.Normalize(0.1307, 0.3081), data.Pad(2))  # the 32x32 of LeNet
CENTRED = data.Compose(data.ToFloat(), data.Normalize(0.5, 1.0))


def train(mnist, net, optimizer, *, images=6_000, batch_size=64, epochs=1, transform=PLAIN, seed=0, scaler=None):
    """Train on the first images and return the accuracy on the first 2,000 of the test set."""
    learn, test = mnist
    loader = DataLoader(learn.images[:images], learn.labels[:images], batch_size, seed=seed, transform=transform)
    trainer = Trainer(net, optimizer, nn.CrossEntropyLoss(), scaler=scaler)
    trainer.fit(loader, epochs=epochs)
    unseen = DataLoader(test.images[:2_000], test.labels[:2_000], 500, shuffle=False, transform=transform)
    return trainer.evaluate(unseen).accuracy, trainer


def test_lenet5(backend, mnist):
    net = models.create("lenet5")
    update = optim.SGD(net.parameters(), 0.1, momentum=0.9, shrink=4e-5)
    accuracy, _ = train(mnist, net, update, images=10_000, batch_size=128, transform=WIDE)
    assert accuracy > 0.93


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_deep3(backend, mnist, pooling):
    net = models.create("deep3", pooling=pooling)
    accuracy, _ = train(mnist, net, optim.Adam(net.parameters(), 1e-3))
    assert accuracy > 0.89


def test_tiny(backend, mnist):
    net = models.create("tiny")
    accuracy, _ = train(mnist, net, optim.SGD(net.parameters(), 0.05, momentum=0.9))
    assert accuracy > 0.84


def test_conv8_one_image_at_a_time(backend, mnist):
    net = models.create("conv8")
    accuracy, _ = train(
        mnist, net, optim.SGD(net.parameters(), 0.005), images=1_000, batch_size=1, epochs=2,
        transform=CENTRED,
    )  # fmt: skip
    assert accuracy > 0.78


def test_float16_ends_near_float32(backend, mnist):
    """LeNet-5 on 10,000 images: within one point of accuracy, and 0.05 of loss, of the same training in float32."""
    ends = []
    for half in (False, True):
        xpcnn.manual_seed(0)
        net = models.create("lenet5")
        update = optim.SGD(net.parameters(), 0.1, momentum=0.9, shrink=4e-5)
        scaler = None
        if half:
            net.half()
            scaler = optim.GradScaler(2.0**24)  # the first steps overflow
        accuracy, trainer = train(mnist, net, update, images=10_000, batch_size=128, transform=WIDE, scaler=scaler)
        ends.append((accuracy, np.mean(trainer.history.steps["loss"][-20:])))
    assert 0 < trainer.skipped < 15
    (plain, its_loss), (narrow, loss) = ends
    assert narrow > 0.93
    assert abs(narrow - plain) <= 0.01
    assert abs(loss - its_loss) < 0.05


UPDATES = {
    "SGD": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.02, momentum=0.9, weight_decay=1e-4),
    "Nesterov": lambda p: optim.SGD(p, 0.02, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, 2e-3),
    "AdamW": lambda p: optim.AdamW(p, 2e-3),
    "RMSprop": lambda p: optim.RMSprop(p, 1e-3),
    "Adagrad": lambda p: optim.Adagrad(p, 1e-2),
}


@pytest.mark.parametrize("name", UPDATES)
def test_every_optimiser_learns(backend, mnist, name):
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(288, 10)
    )
    accuracy, _ = train(mnist, net, UPDATES[name](net.parameters()), images=4_000, batch_size=32, epochs=2)
    assert accuracy > 0.82


def test_a_seed_gives_the_same_bits_again(backend, mnist):
    states = []
    for _ in range(2):
        xpcnn.manual_seed(3)
        net = models.create("lenet5")
        train(mnist, net, optim.SGD(net.parameters(), 0.05, momentum=0.9), images=1_000, transform=WIDE, seed=3)
        states.append([backend.to_numpy(array).copy() for array in net.state_dict().values()])
    for first, second in zip(*states, strict=True):
        assert np.array_equal(first, second)
