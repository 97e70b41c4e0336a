"""Regions of a record that several threads or worker processes play at once, and which of the two does.

Threads play until helpers have started, which takes a fraction of a second, and again while helpers do worse. Both
make the same calls over the same arrays: a replay gives the same bits whoever plays it.

`python bench/costs.py` measures what a worker process gains.
"""

from __future__ import annotations

import weakref
from time import perf_counter
from typing import Any

import numpy as np

from xpcnn.backend.numpy.arena import Arena
from xpcnn.backend.numpy.calls import Bound, Call, bind
from xpcnn.backend.numpy.encoding import Encoder, NotEncodable
from xpcnn.backend.numpy.threads import ThreadPool
from xpcnn.backend.numpy.workers import WorkerProcess, WorkerProcesses

# Elementary operations from which a region goes to a helper, and all of a record from which one is started.
WORTH_A_HAND_OVER = 1e5
WORTH_A_PROCESS = 1e6
# Replays before a helper is started, and the seconds that they took: starting one takes as much of another core.
REPLAYS_BEFORE = 10
SECONDS_BEFORE = 0.1
# Where the last replays with helpers took PATIENCE times as long as those with threads, threads play for REST seconds,
# and twice as long each time that it happens again at once. One replay counts at most OUTLIER times the threads'.
WINDOW, PATIENCE, OUTLIER, REST, LONGEST_REST = 16, 1.2, 3.0, 0.5, 16.0


def play(bound: Bound) -> None:
    """Make all calls."""
    for function, arguments in bound:
        function(*arguments)


def _play_quietly(bound: Bound) -> None:
    """Make calls as a whole replay makes them, in a thread that knows nothing of its caller's context."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        play(bound)


class Region:
    """Work shared out while it was traced, a list of calls for each thread; calling it plays them."""

    __slots__ = ("bound", "parts", "pool", "work")

    def __init__(self, pool: ThreadPool, parts: list[list[Call]], work: float) -> None:
        self.pool, self.parts, self.work = pool, parts, work
        self.bound: list[Bound] = []

    def bind(self) -> None:
        """Get ready to be played."""
        self.bound = [bind(part) for part in self.parts]

    def __call__(self) -> None:
        if self.work < self.pool.worth / 4:
            for part in self.bound:
                play(part)
        else:
            self.pool.run(_play_quietly, self.bound)


class Link:
    """A record's way to the worker processes: starts them once that pays, and plays the record with them."""

    def __init__(self, workers: WorkerProcesses, arena: Arena, calls: list[Call], bound: Bound) -> None:
        self._workers, self._arena, self._calls, self._bound = workers, arena, calls, bound
        regions = [call.function for call in calls if isinstance(call.function, Region)]
        self._helpers = max((len(region.parts) - 1 for region in regions), default=0)
        self._open = self._helpers > 0
        self._replays, self._seconds = 0, 0.0
        self._shared: Bound = []  # the calls with what hands regions over in the place of regions
        self._encoded: list[tuple[int, list[Any]]] = []
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
        play(self._bound)
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
        for call in self._bound:
            region = call[0]
            if isinstance(region, Region) and (number := self._add(encoder, region)):
                work += region.work
                call = self._workers.run, (number, len(region.parts) - 1, play, region.bound[0])
            self._shared.append(call)
        self._open = work >= WORTH_A_PROCESS

    def _add(self, encoder: Encoder, region: Region) -> int:
        """Write the calls of a region; return its number, or 0 where it stays with the threads."""
        try:
            parts = [encoder.calls(part) for part in region.parts[1:]]
        except NotEncodable:
            return 0
        number = self._workers.number()
        if number:
            self._encoded.append((number, parts))
        return number

    def _load(self, helpers: list[WorkerProcess], encoder: Encoder) -> None:
        tables = {"arrays": encoder.arrays, "functions": encoder.functions}
        for index, helper in enumerate(helpers):
            regions = [(number, calls[index]) for number, calls in self._encoded if index < len(calls)]
            self._asked.append((helper, helper.ask({"regions": regions, **tables})))
            numbers = [number for number, _ in regions]
            weakref.finalize(self, helper.drop, numbers).atexit = False
        self._encoded.clear()
        encoder.forget()
