"""Helper processes that play a recorded step's regions, where two threads would meet at Python's lock.

Two threads with NumPy calls of some 8 microseconds wait for each other at every call; two processes do not. A helper
sees the record's memory (`shared.py`) and is handed a region through counters that both sides spin on: that takes some
5 microseconds, where to wake a thread takes 50 to 100. Requests go through a pipe (`encoding.py`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from xpcnn.backend.numpy import worker as page
from xpcnn.backend.numpy.arena import PAGE, Arena, new_arena, privatise_after_fork
from xpcnn.backend.numpy.cores import MOST_PROCESSES
from xpcnn.backend.numpy.threads import ThreadPool
from xpcnn.errors import BackendError, ConfigError

GLANCE = 256  # turns of a spin between looks at whether a helper sleeps; as many looks between those at its life
PATIENCE = 5.0  # seconds that a helper has for ending by itself
# A helper's products take its one thread; it must not spin up others when it starts.
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS"), "1")


class WorkerProcess:
    """One worker process."""

    def __init__(self, arena: Arena, index: int) -> None:
        import subprocess

        place = index * PAGE
        arena.map[place : place + PAGE] = bytes(PAGE)
        self.words = memoryview(arena.map)[place : place + PAGE].cast("q")
        self.asked = 0
        self.dropped: list[int] = []  # regions to forget
        self._turn = 0
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", page.__file__, *map(str, (arena.file, arena.size, index, os.getpid()))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(arena.file,),
            env={**os.environ, **ONE_THREAD},
        )
        self.end = weakref.finalize(self, _end, self.process)
        self._write({"path": [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]})

    def ask(self, request: dict[str, Any]) -> int:
        """Send a request and return its number, which `answered` reaches; a long one blocks until it is read."""
        request["drop"], self.dropped = self.dropped, []
        self.hand_over(page.MAIL)
        return self._write(request)

    def _write(self, request: dict[str, Any]) -> int:
        import json

        self.asked += 1
        self._send(json.dumps(request).encode() + b"\n")
        return self.asked

    def _send(self, data: bytes) -> None:
        pipe = self.process.stdin
        with contextlib.suppress(OSError):  # it has ended, as a look at it will tell
            while pipe is not None and data:
                data = data[pipe.write(data) :]

    def drop(self, regions: list[int]) -> None:
        """Let it forget regions, with the next request."""
        self.dropped += regions

    @property
    def answered(self) -> int:
        """How many requests it has done."""
        return int(self.words[page.ANSWERED])

    @property
    def status(self) -> int | None:
        """The exit status where it has ended."""
        return self.process.poll()

    def hand_over(self, region: int) -> int:
        """Let it play a region; return what `wait` waits for."""
        words = self.words
        self._turn = turn = self._turn + page.REGIONS + 1
        words[0] = go = turn + region
        if words[16]:
            self._send(b"\n")
        return go

    def wait(self, go: int) -> None:
        """Wait for the end of what was handed over.

        Raises
        ------
        ChildProcessError
            It has ended.
        BackendError
            A call has failed; the message is the error's.
        """
        words = self.words
        if words[8] != go:
            try:
                self._spin(go)
            except KeyboardInterrupt:
                self._spin(go)  # arrays must not change any more when the caller has them back
                raise
        if words[18]:
            size, words[18] = words[18], 0
            text = bytes(words.cast("B")[page.TEXT : page.TEXT + size]).decode(errors="replace")
            raise BackendError(f"a worker process failed in its part of a step: {text}; XPCNN_PROCESSES=0 does without")

    def settle(self) -> None:
        """Wait for what an interrupted step has left to do."""
        if self.words[page.DONE] != self.words[page.GO]:
            self._spin(self.words[page.GO])

    def _spin(self, go: int) -> None:
        words, done, asleep = self.words, page.DONE, page.ASLEEP
        looks = 0
        while True:
            for _ in range(GLANCE):
                if words[done] == go:
                    return
            # It may have gone to sleep just when it was handed the region, which neither has seen of the other.
            if words[asleep]:
                self._send(b"\n")
            os.sched_yield()
            looks += 1
            if looks % GLANCE == 0 and self.status is not None and words[done] != go:
                raise ChildProcessError(self.status)

    def forget(self) -> None:
        """In a child of a fork: it is the parent's."""
        self.end.detach()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.returncode = 0  # or its end of life would warn of a process that still runs


def _forget(workers: WorkerProcesses | None) -> None:
    if workers is not None:
        workers._forget()


def _end(process: Any) -> None:
    """End a helper: it ends by itself when its pipe closes."""
    import subprocess

    process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class WorkerProcesses:
    """The helpers of this process and the memory that it shares with them; nothing of both before it is needed."""

    def __init__(self, pool: ThreadPool) -> None:
        self.pool = pool
        self._arena: Arena | None = None
        self._tried = False
        self._failed = False
        self._making = threading.Lock()
        self._using = threading.Lock()
        self._workers: list[WorkerProcess] = []
        self._numbers = page.MAIL
        reference = weakref.ref(self)
        privatise_after_fork(lambda: getattr(reference(), "_arena", None))
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: _forget(reference()))

    def _forget(self) -> None:
        self._making, self._using = threading.Lock(), threading.Lock()
        for worker in self._workers:
            worker.forget()
        self._workers = []
        self._failed = self._arena is not None  # its memory is private now

    @property
    def arena(self) -> Arena | None:
        """The shared memory; None where no helpers are to be had for the present number of threads."""
        if self._failed or not 2 <= self.pool.size <= MOST_PROCESSES or not _wanted():
            return None
        if not self._tried:
            with self._making:
                if not self._tried:
                    self._arena = new_arena((MOST_PROCESSES - 1) * PAGE) if _has_interpreter() else None
                    self._tried = True
        return self._arena

    @property
    def allowed(self) -> int:
        """How many helpers a training may start: 0 where there can be none, or XPCNN_PROCESSES forbids it."""
        return 0 if self.arena is None else self.pool.size - 1

    def place(self, array: Any) -> Any:
        """Return a copy of `array` in the arena, of the same layout; itself where it lies there or there is none."""
        arena = self.arena
        if arena is None or array.dtype.kind not in "biuf" or arena.offset(array) is not None:
            return array
        return arena.copy(array)

    # --- processes --------------------------------------------------------------------------------------------------

    def start(self, count: int) -> list[WorkerProcess]:
        """Return `count` helpers, started now where they were not before; fewer where that fails or one has ended."""
        arena = self.arena
        try:
            with self._making:
                while arena is not None and len(self._workers) < count:
                    self._workers.append(WorkerProcess(arena, len(self._workers)))
        except OSError:  # no more processes, or no such interpreter: threads will do
            self._fail()
        if any(worker.status is not None for worker in self._workers):
            self._fail()  # it could not start
        return self._workers[:count]

    def number(self) -> int:
        """Return a number for a region; 0 where there are no more."""
        self._numbers += 1
        return self._numbers if self._numbers <= page.REGIONS else page.MAIL

    def _fail(self) -> None:
        self._failed = True
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()

    def take(self) -> bool:
        """Hold the helpers for a replay; False where they are another thread's, or there are none any more."""
        if not self._workers or not self._using.acquire(blocking=False):
            return False
        status: Any = next((worker.status for worker in self._workers if worker.status is not None), None)
        try:
            if status is None:
                for worker in self._workers:
                    worker.settle()
                return True
        except ChildProcessError as error:
            status = error
        except BaseException:
            self._using.release()
            raise
        self._fail()
        self._using.release()
        warnings.warn(
            f"a worker process ended between two steps (exit status {status}); training goes on with threads",
            RuntimeWarning,
            stacklevel=3,
        )
        return False

    def release(self) -> None:
        """End the hold."""
        self._using.release()

    def run(self, region: int, count: int, play: Callable[[Any], None], tape: Any) -> None:
        """Play a region: `tape` here, its others on the first `count` helpers."""
        workers = self._workers[:count]
        going = [(worker, worker.hand_over(region)) for worker in workers]
        try:
            play(tape)
        finally:
            try:
                for worker, go in going:
                    worker.wait(go)
            except ChildProcessError as error:
                self._fail()
                raise BackendError(
                    f"a worker process ended in the middle of a step (exit status {error}): parameters may be half "
                    "updated; go on from the last checkpoint, fit(resume=True); XPCNN_PROCESSES=0 does without helpers"
                ) from None


def _has_interpreter() -> bool:
    """Say whether `sys.executable` runs a Python file: a frozen or embedding program would start itself again."""
    program = os.path.basename(sys.executable or "").lower()
    return (
        not getattr(sys, "frozen", False)
        and program.startswith(("python", "pypy"))
        and os.path.isfile(page.__file__)  # not within a zip file
    )


def _wanted() -> bool:
    value = os.environ.get("XPCNN_PROCESSES", "").strip() or "1"
    if value not in ("0", "1"):
        raise ConfigError(f"XPCNN_PROCESSES: expected 0 (no worker processes) or 1, got {value!r}")
    return value == "1"
