"""Regions of a record that several threads or worker processes play at once, and which of the two does.

Threads play until helpers have started, which takes a fraction of a second, and again while helpers do worse. Both
make the same calls over the same arrays: a replay gives the same bits whoever plays it.

Medians on two cores of a Xeon (a virtual machine), ms per step without (XPCNN_PROCESSES=0) and with one helper:
lenet5 6.8 and 4.1, deep3 31 and 24 (with 32 images 10.4 and 6.8), three-layer 12.6 and 10.7, vgg8 172 and 150,
resnet20 208 and 162.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from xpcnn.backend.numpy.arena import Arena
from xpcnn.backend.numpy.encoding import Cannot, Encoder
from xpcnn.backend.numpy.threads import ThreadPool
from xpcnn.backend.numpy.workers import WorkerProcess, WorkerProcesses

Tape = list[tuple[Callable[..., Any], tuple[Any, ...]]]

# Elementary operations from which a region goes to a helper, and all of a record from which one is started.
WORTH_A_HAND_OVER = 1e5
WORTH_A_PROCESS = 1e6
# Replays before a helper is started, and the seconds that they took: starting one takes as much of another core.
REPLAYS_BEFORE = 10
SECONDS_BEFORE = 0.1
# Where the last replays with helpers took PATIENCE times as long as those with threads, threads play for REST seconds,
# and twice as long each time that it happens again at once. One replay counts at most OUTLIER times the threads'.
WINDOW, PATIENCE, OUTLIER, REST, LONGEST_REST = 16, 1.2, 3.0, 0.5, 16.0


def play(tape: Tape) -> None:
    """Call everything on a tape."""
    for function, arguments in tape:
        function(*arguments)


def _play_quietly(tape: Tape) -> None:
    """Play a tape as a whole replay is played, in a thread that knows nothing of its caller's context."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        play(tape)


class Region:
    """Work shared out while it was recorded, a tape for each thread; calling it plays them."""

    __slots__ = ("pool", "tapes", "work")

    def __init__(self, pool: ThreadPool, tapes: list[Tape], work: float) -> None:
        self.pool, self.tapes, self.work = pool, tapes, work

    def __call__(self) -> None:
        if self.work < self.pool.worth / 4:
            for tape in self.tapes:
                play(tape)
        else:
            self.pool.run(_play_quietly, self.tapes)


class Link:
    """A record's way to the worker processes: starts them once that pays, and plays the record with them."""

    def __init__(self, workers: WorkerProcesses, arena: Arena, tape: Tape) -> None:
        self._workers, self._arena, self._tape = workers, arena, tape
        regions = [function for function, _ in tape if isinstance(function, Region)]
        self._helpers = max((len(region.tapes) - 1 for region in regions), default=0)
        self._open = self._helpers > 0
        self._replays, self._seconds = 0, 0.0
        self._shared: Tape = []  # the tape with what hands regions over in the place of regions
        self._calls: list[tuple[int, list[Any]]] = []
        self._encoder: Encoder | None = None
        self._asked: list[tuple[WorkerProcess, int]] = []
        self._ready = False
        self._mean = 0.0  # seconds of the last replays with helpers
        self._played = 0  # replays with helpers since the last rest
        self._rest = 0.0  # seconds of the last rest, and those that are left of it
        self._resting = 0.0

    def play(self) -> bool:
        """Play the record with the helpers; False, and nothing done, where they cannot yet or never will."""
        if not self._open:
            return False
        if self._ready and self._resting <= 0:
            if self._helpers >= self._workers.pool.size or not self._workers.take():
                return False
            try:
                start = perf_counter()
                play(self._shared)
                self._weigh(perf_counter() - start)
            finally:
                self._workers.release()
            return True
        start = perf_counter()
        play(self._tape)
        seconds = perf_counter() - start
        self._seconds += seconds
        self._replays += 1
        if self._ready:
            self._resting -= seconds
        elif self._replays >= REPLAYS_BEFORE and self._seconds >= SECONDS_BEFORE:
            self._approach()
        return True

    def _weigh(self, seconds: float) -> None:
        """Leave the helpers alone for a while where threads are faster: others need the cores that both spin on."""
        usual = self._seconds / self._replays
        self._mean += (min(seconds, OUTLIER * usual) - self._mean) / WINDOW
        self._played += 1
        if self._mean > PATIENCE * usual:
            at_once = self._played < 4 * WINDOW
            self._rest = self._resting = min(2 * self._rest, LONGEST_REST) if at_once and self._rest else REST
            self._mean = self._seconds = 0.0
            self._replays = self._played = 0

    def _approach(self) -> None:
        """Do the next step towards replays with helpers; none waits for a process."""
        workers = self._workers
        if self._encoder is None:
            self._encode()
            return
        if self._helpers >= workers.pool.size:
            return  # threads were forbidden meanwhile
        helpers = workers.start(self._helpers)
        if len(helpers) < self._helpers:
            self._open = False
        elif not self._asked:
            if all(helper.answered for helper in helpers) and workers.take():
                try:
                    self._load(helpers, self._encoder)
                finally:
                    workers.release()
        else:
            self._ready = all(helper.answered >= number for helper, number in self._asked)

    def _encode(self) -> None:
        encoder = self._encoder = Encoder(self._arena)
        work = 0.0
        for function, arguments in self._tape:
            call: tuple[Callable[..., Any], tuple[Any, ...]] = function, arguments
            if isinstance(function, Region) and (number := self._add(encoder, function)):
                work += function.work
                call = self._workers.run, (number, len(function.tapes) - 1, play, function.tapes[0])
            self._shared.append(call)
        self._open = work >= WORTH_A_PROCESS

    def _add(self, encoder: Encoder, region: Region) -> int:
        """Write the tapes of a region; return its number, or 0 where it stays with the threads."""
        try:
            calls = [encoder.tape(tape) for tape in region.tapes[1:]]
        except Cannot:
            return 0
        number = self._workers.number()
        if number:
            self._calls.append((number, calls))
        return number

    def _load(self, helpers: list[WorkerProcess], encoder: Encoder) -> None:
        tables = {"arrays": encoder.arrays, "functions": encoder.functions}
        for index, helper in enumerate(helpers):
            regions = [(number, calls[index]) for number, calls in self._calls if index < len(calls)]
            self._asked.append((helper, helper.ask({"regions": regions, **tables})))
            numbers = [number for number, _ in regions]
            weakref.finalize(self, helper.drop, numbers).atexit = False
        self._calls.clear()
        encoder.forget()
