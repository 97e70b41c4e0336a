"""A small thread pool for work that leaves Python's lock alone, and the hold on BLAS while it multiplies.

NumPy lets other threads run inside its loops and products, so two threads with a tile each use two cores. BLAS is
held to one thread meanwhile: its own threads would spin on the cores that the pool uses.

Where Python has no such lock (free-threaded builds, python3.14t) threads do not meet between NumPy's calls, and whoever
waits for another may look again and again for a moment before it sleeps, in nobody's way: to wake a thread takes 50 to
100 microseconds. Work for two threads then begins at a fifth of the size. `bench/run.py` measures both builds.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from xpcnn.backend.numpy import cores
from xpcnn.backend.numpy.products import KERNELS
from xpcnn.errors import ConfigError

# Below this many elementary operations another thread costs more than it saves: where it must be woken (some 50 to 100
# microseconds), and where it is awake, looking out for work.
WORTH_WAKING, WORTH_TELLING = 1.5e6, 3e5
GLANCES = 5000  # looks before who waits goes to sleep, some 250 microseconds


def has_lock() -> bool:
    """Whether Python's lock lets one thread run at a time; an extension may ask for it in a free-threaded Python."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


Switch = tuple[Callable[[], int], Callable[[int], Any]]


class Blas:
    """NumPy's BLAS, found once: holds it to one thread while the pool works and sets it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before: list[tuple[Callable[[int], Any], int]] = []  # what sets BLAS back, and to how many threads

    @cached_property
    def libraries(self) -> list[Any]:
        """The BLAS libraries of this process as threadpoolctl's controllers."""
        import threadpoolctl

        controllers = threadpoolctl.ThreadpoolController().lib_controllers
        return [library for library in controllers if library.user_api == "blas"]

    @cached_property
    def _switches(self) -> list[Switch]:
        return [_switch(library) for library in self.libraries]

    @cached_property
    def multiplies_small(self) -> bool:
        """Whether it has kernels for small matrices (`products.py`)."""
        return any(getattr(library, "architecture", None) in KERNELS for library in self.libraries)

    @contextlib.contextmanager
    def single(self) -> Iterator[None]:
        """Hold BLAS to one thread; nests, also over several of the user's threads."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def hold(self) -> None:
        """Begin a hold."""
        with self._lock:
            if self._holders == 0:
                for get, set_to in self._switches:
                    threads = get()
                    if threads != 1:
                        set_to(1)
                        self._before.append((set_to, threads))
            self._holders += 1

    def release(self) -> None:
        """End a hold; the last one sets BLAS back."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                while self._before:
                    set_to, threads = self._before.pop()
                    set_to(threads)


def _switch(library: Any) -> Switch:
    """Return what reads and what sets the number of threads of a BLAS library.

    threadpoolctl gives OpenBLAS to the thread that comes first and from then on does nothing for others, while that
    one lives. A hold here is the whole process's and counts its holders itself.
    """
    if library.internal_api == "openblas" and library.threading_layer == "pthreads":
        for prefix, suffix in product(("scipy_", ""), ("64_", "_64", "")):  # of NumPy's wheels, and others
            get, set_to = (
                getattr(library.dynlib, f"{prefix}openblas_{verb}_num_threads{suffix}", None) for verb in ("get", "set")
            )
            if get and set_to:
                return get, set_to
    return library.get_num_threads, library.set_num_threads


@contextlib.contextmanager
def _inside(local: _Here) -> Iterator[None]:
    """Note that the calling thread runs tasks."""
    before = local.inside
    local.inside = True
    try:
        yield
    finally:
        local.inside = before


class _Here(threading.local):
    """What is so in this thread alone; an attribute of the class is found in a seventh of the time of one missing."""

    inside = False  # running tasks


class _Job:
    """One call of `ThreadPool.run`: tasks that the threads take one by one, and what went wrong."""

    __slots__ = ("begun", "done", "ended", "error", "function", "tasks")

    def __init__(self, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:
        self.function = function
        self.tasks = deque(tasks)
        self.begun: list[None] = []  # one each of the helpers that have come, and of those that have gone
        self.ended: list[None] = []
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.error: BaseException | None = None

    def wait(self) -> None:
        """Return when no helper works on a task; a signal must not let the caller go before, whose memory they use."""
        while True:
            try:
                while len(self.ended) < len(self.begun):
                    _get(self.done)
                self.function = _nothing  # who comes late keeps no arrays alive
                return
            except BaseException as error:
                self.error = error
                self.tasks.clear()

    def work(self, local: _Here) -> None:
        function, take = self.function, self.tasks.popleft
        try:
            with _inside(local):
                while True:
                    try:
                        task = take()
                    except IndexError:
                        return
                    function(task)
        except BaseException as error:
            self.error = error
            self.tasks.clear()  # the other threads stop at their next task


def _nothing(task: Any) -> None:
    """Do nothing."""


class ThreadPool:
    """Threads made at first use, per process and again after a fork; the caller is one of them.

    Attributes
    ----------
    worth : float
        Elementary operations from which several threads pay.
    """

    def __init__(self) -> None:
        self.worth = WORTH_WAKING if has_lock() else WORTH_TELLING
        self._size: int | None = None
        self._was_set = False
        self._busy = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._started = 0
        self._local = _Here()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._busy = threading.Lock()
        self._jobs = queue.SimpleQueue()
        self._started = 0
        self._local = _Here()

    def reconsider(self) -> None:
        """Look anew how many cores there are, such as when other ranks of a job have their share of them."""
        self._size = None if not self._was_set else min(self.size, _usable_cores())

    @property
    def size(self) -> int:
        """How many threads work at once, the caller included."""
        if self._size is None:
            asked = cores.asked_for()
            # Beyond so many there are no worker processes, and threads wait for each other at the lock; ranks do not.
            most = cores.MOST_PROCESSES if has_lock() else None
            self._size = min(cores.default_threads(most) if asked is None else asked, _usable_cores())
        return self._size

    @size.setter
    def size(self, n: int) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigError(f"n: expected a number of threads of 1 or more, got {n!r}")
        self._size, self._was_set = min(n, _usable_cores()), True

    @property
    def inside(self) -> bool:
        """Whether the calling thread runs a task: it then works alone on whatever it is given."""
        return self._local.inside

    @property
    def busy(self) -> bool:
        """Whether somebody's tasks are running."""
        return self._busy.locked()

    def run(self, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:
        """Call `function` with every task; whoever else uses the pool meanwhile works alone."""
        helpers = min(self.size, len(tasks)) - 1
        if helpers < 1 or self.inside or not self._busy.acquire(blocking=False):
            self.run_alone(function, tasks)
            return
        try:
            self._run(function, tasks, helpers)
        finally:
            self._busy.release()

    def run_alone(self, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:
        """Call `function` with every task in the calling thread, as one that runs tasks."""
        with _inside(self._local):
            for task in tasks:
                function(task)

    def _run(self, function: Callable[[Any], None], tasks: Sequence[Any], helpers: int) -> None:
        while self._started < helpers:
            # In a context of its own: it serves whoever comes, not who happened to come first.
            arguments = _serve, self._jobs, self._local
            threading.Thread(target=Context().run, args=arguments, name="xpcnn", daemon=True).start()
            self._started += 1
        job = _Job(function, tasks)
        for _ in range(helpers):
            self._jobs.put(job)
        try:
            job.work(self._local)  # returns when no task is left: whoever comes later finds none
        finally:
            job.wait()
        if job.error is not None:
            raise job.error


def _serve(jobs: queue.SimpleQueue[_Job], local: _Here) -> None:
    with np.errstate(all="ignore"):  # as `Backend.errstate`, which holds for the caller alone
        while True:
            job = _get(jobs)
            job.begun.append(None)
            job.work(local)
            job.ended.append(None)
            job.done.put(None)
            del job  # an idle thread keeps no arrays alive


def _get(messages: queue.SimpleQueue[Any]) -> Any:
    """Return the next message: at first by looking for it, where that keeps nobody from running, then asleep."""
    if not has_lock():
        is_empty = messages.empty
        for _ in range(GLANCES):
            if not is_empty():
                break
    return messages.get()


def _usable_cores() -> int:
    return cores.affinity()
