"""Recorded steps: on a device that forbids, while it records, what CUDA forbids; and what may not be recorded."""

import numpy as np
import pytest

import xpcnn
from tests.fake_device import FakeBackend
from tests.fake_device.recording import RecordingBackend
from xpcnn import nn
from xpcnn.backend import register_backend, use_backend
from xpcnn.errors import BackendError, NonFiniteError

from .common import arrays, assert_same, loader, trainer


class CapturingBackend(RecordingBackend):
    """Counts replays, and refuses to record where it is told to."""

    name = "capturing"
    tools = (*RecordingBackend.tools, __file__)
    replays = 0
    refuses = False

    def owns(self, array):
        return False  # its arrays are the fake device's; `for_array` finds this one

    def capture(self, step):
        if self.refuses:
            raise BackendError("capture: the step cannot be recorded")
        replay = super().capture(step)

        def count():
            self.replays += 1
            replay()

        return count


@pytest.fixture
def device(monkeypatch):
    backend = CapturingBackend()
    monkeypatch.setattr(FakeBackend, "for_array", lambda self, array: backend)
    register_backend(backend)
    with use_backend("capturing"):
        yield backend


def fit(capture_steps, optimiser="momentum", schedule="exponential", **options):
    mine = trainer(optimiser, schedule, compile=capture_steps, **options)
    mine.fit(loader(), epochs=3)
    return mine


@pytest.mark.parametrize("optimiser", ["momentum", "adam", "rmsprop"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"nonfinite": "skip"}])
def test_recorded_steps_are_the_steps(device, optimiser, options):
    recorded, plain = fit(True, optimiser, **options), None
    assert device.records == 1
    assert device.replays == 3 * 5 - 3  # the ragged last batches and the first three steps run as written
    plain = fit(False, optimiser, **options)
    assert device.records == 1
    assert_same(arrays(recorded.model), arrays(plain.model))
    assert recorded.history.steps == plain.history.steps


def test_auto_records_layers_of_the_users_own(device):
    class Custom(nn.Module):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return dy * 2

    for steps in ("auto", False):
        model = trainer().model
        mine = trainer(model=nn.Sequential(Custom(), *model), compile=steps)
        mine.fit(loader(), epochs=2)
        assert device.records == 1


def test_a_new_kind_of_update_is_recorded_anew(device):
    batches = list(loader(seed=0))[:5]
    both = [trainer("sgd", "none"), trainer("sgd", "none", compile=False)]
    for mine in both:
        xpcnn.manual_seed(1)  # the same masks
        mine.fit(batches)
        mine.optimizer.param_groups[0]["momentum"] = 0.9
        mine.fit(batches)
    assert device.records == 2
    assert_same(arrays(both[0].model), arrays(both[1].model))


def test_what_cannot_be_recorded_runs_as_written(device):
    device.refuses = True
    with pytest.warns(RuntimeWarning, match="runs as written: capture: the step cannot be recorded"):
        mine = fit("auto")
    device.refuses = False
    assert_same(arrays(mine.model), arrays(fit(False).model))
    device.refuses = True
    with pytest.raises(BackendError, match="cannot be recorded"):
        fit(True)


def test_a_bad_step_among_recorded_ones(device):
    batches = list(loader(seed=0))[:5] * 2
    x, labels = batches[7]
    host = device.to_numpy(x).copy()
    host[0, 0, 0, 0] = np.inf
    bad = [*batches[:7], (device.asarray(host), labels), *batches[8:]]
    good = trainer("adam", "none")
    good.fit(batches[:7])
    mine = trainer("adam", "none", read_every=50)
    with pytest.raises(NonFiniteError, match="step 8"):
        mine.fit(bad)
    assert_same(arrays(good.model), arrays(mine.model))


def test_the_callers_batches_are_not_written(backend):
    batches = [(x, labels) for x, labels in loader(seed=0)]
    before = [(backend.to_numpy(x).copy(), backend.to_numpy(labels).copy()) for x, labels in batches]
    trainer().fit(batches, epochs=3)
    for (x, labels), (x0, labels0) in zip(batches, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(x), x0)
        np.testing.assert_array_equal(backend.to_numpy(labels), labels0)
