"""Numbers too small for the processor's fast path are set to zero, and no others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn import nn, optim
from xpcnn.backend import use_backend
from xpcnn.data import DataLoader
from xpcnn.training import Trainer

SMALLEST = np.finfo(np.float32).tiny


def denormals(array):
    size = np.abs(array)
    return int(((size > 0) & (size < SMALLEST)).sum())


def test_only_the_negligible_goes():
    values = np.array([1.0, -1e-29, 1e-37, -1e-40, 0.0, 1e-45, -3.0], np.float32)
    parameter = nn.Parameter(values.copy())
    optimizer = optim.Adam([parameter], 1e-3)
    optimizer.collect()
    optimizer.flush_denormals()
    assert np.array_equal(parameter.data, np.array([1.0, -1e-29, 1e-37, 0, 0, 0, -3.0], np.float32))


UPDATES = {
    "adam": lambda parameters: optim.Adam(parameters, 0.01, eps=1e-20),
    "amsgrad": lambda parameters: optim.Adam(parameters, 0.01, eps=1e-20, amsgrad=True),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, 0.01, eps=1e-20),
    "centered": lambda parameters: optim.RMSprop(parameters, 0.01, eps=1e-20, centered=True, momentum=0.9),
    "adagrad": lambda parameters: optim.Adagrad(parameters, 0.01, eps=1e-20),
    "sgd": lambda parameters: optim.SGD(parameters, 0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", UPDATES)
@given(exponent=st.integers(-25, 0), seed=st.integers(0, 999))
def test_no_step_can_tell(name, exponent, seed):
    """Squares of gradients near 1e-20 are denormal themselves, and yet what steps are divided by."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=8).astype(np.float32)
    pair = [nn.Parameter(start.copy()) for _ in "ab"]
    optimizers = [UPDATES[name]([parameter]) for parameter in pair]
    for step in range(12):
        gradient = (rng.normal(size=8) * 10.0**exponent).astype(np.float32)
        gradient[:2] = 0 if step > 4 else gradient[:2]  # a unit that dies
        for parameter, optimizer in zip(pair, optimizers, strict=True):
            parameter.grad = gradient.copy()
            optimizer.step()
        optimizers[0].flush_denormals()
        np.testing.assert_allclose(pair[0].data, pair[1].data, rtol=1e-6, atol=1e-30)


def test_float64_has_no_need_of_it():
    parameter = nn.Parameter(np.array([1e-40]))
    optimizer = optim.SGD([parameter], 0.1)
    optimizer.collect()
    optimizer.flush_denormals()
    assert parameter.data[0] == 1e-40


def test_a_device_is_left_alone():
    with use_backend("fake") as backend:
        parameter = nn.Parameter(backend.asarray(np.array([1e-40], np.float32)))
        optimizer = optim.SGD([parameter], 0.1)
        optimizer.collect()
        optimizer.flush_denormals()
        assert backend.to_numpy(parameter.data)[0] > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: optim.SGD(parameters, 0.01, momentum=0.9),
        lambda parameters: optim.Adam(parameters, 1e-3, weight_decay=1e-3),
        lambda parameters: optim.RMSprop(parameters, 1e-3, momentum=0.9),
    ],
    ids=["sgd", "adam", "rmsprop"],
)
def test_a_trainer_leaves_no_denormals_behind(rng, make):
    """Half of the pixels go dark: their weights' momentum decays through the denormals, but for the trainer."""
    images, labels = rng.random((64, 4, 4), np.float32), rng.integers(0, 10, 64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    optimizer = make(net.parameters())
    trainer = Trainer(net, optimizer, nn.CrossEntropyLoss())
    trainer.fit(DataLoader(images, labels, 64), epochs=2)
    images[:, :2] = 0
    trainer.fit(DataLoader(images, labels, 64), epochs=1278)  # a multiple of 64 in all
    state = [value for value in optimizer.state_dict().values() if hasattr(value, "shape")]
    assert sum(denormals(array) for array in (*state, *(p.data for p in net.parameters()))) == 0
