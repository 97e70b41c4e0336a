"""Which arrays the user's code looks up in attributes while a device records, whose calls do not tell what they read.

A class gets a data descriptor in the place of an attribute, for as long as a trace runs: it forwards to the object's
own dictionary, and tells the trace of this thread.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, Protocol

from xpcnn.backend.graph.code import MISSING

_lock = threading.Lock()
_installed: dict[tuple[type, str], Watched] = {}


class Listener(Protocol):
    """What is told of attributes."""

    def looks_up(self, value: Any) -> None:
        """Take in that somebody gets a value."""

    def assigns(self, thing: Any, name: str, value: Any) -> None:
        """Take in that an attribute is about to get a value."""


class Watched:
    """Stands for an attribute of all objects of a class; `listener` returns who is told, in this thread."""

    def __init__(self, kind: type, name: str, listener: Callable[[], Listener | None]) -> None:
        self.kind, self.name, self.listener = kind, name, listener
        self.hidden = vars(kind).get(name, MISSING)
        self.traces = 0

    def __get__(self, thing: Any, owner: type) -> Any:
        values = {} if thing is None else vars(thing)
        if self.name in values:
            listener = self.listener()
            if listener is not None:
                listener.looks_up(values[self.name])
            return values[self.name]
        value = self.hidden
        if value is MISSING:
            return getattr(super(self.kind, owner if thing is None else thing), self.name)
        return value.__get__(thing, owner) if hasattr(type(value), "__get__") else value

    def __set__(self, thing: Any, value: Any) -> None:
        listener = self.listener()
        if listener is not None:
            listener.assigns(thing, self.name, value)
        vars(thing)[self.name] = value

    def __delete__(self, thing: Any) -> None:
        if self.name not in vars(thing):
            raise AttributeError(f"{type(thing).__name__!r} object has no attribute {self.name!r}")
        del vars(thing)[self.name]


def watch(kind: type, name: str, listener: Callable[[], Listener | None]) -> bool:
    """Put a `Watched` in the place of an attribute, one for all traces; say whether that could be done."""
    with _lock:
        there = _installed.get((kind, name))
        if there is None:
            if hasattr(inspect.getattr_static(kind, name, None), "__set__"):
                return False  # a property or a slot: not what lies in the object's dictionary
            there = _installed[kind, name] = Watched(kind, name, listener)
            type.__setattr__(kind, name, there)
        there.traces += 1
        return True


def unwatch(kind: type, name: str) -> None:
    """Take it away when no trace needs it any more."""
    with _lock:
        there = _installed[kind, name]
        there.traces -= 1
        if there.traces:
            return
        del _installed[kind, name]
        if there.hidden is MISSING:
            type.__delattr__(kind, name)
        else:
            type.__setattr__(kind, name, there.hidden)


def unwatched(value: Any) -> Any:
    """Return what a class holds behind a `Watched`."""
    return value.hidden if isinstance(value, Watched) else value
