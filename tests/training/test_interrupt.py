"""Signals: the step is finished, a checkpoint written, and the books agree whatever breaks a step off."""

import errno
import fcntl
import json
import os
import signal
import threading

import pytest

import xpcnn
from xpcnn import nn
from xpcnn.errors import DataError, StateError
from xpcnn.training import Checkpointer
from xpcnn.training.interrupt import Interruption, ending_signals_raise, unbroken
from xpcnn.training.lock import FolderLock

from .common import arrays, assert_same, loader, trainer

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Press:
    """Sends a signal to this process after a step."""

    def __init__(self, signum, step=3):
        self.signum, self.step = signum, step

    def on_step(self, made):
        if made.step == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_every_ending_signal_is_as_ctrl_c(backend, tmp_path, signum):
    whole = trainer()
    whole.fit(loader(), epochs=2)
    before = signal.getsignal(signum)
    made = trainer(checkpoint=Checkpointer(tmp_path), callbacks=[Press(signum)])
    with pytest.raises(Interruption, match="stopped after step 3") as caught:
        made.fit(loader(), epochs=2)
    assert caught.value.signum == signum
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signum) == before
    resumed = trainer(seed=1, checkpoint=Checkpointer(tmp_path))
    resumed.fit(loader(), epochs=2, resume=True)
    assert list(resumed.history.steps["loss"]) == list(whole.history.steps["loss"])
    assert_same(arrays(resumed.model), arrays(whole.model))


def test_nohup_and_handlers_of_the_user_s_stay(tmp_path):
    seen = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        made = trainer(callbacks=[Press(signal.SIGHUP, 2), Press(signal.SIGTERM, 3)])
        made.fit(loader(), epochs=1)
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert seen == [1]


def test_signals_outside_training_raise():
    with pytest.raises(Interruption, match="SIGTERM") as caught, ending_signals_raise():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def plain_net():
    xpcnn.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 3))


def batches(count):
    return [batch for _ in range(count) for batch in loader(shuffle=False, seed=0)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("where", ["loss", "backward", "step"])
def test_a_step_broken_off_leaves_the_books_in_order(backend, monkeypatch, where, error):
    """Whatever ends a step in its middle, the next ones are what they would have been in a new trainer."""
    made, same = (trainer(schedule="none", compile=False, model=plain_net(), clip_norm=0.5) for _ in range(2))
    data = batches(1)
    for x, y in data[:2]:
        made.train_batch(x, y)
    target, name = {
        "loss": (type(made.criterion), "backward"),
        "backward": (type(made.optimizer), "collect"),
        "step": (type(made.optimizer), "apply"),
    }[where]

    def fail(*arguments, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail)
        with pytest.raises(error):
            made.train_batch(*data[2])
    for x, y in data[3:]:
        made.train_batch(x, y)
    for x, y in data[:2] + data[3:]:
        same.train_batch(x, y)
    for each in (made, same):
        each.read()  # a device is asked for its losses now and then
    assert made.step == made.batch == len(made.history) == len(data) - 1
    assert list(made.history.steps["loss"]) == list(same.history.steps["loss"])
    assert_same(arrays(made.model), arrays(same.model))


def test_ctrl_c_within_a_step_waits_for_its_end(backend):
    made = trainer(schedule="none", compile=False)
    same = trainer(schedule="none", compile=False)
    data = batches(1)
    forward = made.model[0].forward

    def press(x):
        os.kill(os.getpid(), signal.SIGINT)
        return forward(x)

    made.model[0].forward = press
    xpcnn.manual_seed(6)
    for i, (x, y) in enumerate(data):
        with pytest.raises(KeyboardInterrupt):
            made.train_batch(x, y)
        made.read()
        assert made.step == len(made.history) == i + 1
    xpcnn.manual_seed(6)
    for x, y in data:
        same.train_batch(x, y)
    same.read()
    assert list(made.history.steps["loss"]) == list(same.history.steps["loss"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_unbroken_in_another_thread_and_with_an_error():
    seen = []
    thread = threading.Thread(target=lambda: unbroken(seen.append, 1))
    thread.start()
    thread.join()
    assert seen == [1]
    with pytest.raises(ZeroDivisionError):
        unbroken(lambda: 1 // 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- locks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_without_locks_are_said_to_be_such(tmp_path, monkeypatch, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = FolderLock(tmp_path)
    with pytest.warns(RuntimeWarning, match="no locks on this file system"):
        lock.acquire()
    lock.release()


def test_other_refusals_are_not_called_in_use(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError, match="expected to lock it, got Input/output error"):
        FolderLock(tmp_path).acquire()


# --- runs that begin at once --------------------------------------------------------------------------------------


def test_of_two_runs_one_has_the_folder(tmp_path, monkeypatch):
    """The second comes between the first's look at the folder and its first file; run.json stays the first's."""
    from tests.recipes.small import write_digits
    from xpcnn import recipes
    from xpcnn.recipes import sources

    data, out = write_digits(tmp_path / "digits"), tmp_path / "run"
    load = sources.load

    def slowly(*arguments):
        monkeypatch.setattr(sources, "load", load)
        recipes.run("conv8", data=data, epochs=1, seed=1, out=out)
        return load(*arguments)

    monkeypatch.setattr(sources, "load", slowly)
    with pytest.raises(DataError, match="holds a run already"):
        recipes.run("conv8", data=data, epochs=1, seed=2, out=out)
    assert json.loads((out / "run.json").read_text())["settings"]["seed"] == 1
    with FolderLock(tmp_path / "other" / "checkpoints"), pytest.raises(StateError, match="in use"):
        recipes.run("conv8", data=data, epochs=1, seed=2, out=tmp_path / "other")
    assert not (tmp_path / "other" / "run.json").exists()
    assert recipes.run("conv8", data=data, epochs=1, seed=2, out=tmp_path / "other").settings.seed == 2


def test_numbered_folders_are_each_one_s_own(tmp_path):
    from xpcnn.recipes.folder import make_new

    made = []
    threads = [threading.Thread(target=lambda: made.append(make_new(tmp_path / "runs" / "a"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.name for path in made}) == 20
