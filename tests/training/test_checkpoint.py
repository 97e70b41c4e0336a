"""Checkpoints: a training that goes on from one equals one that was never stopped; damage is found and told."""

import contextlib
import copy
import itertools
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpcnn
from tests.mutations import check_reader
from xpcnn import nn
from xpcnn.backend import backend_of, use_backend
from xpcnn.errors import ConfigError, DataError, StateError
from xpcnn.training import Checkpointer, FolderLock, load_parameters, save_parameters
from xpcnn.training.checkpoint import ARRAYS, NUMBERS, read_checkpoint

from .common import OPTIMISERS, SCHEDULES, StopAfter, arrays, assert_same, loader, net, trainer

pytestmark = pytest.mark.usefixtures("backend")

PAIRS = [(o or "momentum", s or "step") for o, s in itertools.zip_longest(OPTIMISERS, SCHEDULES)]


def undisturbed(optimiser, schedule, epochs=3, **options):
    mine = trainer(optimiser, schedule)
    mine.fit(loader(**options), loader(shuffle=False), epochs=epochs)
    return mine


def assert_same_training(a, b):
    assert_same(arrays(a.model), arrays(b.model))
    ours, theirs = a.optimizer.state_dict(), b.optimizer.state_dict()
    assert_same(ours, theirs)
    assert a.history.steps == b.history.steps
    for name in ("step", "loss", "accuracy", "validation_loss", "validation_accuracy"):
        np.testing.assert_array_equal(a.history.epochs[name], b.history.epochs[name])
    assert (a.step, a.epoch, a.batch) == (b.step, b.epoch, b.batch)


def stop_and_resume(folder, optimiser, schedule, steps, epochs=3, **options):
    """Train, end at each of `steps`, and go on in a new trainer each time."""
    for stop in [*steps, None]:
        checkpointer = Checkpointer(folder, every_steps=1, every_seconds=None, keep=2)
        callbacks = [] if stop is None else [StopAfter(stop)]
        # Another seed: everything must come from the checkpoint.
        mine = trainer(optimiser, schedule, seed=0 if stop == steps[0] else 99, callbacks=callbacks)
        mine.checkpoint = checkpointer
        try:
            mine.fit(loader(**options), loader(shuffle=False), epochs=epochs, resume=True)
        except StopAfter.Stopped:
            assert stop is not None
    return mine


@pytest.mark.parametrize(("optimiser", "schedule"), PAIRS)
def test_resumed_equals_undisturbed(optimiser, schedule, tmp_path, backend):
    rng = np.random.default_rng(len(optimiser) + len(schedule))
    steps = sorted(int(step) for step in rng.choice(np.arange(2, 18), 3, replace=False))
    resumed = stop_and_resume(tmp_path, optimiser, schedule, steps)
    assert_same_training(resumed, undisturbed(optimiser, schedule))


@settings(max_examples=8)
@given(
    stop=st.integers(2, 17),
    options=st.sampled_from([{}, {"seed": 5}, {"shuffle": False}, {"replacement": True}, {"drop_last": True}]),
)
def test_resumed_anywhere_with_any_loader(stop, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    if options.get("drop_last"):
        stop = min(stop, 14)
    resumed = stop_and_resume(folder, "adam", "cosine", [stop], **options)
    assert_same_training(resumed, undisturbed("adam", "cosine", **options))


def test_resume_over_plain_batches(tmp_path):
    """An iterable without a position: what was done is passed over."""
    with_loader = list(loader(seed=1))
    straight = trainer()
    straight.fit(with_loader, epochs=2)
    for stop in (8, None):
        mine = trainer(callbacks=[StopAfter(8)] if stop else [])
        mine.checkpoint = Checkpointer(tmp_path, every_steps=1)
        with contextlib.suppress(StopAfter.Stopped):
            mine.fit(with_loader, epochs=2, resume=True)
    assert_same(arrays(straight.model), arrays(mine.model))


def test_resume_on_another_backend(tmp_path, other_backend):
    """Not bit by bit, but the same training."""
    mine = trainer(callbacks=[StopAfter(8)])
    mine.checkpoint = Checkpointer(tmp_path, every_steps=1)
    with pytest.raises(StopAfter.Stopped):
        mine.fit(loader(), epochs=2)
    with use_backend(other_backend):
        other = trainer()
        other.checkpoint = Checkpointer(tmp_path)
        other.fit(loader(), epochs=2, resume=True)
    straight = trainer()
    straight.fit(loader(), epochs=2)
    assert list(other.history.steps["loss"]) == pytest.approx(list(straight.history.steps["loss"]), rel=1e-3)


def test_a_finished_training_has_nothing_left_to_do(tmp_path):
    for _ in range(2):
        mine = trainer()
        mine.checkpoint = Checkpointer(tmp_path)
        history = mine.fit(loader(), epochs=2, resume=True)
        assert len(history) == 12
    longer = trainer()
    longer.checkpoint = Checkpointer(tmp_path)
    assert len(longer.fit(loader(), epochs=3, resume=True)) == 18


class TestWhenAndWhich:
    def run(self, folder, epochs=2, validation=None, **options):
        mine = trainer(checkpoint=Checkpointer(folder, **options))
        mine.fit(loader(), validation, epochs=epochs)
        return mine.checkpoint

    def test_by_steps(self, tmp_path):
        checkpointer = self.run(tmp_path, every_steps=4, every_seconds=None, every_epochs=None, keep=10)
        assert checkpointer.steps() == [4, 8]  # step 12 ends an epoch, which `every_epochs` speaks for

    def test_by_epochs(self, tmp_path):
        assert self.run(tmp_path, every_seconds=None, keep=10).steps() == [6, 12]

    def test_by_time(self, tmp_path):
        checkpointer = Checkpointer(tmp_path, every_seconds=10.0, every_epochs=None, keep=10)
        clock = itertools.count()  # asked once a step: a second each
        checkpointer.clock = lambda: float(next(clock))
        trainer(checkpoint=checkpointer).fit(loader(), epochs=5)
        steps = checkpointer.steps()
        assert len(steps) == 2 or len(steps) == 3
        assert min(b - a for a, b in itertools.pairwise(steps)) >= 9

    def test_the_newest_and_the_best_stay(self, tmp_path):
        checkpointer = Checkpointer(tmp_path, every_steps=2, every_seconds=None, keep=2)
        mine = trainer(checkpoint=checkpointer)
        accuracies = iter([0.2, 0.9, 0.3, 0.9, 0.1])
        evaluate = mine.evaluate
        mine.evaluate = lambda data: type(evaluate(data))(0.0, next(accuracies), 1)
        mine.fit(loader(), loader(), epochs=5)
        assert checkpointer.steps() == [12, 28, 30]
        assert checkpointer.best().numbers["step"] == 12

    def test_the_best_is_known_after_a_resume(self, tmp_path):
        for accuracies in ([0.9], [0.1, 0.2, 0.3]):
            checkpointer = Checkpointer(tmp_path, every_seconds=None, keep=1)
            mine = trainer(checkpoint=checkpointer)
            values = iter(accuracies)
            evaluate = mine.evaluate
            mine.evaluate = lambda data, values=values, evaluate=evaluate: type(evaluate(data))(0.0, next(values), 1)
            mine.fit(loader(), loader(), epochs=1 if len(accuracies) == 1 else 4, resume=True)
        assert checkpointer.steps() == [6, 24]

    def test_without_validation_the_lowest_loss_is_best(self, tmp_path):
        checkpointer = self.run(tmp_path, epochs=3, every_seconds=None, keep=1)
        losses = trainer()
        losses.fit(loader(), epochs=3)
        best = int(np.argmin(losses.history.epochs["loss"]))
        assert checkpointer.best().numbers["step"] == (best + 1) * 6


def loop(model, optimizer, schedule, batches, compiled):
    """Train by hand; return the losses."""
    criterion, losses = nn.CrossEntropyLoss(), []

    def step(x, target):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        model.backward(criterion.backward(), input_gradient=False)
        optimizer.step()
        return loss

    run = xpcnn.compile(step) if compiled else step
    for x, target in batches:
        losses.append(backend_of(x).to_numpy(run(x, target)).item())
        schedule.step()
    return losses


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("optimiser", "schedule"), [("momentum", "cosine"), ("adam", "step")])
def test_a_loop_of_ones_own_resumes_from_all_states(backend, optimiser, schedule, compiled):
    """Of model, optimiser, schedule and random numbers: a net with dropout goes on with the masks it would have had."""

    def make(seed):
        xpcnn.manual_seed(seed)
        model = net()
        optimizer = OPTIMISERS[optimiser](model.parameters())
        return model, optimizer, SCHEDULES[schedule](optimizer)

    batches = list(loader(seed=0))[:5] * 2
    straight = make(0)
    first = loop(*straight, batches[:6], compiled)
    states = copy.deepcopy([part.state_dict() for part in straight]), xpcnn.random.get_state()
    rest = loop(*straight, batches[6:], compiled)
    resumed = make(1)
    for part, state in zip(resumed, states[0], strict=True):
        part.load_state_dict(state)
    xpcnn.random.set_state(states[1])
    assert loop(*resumed, batches[6:], compiled) == rest
    assert len(first) == 6
    assert_same(arrays(straight[0]), arrays(resumed[0]))
    assert_same(straight[1].state_dict(), resumed[1].state_dict())


def write_one(folder, **options):
    mine = trainer(checkpoint=Checkpointer(folder, every_seconds=None), **options)
    mine.fit(loader(), epochs=1)
    return mine.checkpoint.path(6)


@pytest.mark.parametrize("file", [ARRAYS, NUMBERS])
def test_any_damage_is_found(file, tmp_path):
    """A damaged checkpoint ends in DataError or is read as what was written; nothing in between."""
    path = write_one(tmp_path)
    good = read_checkpoint(path)
    content = (path / file).read_bytes()

    def check(state):
        assert_same(state.arrays, good.arrays)
        assert json.dumps(state.numbers, sort_keys=True) == json.dumps(good.numbers, sort_keys=True)

    check_reader(f"checkpoint {file}", lambda _: read_checkpoint(path), content, path / file, check=check)


def test_a_damaged_checkpoint_is_told_and_the_older_one_is_left(tmp_path):
    mine = trainer(checkpoint=Checkpointer(tmp_path, every_seconds=None))
    mine.fit(loader(), epochs=2)
    newest = mine.checkpoint.path(12)
    content = bytearray((newest / ARRAYS).read_bytes())
    content[-5] ^= 1
    (newest / ARRAYS).write_bytes(content)
    other = trainer(checkpoint=Checkpointer(tmp_path))
    with pytest.raises(DataError, match="damaged file; remove step-0000000012") as caught:
        other.fit(loader(), epochs=3, resume=True)
    assert "\n" not in str(caught.value)
    assert other.step == 0
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert len(other.fit(loader(), epochs=3, resume=True)) == 18


def forge(path, change_numbers=None, change_arrays=None):
    """Rewrite a checkpoint with valid checksums, as a stranger could."""
    state = read_checkpoint(path)
    if change_numbers:
        change_numbers(state.numbers)
    if change_arrays:
        change_arrays(state.arrays)
    Checkpointer(path.parent).write(state)


class Counting(nn.Module):
    """Passes x on and counts its calls in a buffer that belongs to checkpoints alone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", self.backend.zeros((1,), "uint32"), persistent=False)

    def forward(self, x):
        self.seen += 1
        return x

    def backward(self, dy):
        return dy


@pytest.mark.parametrize(
    ("numbers", "tensors"),
    [
        (lambda n: n.pop("epoch"), None),
        (lambda n: n.update(epoch=-1), None),
        (lambda n: n.update(batch="1"), None),
        (lambda n: n.update(totals=[1]), None),
        (lambda n: n.update(totals=[float("nan")] * 5), None),
        (lambda n: n.update(schedule=None), None),
        (lambda n: n.update(schedule={"last_step": 1e400}), None),
        (lambda n: n.update(optimizer=[]), None),
        (lambda n: n["optimizer"].update({"group.0.lr": None}), None),
        (lambda n: n.update(random={}), None),
        (lambda n: n.update(random={"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}}), None),
        (lambda n: n.update(random=7), None),
        (lambda n: n.update(loader=None), None),
        (lambda n: n["loader"].update(batch_size=9), None),
        (None, lambda a: a.pop("model.0.weight")),
        (None, lambda a: a.update({"model.9.weight": a["model.0.weight"]})),
        (None, lambda a: a.update({"model.0.weight": a["model.0.weight"].astype("float64")})),
        (None, lambda a: a.update({"model.0.weight": a["model.0.weight"][:1].copy()})),
        (None, lambda a: a.update({"other.0.weight": a["model.0.weight"]})),
        (None, lambda a: a.pop("buffer.7.seen")),
        (None, lambda a: a.pop("optimizer.state.0.velocity")),
        (None, lambda a: a.update({"optimizer.group.0.lr": a["model.0.weight"]})),
        (None, lambda a: a.pop("history.steps.loss")),
        (None, lambda a: a.pop("history.epochs.loss")),
        (None, lambda a: a.update({"history.epochs.step": a["history.epochs.step"] * float("nan")})),
        (None, lambda a: a.update({"history.steps.loss": a["history.steps.loss"][:2].copy()})),
        (None, lambda a: a.update({"history.steps.loss": a["history.steps.loss"].astype("float32")})),
    ],
)
def test_a_checkpoint_of_another_training_changes_nothing(numbers, tensors, tmp_path):
    forge(write_one(tmp_path, model=nn.Sequential(*net(), Counting())), numbers, tensors)
    mine = trainer(seed=5, model=nn.Sequential(*net(), Counting()), checkpoint=Checkpointer(tmp_path))
    before, optimiser = arrays(mine.model), mine.optimizer.state_dict()
    with pytest.raises(DataError, match="checkpoint: expected one of this training") as caught:
        mine.fit(loader(), epochs=2, resume=True)
    assert "\n" not in str(caught.value)
    assert_same(before, arrays(mine.model))
    assert_same(optimiser, mine.optimizer.state_dict())
    assert (mine.step, mine.epoch, len(mine.history)) == (0, 0, 0)


def test_another_net_optimiser_or_schedule(tmp_path):
    write_one(tmp_path)
    others = [
        trainer(model=nn.Sequential(nn.Flatten(), nn.Linear(36, 3))),
        trainer("adam"),
        trainer(schedule="none"),
        trainer(schedule="one-cycle"),
    ]
    for other in others[:3]:
        other.checkpoint = Checkpointer(tmp_path)
        with pytest.raises(DataError, match="checkpoint: expected one of this training"):
            other.fit(loader(), epochs=2, resume=True)


def test_a_folder_with_checkpoints_is_not_begun_anew(tmp_path):
    write_one(tmp_path)
    other = trainer(checkpoint=Checkpointer(tmp_path))
    with pytest.raises(ConfigError, match=r"expected a folder without checkpoints.*resume=True"):
        other.fit(loader())


def test_a_checkpoint_gets_its_name_when_it_is_whole(tmp_path, monkeypatch):
    rename, whole = os.rename, []

    def watch(source, target):
        if not source.name.startswith("step-"):
            assert not target.exists()
            assert {file.name for file in source.iterdir()} == {ARRAYS, NUMBERS}
            read_checkpoint(source)
            whole.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "rename", watch)
    write_one(tmp_path)
    assert whole == ["step-0000000006"]


def test_two_trainings_in_one_folder(tmp_path):
    with FolderLock(tmp_path):
        mine = trainer(checkpoint=Checkpointer(tmp_path))
        with pytest.raises(StateError, match=rf"in use \(process {os.getpid()}\)"):
            mine.fit(loader())
    mine.fit(loader())
    # The lock is gone with the training.
    again = trainer(checkpoint=Checkpointer(tmp_path))
    again.fit(loader(), epochs=2, resume=True)


def test_two_processes_in_one_folder(tmp_path):
    code = (
        "import sys\nfrom xpcnn.training import FolderLock\nfrom xpcnn.errors import StateError\n"
        "try:\n    FolderLock(sys.argv[1]).acquire()\nexcept StateError as error:\n    sys.exit(str(error))\n"
    )
    with FolderLock(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"got a folder that is in use (process {os.getpid()})" in done.stderr
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0


class TestNoRoom:
    @pytest.fixture
    def started(self, tmp_path):
        path = write_one(tmp_path)
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        yield tmp_path
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
        assert not list(tmp_path.glob(".step*"))

    def test_full_disk(self, started, monkeypatch):
        """No space half-way through the second file."""
        import pathlib

        written = pathlib.Path.write_bytes

        def full(self, data):
            if self.name == "state.json":
                written(self, data[:10])
                raise OSError(28, "No space left on device")
            return written(self, data)

        monkeypatch.setattr(pathlib.Path, "write_bytes", full)
        mine = trainer(checkpoint=Checkpointer(started, every_steps=2))
        with pytest.raises(DataError, match=r"No space left on device.*what was saved before is untouched") as caught:
            mine.fit(loader(), epochs=2, resume=True)
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs setrlimit")
    def test_file_size_limit(self, started):
        """The kernel itself refuses, in a process of its own."""
        code = f"""
import resource, signal, sys
from tests.training.common import loader, trainer
from xpcnn.training import Checkpointer
from xpcnn.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
mine = trainer(checkpoint=Checkpointer({str(started)!r}, every_steps=2))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    mine.fit(loader(), epochs=2, resume=True)
except DataError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert re.match(r".*step-0000000008: expected to write it, got 'File too large'", done.stdout)

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_folder(self, started):
        started.chmod(0o500)
        try:
            mine = trainer(checkpoint=Checkpointer(started))
            with pytest.raises(DataError, match="Permission denied"):
                mine.fit(loader(), epochs=2, resume=True)
        finally:
            started.chmod(0o700)

    def test_a_file_where_the_folder_should_be(self, tmp_path):
        (tmp_path / "run").write_text("")
        mine = trainer(checkpoint=Checkpointer(tmp_path / "run"))
        with pytest.raises(DataError, match="run: expected to write it"):
            mine.fit(loader())


class Press:
    """Presses Ctrl-C in the middle of a step."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_step(self, trainer):
        if trainer.step == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


class TestCtrlC:
    def test_the_step_is_finished_and_saved(self, tmp_path):
        mine = trainer(checkpoint=Checkpointer(tmp_path, every_seconds=None), callbacks=[Press(8)])
        with pytest.raises(KeyboardInterrupt, match=r"stopped after step 8 .*step-0000000008 is written, .*--resume"):
            mine.fit(loader(), loader(shuffle=False), epochs=3)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        resumed = trainer(seed=9, checkpoint=Checkpointer(tmp_path))
        resumed.fit(loader(), loader(shuffle=False), epochs=3, resume=True)
        assert_same_training(resumed, undisturbed("momentum", "step"))

    @pytest.mark.parametrize("step", [6, 12])
    def test_at_the_last_batch_of_an_epoch(self, step, tmp_path):
        mine = trainer(checkpoint=Checkpointer(tmp_path, every_seconds=None), callbacks=[Press(step)])
        with pytest.raises(KeyboardInterrupt):
            mine.fit(loader(), loader(shuffle=False), epochs=3)
        resumed = trainer(seed=9, checkpoint=Checkpointer(tmp_path))
        resumed.fit(loader(), loader(shuffle=False), epochs=3, resume=True)
        assert_same_training(resumed, undisturbed("momentum", "step"))

    def test_twice_breaks_off_at_once(self, tmp_path):
        mine = trainer(checkpoint=Checkpointer(tmp_path, every_seconds=None), callbacks=[Press(8, times=2)])
        with pytest.raises(KeyboardInterrupt) as caught:
            mine.fit(loader(), epochs=3)
        assert not str(caught.value)
        assert mine.checkpoint.steps() == [6]

    def test_without_a_checkpoint(self):
        mine = trainer(callbacks=[Press(3)])
        with pytest.raises(KeyboardInterrupt, match=r"stopped after step 3 .*nothing was saved"):
            mine.fit(loader())
        assert len(mine.history) == 3

    def test_a_handler_of_the_users_own_stays(self):
        calls = []
        previous = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
        try:
            trainer(callbacks=[Press(3)]).fit(loader())
        finally:
            signal.signal(signal.SIGINT, previous)
        assert calls == [1]


class TestParameters:
    def test_there_and_back(self, backend, tmp_path):
        mine = trainer()
        mine.fit(loader())
        save_parameters(mine.model, tmp_path / "model.safetensors")
        other = trainer(seed=1)
        load_parameters(other.model, tmp_path / "model.safetensors")
        assert_same(arrays(mine.model), arrays(other.model))

    def test_damaged_files(self, tmp_path):
        path = tmp_path / "model.safetensors"
        model = net()
        save_parameters(model, path)
        check_reader("parameters", lambda file: load_parameters(net(), file), path.read_bytes(), path)

    def test_another_model(self, tmp_path):
        path = tmp_path / "model.safetensors"
        save_parameters(net(), path)
        other = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        before = arrays(other)
        with pytest.raises(DataError, match=r"model.safetensors: expected .*another model"):
            load_parameters(other, path)
        assert_same(before, arrays(other))

    def test_no_file(self, tmp_path):
        with pytest.raises(DataError, match=r"nothing.safetensors: expected a safetensors or PyTorch file to read"):
            load_parameters(net(), tmp_path / "nothing.safetensors")
        with pytest.raises(DataError, match="expected to write it"):
            save_parameters(net(), tmp_path / "no" / "folder.safetensors")


@pytest.mark.parametrize(
    "options", [{"every_steps": 0}, {"every_seconds": -1}, {"every_epochs": True}, {"keep": 0}, {"keep": 1.5}]
)
def test_wrong_arguments(options, tmp_path):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: expected"):
        Checkpointer(tmp_path, **options)
