"""Watches the ranks of one machine from outside of them: `python watcher.py BOARD_FILE LINES TIMEOUT CORDS SEGMENT...`.

A process of its own, in a session of its own: launchers that end a job kill its ranks at once, and who is killed or
stopped cannot say so. It tells in one line which rank has ended, was stopped or does not come, ends the others, and
removes the shared memory that a killed MPI leaves. It imports nothing of the library, and goes when the ranks are gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Iterable

HEADER, LINE = 8, 8  # as in board.py
SPOKEN = 0
RANK, PROCESS, PHASE, COUNT, SINCE = range(5)
WORKING, WAITING, ENDING, SAID = range(4)

TICK = 0.2  # seconds between two looks
STOPPED = 10.0  # seconds that a rank may be stopped, or at its end, while others wait for it
GRACE = 3.0  # seconds that the launcher has to end the job by itself
LAST = 1.0  # seconds between a process's letting go of its files and its end
SEGMENTS = ("/dev/shm/mpich_shm_", "/dev/shm/vader_segment", "/dev/shm/osc_rdma", "/dev/shm/Intel_MPI_")  # noqa: S108


class Watcher:
    """Looks after the ranks of this machine until all have ended.

    Parameters
    ----------
    file, lines : int
        Descriptor of the board, and its lines.
    timeout : float
        Seconds that a rank may let others wait.
    cords : iterable of int
        For each line the descriptor of a pipe that its rank alone holds the other end of (`board.cords`); or none.
    segments : iterable of str
        Files to remove in the end.
    """

    def __init__(
        self, file: int, lines: int, timeout: float, cords: Iterable[int] = (), segments: Iterable[str] = ()
    ) -> None:
        self.file, self.timeout = file, timeout
        self.words = memoryview(mmap.mmap(file, (HEADER + LINE * lines) * 8)).cast("q")
        self.lines = {self.word(line, PROCESS): line for line in range(lines)}
        self.handles = {handle: process for process in self.lines if (handle := _handle(process)) is not None}
        self.cords = {cord: self.word(line, PROCESS) for line, cord in enumerate(cords)}
        self.let_go: list[int] = []  # processes, in the order in which they did
        self.events: select.epoll | None = None
        if len(self.handles) == len(self.lines):
            self.events = select.epoll()
            for handle in self.handles:
                self.events.register(handle, select.EPOLLIN | select.EPOLLET)
            for cord in self.cords:
                self.events.register(cord, select.EPOLLHUP | select.EPOLLET)
        self.killed_before = _killed_by_kernel()
        self.segments = set(segments)
        self.stopped: dict[int, float] = {}  # since when

    def word(self, line: int, which: int) -> int:
        return int(self.words[HEADER + line * LINE + which])

    def run(self) -> None:
        """Watch, and clear up."""
        while self.lines:
            self.segments |= segments_of(next(iter(self.lines)))
            for process in self._gone():
                status, line = _status(process), self.lines.pop(process, None)
                if line is None or self.word(line, PHASE) == ENDING:
                    continue
                if self.word(line, PHASE) != SAID:
                    self.say(f"rank {self.word(line, RANK)} (process {process}) {self._cause(status)}")
                self._end_all(GRACE)
            reason = self._stuck()
            if reason is not None:
                self.say(reason)
                self._end_all(0.0)
        for path in self.segments:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def say(self, text: str) -> None:
        """Tell why the job ends, unless somebody has."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self.file, fcntl.LOCK_EX)
        spoken, self.words[SPOKEN] = self.words[SPOKEN], 1
        with contextlib.suppress(OSError):
            fcntl.lockf(self.file, fcntl.LOCK_UN)
        if not spoken:
            with contextlib.suppress(OSError):
                os.write(2, f"xpcnn: {text}; the job ends, go on from its last checkpoint\n".encode())

    def _gone(self) -> list[int]:
        """Wait for a moment; return the processes that have ended, first the one that began to end first.

        Where one is killed the launcher kills the others, sooner than this process may have its turn; the system tells
        in which order. A launcher sees a process let go of its files, some time before that has ended: another that is
        killed then may have ended before it, but lets go of its own files after it. Where the system has nothing that
        tells, the ranks are looked at one by one.
        """
        if self.events is None:
            time.sleep(TICK)
            return [each for each in self.lines if not _lives(each)]
        found = self._ended(self.events)
        until = time.monotonic() + LAST
        while found and set(self.let_go) & self.lines.keys() - set(found) and time.monotonic() < until:
            found += self._ended(self.events)
        found = [each for each in found if each in self.lines]
        return sorted(found, key=lambda each: self.let_go.index(each) if each in self.let_go else len(self.let_go))

    def _ended(self, events: select.epoll) -> list[int]:
        """Wait for a moment; return the processes that have ended, in that order; note who has let go of its files."""
        found = []
        for handle, _ in events.poll(TICK):
            if handle in self.cords:
                self.let_go.append(self.cords[handle])
            else:
                found.append(self.handles[handle])
        return found

    def _cause(self, status: int | None) -> str:
        if status is None:
            return "has ended before its time"
        if not status & 0x7F:
            return f"has ended before its time, with status {status >> 8}"
        number = status & 0x7F
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "a signal"
        if number == signal.SIGKILL and _killed_by_kernel() > self.killed_before:
            return "was killed: this machine has run out of memory"
        return f"was killed by {name} ({number})"

    def _stuck(self) -> str | None:
        """Return why the job does not go on any more, if so."""
        now = time.monotonic()
        waiting: list[tuple[int, int, float]] = []
        others: list[tuple[int, int, float]] = []
        for process, line in self.lines.items():
            if _is_stopped(process):
                self.stopped.setdefault(process, now)
            else:
                self.stopped.pop(process, None)
            seconds = now - self.word(line, SINCE) / 1e9
            is_waiting = self.word(line, PHASE) == WAITING and process not in self.stopped
            (waiting if is_waiting else others).append((process, line, seconds))
        longest = max((seconds for _, _, seconds in waiting), default=0.0)
        soon = min(STOPPED, self.timeout)
        if longest <= soon:
            return None
        for process, line, seconds in others:
            name = f"rank {self.word(line, RANK)} (process {process})"
            if process in self.stopped and now - self.stopped[process] > soon:
                return f"{name} is stopped while others wait for it"
            if self.word(line, PHASE) == ENDING and seconds > soon:
                return f"{name} has come to the end of its program while others wait for it"
        if longest <= self.timeout:
            return None
        counts = {self.word(line, COUNT) for _, line, _ in waiting + others}
        if others or len(counts) > 1:
            process, line, _ = min(others or waiting, key=lambda each: self.word(each[1], COUNT))
            if process in self.stopped:  # for nearly as long as others wait: it is the reason all the same
                return f"rank {self.word(line, RANK)} (process {process}) is stopped while others wait for it"
            return (
                f"rank {self.word(line, RANK)} (process {process}) has not come for {self.timeout:g} s to where others "
                "wait for it (XPCNN_DISTRIBUTED_TIMEOUT)"
            )
        if longest > self.timeout + STOPPED:  # the watcher there has had its time to name one
            return f"the ranks of this machine have waited {longest:.0f} s for those of another one"
        return None

    def _end_all(self, grace: float) -> None:
        until = time.monotonic() + grace
        while time.monotonic() < until and any(map(_lives, self.lines)):
            self.segments |= segments_of(next(iter(self.lines)))
            time.sleep(0.02)
        for process in self.lines:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        until = time.monotonic() + 10.0
        while time.monotonic() < until and any(map(_lives, self.lines)):
            time.sleep(0.02)
        self.lines.clear()


def _handle(process: int) -> int | None:
    """Return what becomes readable when a process ends; None where the system has no such thing, or it has ended."""
    try:
        return os.pidfd_open(process) if hasattr(select, "epoll") else None
    except (AttributeError, OSError):
        return None


def _fields(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none where that is not there."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _status(process: int) -> int | None:
    fields = _fields(process)
    return int(fields[-1]) if fields and fields[0] in "ZX" else None


def _is_stopped(process: int) -> bool:
    return _fields(process)[:1] in (["T"], ["t"])


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return _fields(process)[:1] not in (["Z"], ["X"])


def _killed_by_kernel() -> int:
    """Return how many processes this machine's kernel has killed for want of memory."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def segments_of(process: int) -> set[str]:
    """Return the files of shared memory that a process's MPI has made."""
    try:
        with open(f"/proc/{process}/maps") as file:
            return {path for line in file if (path := line.rstrip("\n").rpartition(" ")[2]).startswith(SEGMENTS)}
    except OSError:
        return set()


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    Watcher(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), map(int, sys.argv[4].split()), sys.argv[5:]).run()
