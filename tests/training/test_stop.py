"""`Trainer.stop`: a training that a callback ends is a training that has ended, not an interrupted one."""

import itertools
import threading

import numpy as np
import pytest

from xpcnn.training import Checkpointer

from .common import arrays, assert_same, loader, net, trainer

pytestmark = pytest.mark.usefixtures("backend")


class Stop:
    """Calls `stop` at an event of a step."""

    def __init__(self, event, step, reason=""):
        self.step, self.reason = step, reason
        setattr(self, event, self._look)

    def _look(self, trainer):
        if trainer.step == self.step:
            trainer.stop(self.reason)


class Calls:
    def __init__(self):
        self.seen = []

    def on_epoch(self, trainer):
        self.seen.append(("epoch", trainer.epoch))

    def on_fit_end(self, trainer):
        self.seen.append(("end", trainer.step))


def test_after_a_step(backend):
    calls = Calls()
    mine = trainer(callbacks=[Stop("on_step", 8, "far enough"), calls])
    history = mine.fit(loader(), loader(shuffle=False), epochs=9)
    assert history is mine.history
    assert mine.stopped
    assert mine.stop_reason == "far enough"
    assert (mine.step, mine.epoch, mine.batch) == (8, 1, 2)
    assert len(history) == 8
    assert history.epochs["step"] == [6]
    assert calls.seen == [("epoch", 1), ("end", 8)]
    other = trainer()
    other.fit(loader(), epochs=1)
    assert list(other.history.steps["loss"]) == list(history.steps["loss"])[:6]


@pytest.mark.parametrize("event", ["on_step", "on_epoch"])
def test_after_an_epoch(event):
    """A step that was the last of its epoch ends it: validated, counted, reported."""
    calls = Calls()
    mine = trainer(callbacks=[Stop(event, 12), calls])
    history = mine.fit(loader(), loader(shuffle=False), epochs=9)
    assert history.epochs["step"] == [6, 12]
    assert np.isfinite(history.epochs["validation_loss"]).all()
    assert calls.seen == [("epoch", 1), ("epoch", 2), ("end", 12)]
    whole = trainer()
    whole.fit(loader(), epochs=2)
    assert_same(arrays(mine.model), arrays(whole.model))


def test_before_the_first_step():
    mine = trainer(callbacks=[Stop("on_fit_start", 0)])
    assert len(mine.fit(loader(), epochs=2)) == 0
    assert mine.stopped


def test_a_later_fit_begins_anew():
    stopper = Stop("on_step", 2)
    mine = trainer(callbacks=[stopper])
    mine.fit(loader(), epochs=2)
    mine.fit(loader(), epochs=1)
    assert not mine.stopped
    assert mine.stop_reason == ""
    assert (mine.step, mine.epoch, mine.batch) == (8, 1, 0)


def test_from_another_thread():
    class Wait:
        def on_step(self, trainer):
            if trainer.step == 3:
                thread = threading.Thread(target=trainer.stop)
                thread.start()
                thread.join()

    mine = trainer(callbacks=[Wait()])
    mine.fit(loader(), epochs=2)
    assert mine.step == 3


@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_stopped_training_can_be_resumed(tmp_path, step):
    stopped = trainer(callbacks=[Stop("on_step", step)], checkpoint=Checkpointer(tmp_path))
    stopped.fit(loader(), epochs=2)
    resumed = trainer(seed=99, checkpoint=Checkpointer(tmp_path))
    resumed.fit(loader(), epochs=2, resume=True)
    whole = trainer()
    whole.fit(loader(), epochs=2)
    assert_same(arrays(resumed.model), arrays(whole.model))
    assert resumed.history.steps == whole.history.steps


def test_without_a_length_the_epoch_counts_as_unfinished():
    class Endless:
        def __iter__(self):
            return itertools.cycle(iter(list(loader())[:2]))

    mine = trainer(model=net(), callbacks=[Stop("on_step", 5)])
    mine.fit(Endless())
    assert (mine.step, mine.epoch, mine.batch) == (5, 0, 5)
