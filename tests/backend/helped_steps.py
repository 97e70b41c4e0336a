"""Trainings whose recorded steps a helper plays."""

import time

import xpcnn
from xpcnn import models
from xpcnn.backend.numpy import regions

from .test_trace import SHAPES, Training

SECONDS = 20.0  # the most that a test waits for a process


class Placed(Training):
    """A training whose input lies where helpers see it."""

    def __init__(self, model, shape, batch=6):
        super().__init__(model, shape, batch)
        place = xpcnn.get_backend().place
        self.x, self.labels, self.loss = place(self.x), place(self.labels), place(self.loss)


def make(name="lenet5"):
    xpcnn.manual_seed(0)
    return models.create(name)


def recorded(make=make, shape=SHAPES["lenet5"], kind=Placed):
    training = kind(make(), shape)
    training.feed(0)
    training.step()
    training.feed(1)
    return training, xpcnn.get_backend().capture(training.step)


def until(holds, what):
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(1e-3)


def replay_until_helped(training, replay):
    """Replay until the helper plays; return how many batches that took."""
    seed = 2
    end = time.monotonic() + SECONDS
    while not replay._link._ready:
        assert time.monotonic() < end, "the helper is not ready"
        time.sleep(5e-3)  # that it takes to start, and not to thousands of batches
        training.feed(seed)
        replay()
        seed += 1
    return seed


def regions_of(replay):
    """Return how many regions go to helpers, and how many stay."""
    tape = replay._link._shared
    kept = sum(isinstance(function, regions.Region) for function, _ in tape)
    return sum(getattr(function, "__name__", "") == "run" for function, _ in tape), kept


def a_region(replay):
    return next(args[0] for function, args in replay._link._shared if getattr(function, "__name__", "") == "run")


def record_of(trainer):
    """Return the graph of a trainer's forward and backward; None before there is one."""
    cases = trainer._step.compiled[0]._cases.values()
    return next((record._replay for case in cases for record in case.free), None)
