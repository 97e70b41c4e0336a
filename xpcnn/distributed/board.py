"""A page that the ranks of one machine share: who is there, who waits for whom, and who has said why the job ends.

Ranks write it, the watcher (`watcher.py`) reads it. It has no name in any file system where the system can make such
memory (Linux), so that nothing is left when all are killed; elsewhere its file is removed as soon as all have it open.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Iterator

# The layout, in words of 8 bytes: a header, then a line for each rank. `watcher.py` has the same.
HEADER, LINE = 8, 8
SPOKEN = 0  # of the header: whether somebody has said why the job ends
RANK, PROCESS, PHASE, COUNT, SINCE = range(5)  # of a line; SINCE in nanoseconds of the machine's clock
WORKING, WAITING, ENDING, SAID = range(4)  # phases
_BYTES = 8


class Board:
    """The page, as one rank sees it.

    Parameters
    ----------
    file : int
        Descriptor of the shared memory.
    lines : int
        Ranks on this machine.
    line, rank : int
        Which of them this is, and its rank among all.
    """

    def __init__(self, file: int, lines: int, line: int, rank: int) -> None:
        self.file, self.lines = file, lines
        self._map = mmap.mmap(file, size_of(lines))
        self.words = memoryview(self._map).cast("q")
        self._first = HEADER + line * LINE
        self.words[self._first + RANK], self.words[self._first + PROCESS] = rank, os.getpid()
        self.set_phase(WORKING)

    def set_phase(self, phase: int) -> None:
        """Say what this rank does from now on."""
        self.words[self._first + SINCE] = time.monotonic_ns()
        self.words[self._first + PHASE] = phase

    def wait(self) -> None:
        """Say that this rank waits for all others, once more."""
        first, words = self._first, self.words
        words[first + COUNT] += 1
        words[first + SINCE] = time.monotonic_ns()
        words[first + PHASE] = WAITING

    def go_on(self) -> None:
        """Say that it waits no longer."""
        self.words[self._first + PHASE] = WORKING

    def claim(self) -> bool:
        """Say whether this rank is the one of this machine that tells the user why the job ends; one is."""
        with _locked(self.file):
            is_first = not self.words[SPOKEN]
            self.words[SPOKEN] = 1
        if is_first:
            self.set_phase(SAID)
        return is_first


def size_of(lines: int) -> int:
    """Return the bytes of a page for so many ranks."""
    return (HEADER + LINE * lines) * _BYTES


def create(lines: int) -> tuple[int, str, bool]:
    """Return a descriptor of new shared memory, where others of this machine open it, and whether that is a file."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("xpcnn-board")
        os.ftruncate(file, size_of(lines))
        return file, f"/proc/{os.getpid()}/fd/{file}", False
    file, path = tempfile.mkstemp(prefix="xpcnn-board-")
    os.ftruncate(file, size_of(lines))
    return file, path, True


def cords(lines: int) -> tuple[list[int], list[str]]:
    """Return an end of a pipe for each line, and where its rank opens the other; none where no watcher can use them.

    A rank never writes to its cord. The system lets go of it when the rank ends, however it does, and tells the
    watcher which was first.
    """
    if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
        return [], []
    pipes = [os.pipe() for _ in range(lines)]
    return [read for read, _ in pipes], [f"/proc/{os.getpid()}/fd/{write}" for _, write in pipes]


@contextlib.contextmanager
def _locked(file: int) -> Iterator[None]:
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_UN)
