"""Captured steps of the Trainer, on a device that records and replays them: the same numbers as step by step."""

import math

import numpy as np
import pytest

import xpcnn
from xpcnn import models, nn, optim
from xpcnn.backend import register_backend, use_backend
from xpcnn.data import DataLoader
from xpcnn.errors import BackendError
from xpcnn.training import Trainer

from . import FakeBackend
from .recording import RecordingBackend

OPTIMISERS = {
    "sgd": lambda p: optim.SGD(p, 0.01),
    "sgd momentum": lambda p: optim.SGD(p, 0.01, 0.9, weight_decay=1e-3, nesterov=True, shrink=1e-3),
    "adam": lambda p: optim.Adam(p, 1e-3),
    "adamw": lambda p: optim.AdamW(p, 1e-3, amsgrad=True),
    "rmsprop": lambda p: optim.RMSprop(p, 1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, 1e-2, lr_decay=0.1),
}


@pytest.fixture
def device():
    recording = RecordingBackend()
    register_backend(recording)
    with use_backend("fake"):
        yield recording
    register_backend(FakeBackend())


def small_net():
    """Everything whose capture could go wrong: convolution, batch norm, dropout, pooling, two strides of columns."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(6 * 3 * 3, 5),
    )  # fmt: skip


def trained(
    capture, optimiser="sgd momentum", *, epochs=3, samples=44, schedule=True, between=None, half=False, **options
):
    """Train on 44 images in batches of 8: five whole ones and a ragged last one in each epoch."""
    xpcnn.manual_seed(3)
    rng = np.random.default_rng(0)
    loader = DataLoader(rng.integers(0, 256, (samples, 12, 12), np.uint8), rng.integers(0, 5, samples), 8, seed=1)
    model = small_net().half() if half else small_net()
    optimizer = OPTIMISERS[optimiser](model.parameters())
    steps = optim.InverseTimeLR(optimizer, 0.1) if schedule else None
    trainer = Trainer(
        model, optimizer, nn.CrossEntropyLoss(), schedule=steps, compile=capture, callbacks=between or (), **options
    )
    trainer.fit(loader, loader, epochs=epochs)
    state = {name: xpcnn.get_backend().to_numpy(array).copy() for name, array in model.state_dict().items()}
    return list(trainer.history.steps["loss"]), state, trainer


def same(a, b):
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        np.testing.assert_array_equal(a[1][name], b[1][name], err_msg=name)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_captured_is_eager(device, optimiser):
    """Bit by bit, over a falling rate, dropout, batch norm, ragged batches, and evaluation after every epoch."""
    eager = trained(False, optimiser)
    assert device.records == 0
    captured = trained("auto", optimiser)
    assert device.records == 1
    same(captured, eager)
    assert len(set(captured[0])) == len(captured[0])


def test_clipping_and_skipping_are_recorded(device):
    same(trained("auto", clip_norm=0.5, nonfinite="skip"), trained(False, clip_norm=0.5, nonfinite="skip"))


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("optimiser", ["sgd momentum", "adam"])
def test_float16_with_a_scale_that_moves_is_recorded(device, optimiser, native):
    """Overflows, backing off and growth are decided by the record itself, on its own memory."""
    device.multiplies_float16 = native

    def run(capture):
        scaler = optim.GradScaler(2.0**23, growth_interval=3)
        done = trained(capture, optimiser, half=True, clip_norm=0.5, scaler=scaler)
        return done, scaler.state_dict(), done[2].skipped

    (captured, scale, skipped), (eager, its_scale, its_skipped) = run("auto"), run(False)
    assert device.records == 1
    same(captured, eager)
    assert scale == its_scale
    assert 5 < skipped == its_skipped < 15


class ChangeMomentum:
    """A change that alters the kind of update, in the middle of training."""

    def on_step(self, trainer):
        if trainer.step == 9:
            trainer.optimizer.param_groups[0].update(weight_decay=0.0, nesterov=False)


def test_another_kind_of_update_is_recorded_again(device):
    eager = trained(False, between=[ChangeMomentum()])
    captured = trained("auto", between=[ChangeMomentum()])
    assert device.records == 2
    same(captured, eager)


def test_what_cannot_be_recorded_is_said_once(device, monkeypatch):
    """A layer of ours that looks at a number of the device, as a mistake of ours would make it."""
    forward = nn.Flatten.forward

    def looking(self, x):
        xpcnn.get_backend().to_numpy(x)
        return forward(self, x)

    monkeypatch.setattr(nn.Flatten, "forward", looking)
    eager = trained(False)
    with pytest.warns(RuntimeWarning, match="runs as written: capture: .*copies to the host") as said:
        captured = trained("auto")
    assert len(said) == 1
    assert device.records == 0
    same(captured, eager)
    with pytest.raises(BackendError, match="cannot be recorded"):
        trained(True)


def test_labels_out_of_range_are_reported_from_a_record(device):
    model = models.create("tiny")
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss(), read_every=2)
    x = device.asarray(np.zeros((4, 1, 28, 28), np.float32))
    good, bad = (device.asarray(np.array(labels)) for labels in ([0, 1, 2, 3], [0, 1, 2, 11]))
    trainer.fit([(x, good)] * 8)
    assert device.records == 1
    with pytest.raises(xpcnn.errors.DataError, match="expected classes from 0 to 9"):
        trainer.fit([(x, good)] * 6 + [(x, bad)] + [(x, good)])


def test_a_number_fixed_in_a_record_would_be_seen(device):
    """The stand-in can fail: a Python number that should change stays what it was."""
    total, rate = device.zeros((1,), "float32"), [1.0]
    replay = device.capture(lambda: device.xp.add(total, rate[0], out=total))
    assert device.to_numpy(total)[0] == 0  # recorded, not run
    replay()
    rate[0] = math.pi
    replay()
    assert device.to_numpy(total)[0] == 2
