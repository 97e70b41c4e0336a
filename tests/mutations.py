"""Damage to files, and the check that every reader survives it: shared by the tests of everything that reads a file.

A few hundred damaged files per reader in each run, 10,000 with XPCNN_TRUST=1; the summary of a run says how many.
"""

from __future__ import annotations

import os
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from xpcnn.errors import XpcnnError

COUNT = 10_000 if os.environ.get("XPCNN_TRUST") == "1" else 300
HANG = 20.0  # seconds for one file; no file of these takes a tenth of one
ALARMS = 20  # that go off in this time
tally: dict[str, Counter[str]] = {}  # reader -> how its files ended


def mutations(content: bytes, rng: np.random.Generator, count: int = COUNT) -> Iterator[bytes]:
    """Yield damaged copies of `content`, the first bytes (magic numbers and sizes) hit as often as all the rest."""
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            _damage(damaged, rng)
        yield bytes(damaged)


def _damage(data: bytearray, rng: np.random.Generator) -> None:
    def place() -> int:
        size = len(data) if rng.random() < 0.5 else min(len(data), 64)
        return int(rng.integers(0, max(1, size)))

    start, length = place(), int(rng.integers(1, 17))
    match int(rng.integers(0, 8)):
        case 0:  # cut short
            del data[start:]
        case 1 if data:  # flip one bit
            data[start] ^= 1 << int(rng.integers(0, 8))
        case 2:  # replace
            data[start : start + length] = rng.bytes(length)
        case 3:  # a huge or negative number where a size may stand
            data[start : start + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"][length % 3]
        case 4:  # insert
            data[start:start] = rng.bytes(length)
        case 5:  # leave out
            del data[start : start + length]
        case 6:  # repeat
            data[start:start] = data[place() :][: 4 * length]
        case _:  # zeros
            data[start : start + length] = bytes(length)


def check_reader(
    name: str,
    read: Callable[[Path], Any],
    content: bytes,
    path: Path,
    *,
    check: Callable[[Any], None] = lambda result: None,
    wrap: Callable[[bytes], bytes] = lambda damaged: damaged,
    bytes_per_byte: int = 64,
    seed: int = 0,
    count: int = COUNT,
) -> None:
    """Write damaged copies of `content` to `path`; each must be read as valid data or end in the library's own error.

    `check` looks at what was read; `wrap` (such as gzip) is put around each damaged copy. Memory stays below 2 MB plus
    `bytes_per_byte` for each byte of the file.
    """
    ends = tally.setdefault(name, Counter())
    tracemalloc.start()
    try:
        for damaged in mutations(content, np.random.default_rng(seed), count):
            damaged = wrap(damaged)
            path.write_bytes(damaged)
            allowed = (2 << 20) + bytes_per_byte * len(damaged)
            used, error = _read(lambda: check(read(path)))
            if used > allowed:  # the reader, or a table of the interpreter that grew just then: that one grows once
                used, error = _read(lambda: check(read(path)))
            ends[type(error).__name__ if error else "read as valid data"] += 1
            assert "\n" not in str(error)
            assert used <= allowed, f"{used} bytes for a file of {len(damaged)}"
    finally:
        tracemalloc.stop()


def _read(read: Callable[[], None]) -> tuple[int, XpcnnError | None]:
    """Return the most bytes held while reading, and the error in which it ended."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    end = None
    with no_hang():
        try:
            read()
        except XpcnnError as error:
            end = error.with_traceback(None)
    return tracemalloc.get_traced_memory()[1] - before, end


@contextmanager
def no_hang(seconds: float = HANG) -> Iterator[None]:
    """Fail where the block takes longer (where the system has alarms).

    Alarms are counted, not the clock read: a process that was stopped meanwhile, or whose machine slept, gets one alarm
    for all of that time.
    """
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    count = 0

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == ALARMS:
            raise AssertionError(f"no end after {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds / ALARMS, seconds / ALARMS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
