"""The life of worker processes: how they start, fail, are interrupted, and leave nothing behind."""

import os
import signal
import threading

import numpy as np
import pytest

from xpcnn.backend.numpy import regions, workers
from xpcnn.backend.numpy.arena import new_arena
from xpcnn.errors import BackendError

from .helped_steps import Placed, a_region, make, recorded, replay_until_helped, until
from .processes import fails, python
from .test_trace import SHAPES

pytestmark = pytest.mark.skipif(new_arena(4096) is None, reason="the system has no shared memory of this kind")


def test_an_exception_there_is_an_error_here(helped):
    training, replay = recorded()
    replay_until_helped(training, replay)
    with pytest.raises(BackendError, match=r"worker process failed in its part of a step: KeyError: 12345"):
        helped.workers.run(12345, 1, regions.play, [])
    replay()  # it goes on


def test_killed_in_a_step(helped):
    training, replay = recorded()
    seed = replay_until_helped(training, replay)
    process = helped.workers._workers[0].process

    def kill():
        process.send_signal(signal.SIGSTOP)
        until(lambda: process_state(process.pid) == "T", "it does not stop")

    def play_and_kill(tape):
        process.send_signal(signal.SIGKILL)

    kill()
    region, count = next(
        args[:2] for function, args in replay._link._shared if getattr(function, "__name__", "") == "run"
    )
    with pytest.raises(BackendError, match=r"ended in the middle of a step \(exit status -9\).*resume=True"):
        helped.workers.run(region, count, play_and_kill, [])
    training.feed(seed)
    replay()  # by threads
    assert helped.workers._workers == []
    assert helped.workers.allowed == 0


def test_what_an_interrupted_step_left_is_waited_for(helped):
    training, replay = recorded()
    replay_until_helped(training, replay)
    helper = helped.workers._workers[0]
    helper.process.send_signal(signal.SIGSTOP)
    until(lambda: process_state(helper.process.pid) == "T", "it does not stop")
    go = helper.hand_over(a_region(replay))  # Ctrl-C just here
    timer = threading.Timer(0.05, helper.process.send_signal, [signal.SIGCONT])
    timer.start()
    assert helped.workers.take()
    assert helper.words[workers.page.DONE] == go
    helped.workers.release()
    timer.join()


def test_an_interrupt_waits_for_the_region(helped, monkeypatch):
    training, replay = recorded()
    replay_until_helped(training, replay)
    helper = helped.workers._workers[0]
    spin, spins = helper._spin, []

    def interrupted(go):
        spins.append(go)
        if len(spins) == 1:
            raise KeyboardInterrupt
        spin(go)

    monkeypatch.setattr(helper, "_spin", interrupted)
    helper.process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(0.05, helper.process.send_signal, [signal.SIGCONT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        helped.workers.run(a_region(replay), 1, regions.play, [])
    assert helper.words[workers.page.DONE] == spins[-1]
    timer.join()


def process_state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def gone(pid):
    return not os.path.exists(f"/proc/{pid}") or process_state(pid) == "Z"  # a zombie waits for its own parent


def test_killed_between_steps(helped):
    training, replay = recorded()
    seed = replay_until_helped(training, replay)
    process = helped.workers._workers[0].process
    process.kill()
    process.wait()
    training.feed(seed)
    with pytest.warns(RuntimeWarning, match="ended between two steps"):
        replay()
    written = Placed(make(), SHAPES["lenet5"])
    for number in range(seed + 1):
        written.feed(number)
        written.step()
    np.testing.assert_array_equal(written.loss, training.loss)


def test_one_that_cannot_start(helped, monkeypatch):
    monkeypatch.setattr(workers.sys, "executable", "/nonexistent/python")
    training, replay = recorded()
    for seed in range(4):
        training.feed(seed)
        replay()
    assert helped.workers.allowed == 0


def test_one_that_ends_at_once(helped, monkeypatch):
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    _, replay = recorded()

    def given_up():
        replay()
        return helped.workers.allowed == 0

    until(given_up, "its end goes unseen")


def test_another_thread_s_replays_do_without(helped):
    training, replay = recorded()
    seed = replay_until_helped(training, replay)
    assert helped.workers.take()
    turn = helped.workers._workers[0]._turn
    training.feed(seed)
    replay()
    assert helped.workers._workers[0]._turn == turn
    helped.workers.release()


SCRIPT = """
import os, signal, sys, time
import numpy as np
import xpcnn
from xpcnn import nn, models
from xpcnn.backend.numpy import regions, threads
threads._usable_cores = lambda: 2
regions.REPLAYS_BEFORE, regions.SECONDS_BEFORE, regions.WORTH_A_PROCESS = 1, 0.0, 0.0
regions.PATIENCE = float("inf")
xpcnn.manual_seed(0)
model = models.create("lenet5")
trainer = xpcnn.training.Trainer(model, xpcnn.optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss())
rng = np.random.default_rng(0)
x, labels = rng.standard_normal((64, 1, 32, 32)).astype("float32"), rng.integers(0, 10, 64)
def step():
    trainer.train_batch(x, labels)
def is_helped():
    cases = trainer._step.compiled[0]._cases.values()
    return any(record._replay._link._ready for case in cases for record in case.free)
def help():
    end = time.monotonic() + 20
    step()
    while not is_helped():
        assert time.monotonic() < end
        step()
    return xpcnn.get_backend().workers._workers[0].process.pid
"""


def test_nothing_is_left_at_exit():
    pid = python(SCRIPT + "print(help())", "-W", "error", "-X", "dev")
    assert not os.path.exists(f"/proc/{pid}")


def test_nothing_is_said_at_exit():
    done = fails(SCRIPT + "help(); step()", "-W", "error", "-X", "dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_ends_with_a_parent_that_is_killed():
    done = fails(SCRIPT + "print(help(), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    until(lambda: gone(int(done.stdout)), "it lives on")


def test_it_ends_though_a_child_of_a_fork_lives_on():
    code = """
pid = help()
if os.fork() == 0:
    os.close(1); os.close(2)
    time.sleep(30 if len(sys.argv) < 2 else 0)
    os._exit(0)
print(pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = fails(SCRIPT + code, "-W", "ignore")
    until(lambda: gone(int(done.stdout)), "it lives on")


def test_a_child_of_a_fork_shares_nothing():
    code = """
def state():
    return np.concatenate([p.data.ravel() for p in model.parameters()])
help()
before = state()
there, here = os.pipe()
child = os.fork()
if child == 0:
    try:
        os.read(there, 1)  # until the parent has gone three steps on
        same = np.array_equal(state(), before)
        step()
        moved = not np.array_equal(state(), before)
        parameters = state()
        os._exit(0 if same and moved and not xpcnn.get_backend().workers._workers else 3)
    finally:
        os._exit(4)
for _ in range(3):
    step()
after = state()
os.write(here, b"x")
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, np.array_equal(state(), after), not np.array_equal(before, after), gone_on := (step() is None))
"""
    assert python(SCRIPT + code, "-W", "ignore") == "0 True True True"


def test_a_child_trains_as_its_parent_does():
    code = """
def state():
    return np.concatenate([p.data.ravel() for p in model.parameters()])
help()
there, here = os.pipe()
child = os.fork()
step(); step()
if child == 0:
    os.write(here, state().tobytes()[:60000])
    os._exit(0)
theirs = os.read(there, 60000)
os.waitpid(child, 0)
print(theirs == state().tobytes()[:60000])
"""
    assert python(SCRIPT + code, "-W", "ignore") == "True"
