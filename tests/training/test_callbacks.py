"""Callbacks of the user's own: when each event comes, and states that go into checkpoints and back."""

import numpy as np
import pytest

from xpcnn import get_backend
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import Checkpointer

from .common import StopAfter, arrays, assert_same, loader, trainer

pytestmark = pytest.mark.usefixtures("backend")


class Order:
    """Notes what comes when, with what is known then."""

    def __init__(self, folder):
        self.seen, self.folder = [], folder

    def checkpoints(self):
        return len(list(self.folder.glob("step-*")))

    def on_fit_start(self, made):
        self.seen.append(("start", made.epoch, made.completed))

    def on_metrics(self, made):
        self.seen.append(("metrics", made.epoch, len(made.history.epochs["loss"]), self.checkpoints()))

    def on_epoch(self, made):
        self.seen.append(("epoch", made.epoch, len(made.history.epochs["loss"]), self.checkpoints()))

    def on_fit_end(self, made):
        self.seen.append(("end", made.epoch, made.completed))


def test_metrics_come_before_the_checkpoint_and_the_epoch_after_it(tmp_path):
    order = Order(tmp_path)
    made = trainer(callbacks=[order], checkpoint=Checkpointer(tmp_path))
    made.fit(loader(), loader(shuffle=False), epochs=2)
    assert order.seen == [
        ("start", 0, False),
        ("metrics", 1, 1, 0), ("epoch", 1, 1, 1),
        ("metrics", 2, 2, 1), ("epoch", 2, 2, 2),
        ("end", 2, True),
    ]  # fmt: skip
    assert not made.resumed


class Sums:
    """Adds up first weights on the device, and counts."""

    def __init__(self):
        self.total, self.losses = get_backend().asarray(np.zeros((4, 1, 3, 3), "float32")), []

    def on_step(self, made):
        self.total = self.total + made.model[0].weight.data

    def on_metrics(self, made):
        self.losses.append(made.history.epochs["loss"][-1])

    def state_dict(self):
        return {"total": self.total, "losses": self.losses, "nested": {"a": [1, None, float("inf")]}}

    def load_state_dict(self, state):
        if state["nested"] != {"a": [1, None, float("inf")]}:
            raise DataError("nested: expected what was saved")
        self.total, self.losses = get_backend().asarray(state["total"]), list(state["losses"])


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_states_are_saved_and_restored(tmp_path, stop):
    def made(*others, seed=0):
        return trainer(seed=seed, callbacks=[Sums(), *others], checkpoint=Checkpointer(tmp_path, every_steps=1))

    with pytest.raises(StopAfter.Stopped):
        made(StopAfter(stop + 1)).fit(loader(), epochs=2)
    resumed = made(seed=9)
    resumed.fit(loader(), epochs=2, resume=True)
    assert resumed.resumed
    whole = trainer(callbacks=[Sums()])
    whole.fit(loader(), epochs=2)
    backend = get_backend()
    np.testing.assert_array_equal(*(backend.to_numpy(each.callbacks[0].total) for each in (resumed, whole)))
    assert resumed.callbacks[0].losses == whole.callbacks[0].losses


def test_one_that_refuses_its_state_leaves_the_trainer_as_it_was(tmp_path):
    mine = trainer(callbacks=[Sums()], checkpoint=Checkpointer(tmp_path))
    mine.fit(loader(), epochs=1)

    class Refuses(Sums):
        def load_state_dict(self, state):
            if state["losses"]:
                raise KeyError("losses")

    Refuses.__name__ = "Sums"
    other = trainer(seed=3, callbacks=[Refuses()], checkpoint=Checkpointer(tmp_path))
    before = arrays(other.model)
    with pytest.raises(DataError, match="checkpoint: expected one of this training, got a different one"):
        other.fit(loader(), epochs=2, resume=True)
    assert_same(arrays(other.model), before)
    assert other.step == 0


def test_a_state_that_no_file_takes(tmp_path):
    class Wrong(Sums):
        def state_dict(self):
            return {"model": object()}

    made = trainer(callbacks=[Wrong()], checkpoint=Checkpointer(tmp_path))
    with pytest.raises(ConfigError, match=r"callbacks: expected arrays, numbers, .* in Wrong\.state_dict\(\), "):
        made.fit(loader(), epochs=1)
    assert not list(tmp_path.glob("step-*"))
