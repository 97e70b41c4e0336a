"""Ctrl-C during training: the step is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Interruptible(Protocol):
    """What looks at `interrupted` after each step."""

    interrupted: bool


@contextmanager
def interruptible(work: Interruptible) -> Iterator[None]:
    """Let Ctrl-C set `work.interrupted`; a second one breaks off at once.

    Threads other than the main one get no signals, and a handler of the user's own stays in its place.
    """
    work.interrupted = False
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield
        return

    def note(signum: int, frame: FrameType | None) -> None:
        work.interrupted = True
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
