"""How a job ends when a rank cannot go on: one message that names the rank, and none left waiting."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xpcnn.distributed.communicator import Communicator

POLITENESS = 2.0  # seconds that who was not first to speak leaves to who was
BREATH = 0.1  # seconds for a launcher to hand on a line
SIGNALLED = 128
# Where launchers say which rank a process is, before MPI has begun.
_RANKS = "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"

_communicator: Communicator | None = None


def watch_over(communicator: Communicator, at_end: Callable[[], None] | None) -> None:
    """Let an error that nobody catches end the job of a communicator; call `at_end` when the program has ended."""
    global _communicator
    _communicator = communicator
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if communicator.is_parting:
            usual(kind, error, trace)
            return
        if communicator.speaks():
            usual(kind, error, trace)
            reason = " ".join(str(error).split()) or kind.__name__
            print(f"xpcnn: rank {communicator.rank}: {reason}; the job ends", file=sys.stderr, flush=True)
            _let_read()
        else:
            time.sleep(POLITENESS)
        communicator.abort(SIGNALLED + 2 if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = hook
    if at_end is not None:
        atexit.register(at_end)


def may_speak() -> str | None:
    """Return how to begin a message about a mistake, with the rank; None where another rank says it already."""
    if _communicator is None:  # before MPI has begun: all are about to say the same
        rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
        return "" if rank == "0" else None
    if _communicator.size == 1:
        return ""
    if _communicator.is_parting:
        return "" if _communicator.rank == 0 else None
    return f"rank {_communicator.rank}: " if _communicator.speaks() else None


def end_job(status: int, spoke: bool = True) -> None:
    """End the other ranks too where this one's program ends with a status that is not 0; return where they end so."""
    communicator = _communicator
    if not status or communicator is None or communicator.is_parting or communicator.size == 1:
        return
    if not spoke:
        time.sleep(POLITENESS)
    sys.stdout.flush()
    sys.stderr.flush()
    _let_read()
    communicator.abort(status)


def _let_read() -> None:
    """Wait for a moment until the launcher has read what was printed; what it has not, when the job ends, is lost."""
    try:
        import fcntl
        import termios
    except ImportError:  # Windows
        time.sleep(BREATH)
        return
    until = time.monotonic() + POLITENESS
    with contextlib.suppress(OSError):  # no pipe
        while time.monotonic() < until:
            unread = fcntl.ioctl(2, termios.FIONREAD, bytes(4))
            if not int.from_bytes(unread, sys.byteorder):
                break
            time.sleep(BREATH / 10)
    time.sleep(BREATH)  # it hands on what it has read
