"""Ctrl-C, SIGTERM and SIGHUP during training: the step is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

try:  # what `signal` wraps: its enumerations take ten times as long, a share of a small network's step
    from _signal import getsignal as _get  # type: ignore[import-not-found]
    from _signal import signal as _set
except ImportError:
    from signal import getsignal as _get
    from signal import signal as _set

_SIGINT = int(signal.SIGINT)
# Of a batch system, a container or `kill`, and of a terminal that closes; Windows has no SIGHUP.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interruption(KeyboardInterrupt):
    """A signal asked for the end; a KeyboardInterrupt, so that whoever expects Ctrl-C needs to know nothing else.

    Attributes
    ----------
    signum : int
        Of the signal; a command ends with status 128 + signum, as a shell would report it.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = int(signum)


class Interruptible(Protocol):
    """What looks at `interrupted` after each step."""

    interrupted: bool
    signum: int


@contextmanager
def interruptible(work: Interruptible) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP set `work.interrupted` and `work.signum`; a second one breaks off at once.

    Threads other than the main one get no signals; a handler of the user's own stays in its place, and so does the
    deafness that `nohup` asks for.
    """
    work.interrupted, work.signum = False, int(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        work.interrupted, work.signum = True, signum
        for each, handler in usual.items():
            signal.signal(each, handler)

    usual = _replaced(note)
    try:
        yield
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)


@contextmanager
def ending_signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Interruption` wherever the main thread is, as Ctrl-C raises KeyboardInterrupt."""
    usual = _replaced(_raise, _ENDING)
    try:
        yield
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)


def unbroken(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function that must not be left in its middle: Ctrl-C is held back until it returns.

    Threads other than the main one get no signals, and a handler of the user's own stays in its place.
    """
    usual = _get(_SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        function(*arguments)
        return
    held: list[int] = []
    _set(_SIGINT, lambda signum, frame: held.append(signum))
    try:
        function(*arguments)
    finally:
        _set(_SIGINT, usual)
    if held:
        raise KeyboardInterrupt


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interruption(f"ended by {signal.Signals(signum).name}", signum)


def _replaced(handler: Any, signals: Any = (signal.SIGINT, *_ENDING)) -> dict[int, Any]:
    """Put a handler in the place of those that nobody chose; return these."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    usual = {each: signal.getsignal(each) for each in signals}
    usual = {
        each: present
        for each, present in usual.items()
        if present in (signal.SIG_DFL, signal.default_int_handler, _raise)
    }
    for each in usual:
        signal.signal(each, handler)
    return usual
