"""A whole training step on the fake device: no value travels to the host, and no product needs a hidden copy."""

import numpy as np
import pytest

from xpcnn import models, nn, optim
from xpcnn.backend import use_backend

from . import capture, counters

INPUTS = {"lenet5": (1, 32, 32), "deep3": (1, 28, 28), "tiny": (1, 28, 28), "conv8": (1, 28, 28),
          "three-layer": (3, 32, 32), "resnet20": (3, 32, 32), "vgg8": (3, 32, 32)}  # fmt: skip
OPTIMISERS = {
    "SGD": lambda p: optim.SGD(p, 0.01, momentum=0.9, weight_decay=1e-4),
    "Adam": lambda p: optim.Adam(p),
}


def prepare(name, optimiser):
    """Return a step over arrays that are on the device already, and what holds its loss."""
    net = models.create(name)
    update = OPTIMISERS[optimiser](net.parameters())
    criterion = nn.CrossEntropyLoss()
    losses = []

    def step(x, labels):
        update.zero_grad()
        losses.append(criterion(net(x), labels))
        net.backward(criterion.backward(), input_gradient=False)
        update.collect()
        update.apply()

    return net, update, step, losses


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", INPUTS)
def test_a_step_never_waits_for_the_device(rng, name, optimiser):
    with use_backend("fake") as backend:
        _, update, step, losses = prepare(name, optimiser)
        x = backend.asarray(rng.normal(size=(2, *INPUTS[name])).astype("float32"))
        labels = backend.asarray(rng.integers(0, 10, 2))
        update.upload()
        step(x, labels)  # makes what is kept from step to step
        update.upload()
        counters.reset()
        with capture():
            step(x, labels)
        assert (counters.syncs, counters.downloads, counters.uploads) == (0, 0, 0)
        assert counters.matmul_copies == []
        assert counters.view_copies == []
        assert all(np.isfinite(backend.to_numpy(loss)) for loss in losses)


@pytest.mark.parametrize("name", INPUTS)
def test_what_works_in_place_passes_the_view_itself(rng, name):
    """CuPy copies an operand first that is another view of where the result goes."""
    with use_backend("fake") as backend:
        net = models.create(name).eval()
        x = backend.asarray(rng.normal(size=(2, *INPUTS[name])).astype("float32"))
        counters.reset()
        net(x)
        nn.Inference(net)(x)
        assert counters.view_copies == []


def test_another_view_of_the_result_is_noticed(rng):
    with use_backend("fake") as backend:
        x = backend.asarray(rng.normal(size=(2, 3)).astype("float32"))
        counters.reset()
        backend.xp.add(x, 1, out=x)
        assert counters.view_copies == []
        backend.xp.add(x.reshape(2, 3), 1, out=x)
        assert counters.view_copies == ["add (2, 3)"]


@pytest.mark.parametrize("name", ["lenet5", "deep3", "resnet20"])
def test_the_fake_device_and_numpy_train_alike(rng, name):
    x = rng.normal(size=(4, *INPUTS[name])).astype("float32")
    labels = rng.integers(0, 10, 4)

    def train(backend_name):
        from xpcnn.random import manual_seed

        manual_seed(5)
        with use_backend(backend_name) as backend:
            net, update, step, losses = prepare(name, "SGD")
            for _ in range(3):
                update.upload()
                step(backend.asarray(x), backend.asarray(labels))
            state = {key: backend.to_numpy(array) for key, array in net.state_dict().items()}
            return [float(backend.to_numpy(loss)) for loss in losses], state

    (losses, state), (other_losses, other_state) = train("numpy"), train("fake")
    assert losses == pytest.approx(other_losses, rel=1e-4)
    for key, array in state.items():
        assert np.allclose(array, other_state[key], rtol=1e-3, atol=1e-4), key
