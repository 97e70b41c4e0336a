"""What forwards keep for backward: who takes it, how long it lives, and what must not have changed meanwhile.

A `Forward` is one outermost call of a module and holds an entry for each cache that was kept in it; each module has
the entries of its own on a stack. So all that one forward kept can be dropped at once, wherever it lies. A `Backward`
is one outermost backward and knows what has been taken in it: one that raises before any layer has used its cache up
gives back all it took, and one that raises later drops the rest, which would fit no other gradient.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.backend.graph import is_captured, is_tracing
from xpcnn.errors import DTypeError, StateError
from xpcnn.functional.channelwise import ChannelOp
from xpcnn.nn.parameter import Parameter, clock

WARN_AT, MOST = 16, 64  # forwards of one module that may wait for their backward: without a warning, and at all

# Whether the arrays that backward needs are watched for writes by others: XPCNN_CHECK=1.
checks_writes = os.environ.get("XPCNN_CHECK", "") not in ("", "0")


class _Gone:
    """Stands where a cache was."""


GONE = _Gone()


class Entry:
    """One cache of one layer; `cache` is GONE once it is taken or dropped."""

    __slots__ = ("cache", "forward", "sums", "time")

    def __init__(self, cache: Any, forward: weakref.ref[Forward]) -> None:
        self.cache, self.forward, self.time = cache, forward, clock.now
        self.sums: list[tuple[str, int]] | None = None


class Deferred:
    """Stands for the caches of a forward that can be computed again."""

    __slots__ = ()

    def restore(self) -> None:
        """Put the caches where this stands, in all entries of its forward."""
        raise NotImplementedError


Stack = list[Entry]


class Forward:
    """An outermost forward: what it has kept, and the buffers as they were before it.

    Attributes
    ----------
    origin : object
        What a `Deferred` needs besides, and must not hold: a network that is dropped goes with its forwards.
    """

    __slots__ = ("__weakref__", "buffers", "entries", "origin", "ref")

    def __init__(self) -> None:
        self.entries: Stack = []
        self.buffers: list[tuple[Array, Array]] = []
        self.origin: Any = None
        self.ref = weakref.ref(self)  # entries refer to it weakly, or a model that is dropped would not go at once

    def keep(self, stack: Stack, cache: Any) -> Entry:
        """Add a cache to a module's stack."""
        if stack and (stack[-1].cache is GONE or stack[-1].forward() is None):  # or its network, such as model[:3]
            stack[:] = [entry for entry in stack if entry.cache is not GONE and entry.forward() is not None]
        entry = Entry(cache, self.ref)
        stack.append(entry)
        self.entries.append(entry)
        return entry

    def remember(self, buffers: Iterable[Array]) -> None:
        """Copy buffers that are about to change, such as running statistics.

        Not while a device captures, which runs nothing: there is nothing to undo.
        """
        if is_captured():
            return
        for array in buffers:
            backend = backend_of(array)
            if backend.home is backend or is_tracing():
                self.buffers.append((array, backend.copy(array)))

    def undo(self, kept: int = 0, remembered: int = 0) -> None:
        """Drop what has been kept beyond `kept` caches, and set buffers beyond `remembered` back."""
        self.discard(kept)
        with contextlib.suppress(Exception):  # the device may be what failed; the first error says more
            for array, copy in reversed(self.buffers[remembered:]):
                backend_of(array).xp.copyto(array, copy)
        del self.buffers[remembered:]

    def discard(self, first: int = 0, last: int | None = None) -> None:
        """Drop the caches from the first to before the last, by the order in which they were kept."""
        for entry in self.entries[first:last]:
            entry.cache = GONE
        if last is None:
            del self.entries[first:]

    @property
    def waits(self) -> bool:
        """Whether one of its caches has not been taken."""
        entries = self.entries
        while entries and entries[-1].cache is GONE:
            entries.pop()
        return bool(entries)


forward_now: ContextVar[Forward | None] = ContextVar("xpcnn_forward", default=None)


def make_room(forwards: list[Forward], training: bool, name: str) -> None:
    """Get ready for one more outermost forward of a module, of which `forwards` wait for their backward.

    In evaluation mode the earlier ones end here.

    Raises
    ------
    StateError
        There are too many; nothing has changed.
    """
    if not training:
        with contextlib.suppress(IndexError):  # another thread may be faster
            while forwards:
                forwards.pop().discard()
        return
    forwards[:] = [forward for forward in forwards if forward.waits]
    if len(forwards) >= MOST:
        raise StateError(
            f"{name}: expected at most {MOST} forwards in training mode without a backward, got one more; "
            "put forwards that need none inside xpcnn.no_grad(), or call forget() to drop what they kept"
        )
    if len(forwards) == WARN_AT:
        warnings.warn(
            f"{name}: {WARN_AT + 1} forwards in training mode without a backward, and each keeps its activations; "
            f"put forwards that need no backward inside xpcnn.no_grad() (the one after {MOST} is an error)",
            RuntimeWarning,
            stacklevel=4,
        )


class Span:
    """What is kept in a part of a forward: between making it and `close`."""

    __slots__ = ("_first", "_forward", "_last")

    def __init__(self) -> None:
        forward = forward_now.get()
        self._forward = None if forward is None else forward.ref
        self._first = self._last = 0 if forward is None else len(forward.entries)

    def close(self) -> None:
        """End it."""
        forward = None if self._forward is None else self._forward()
        if forward is not None:
            self._last = len(forward.entries)

    def discard(self) -> None:
        """Drop what no backward has taken of it."""
        forward = None if self._forward is None else self._forward()
        if forward is not None:
            forward.discard(self._first, self._last)


class Backward:
    """An outermost backward: what it has taken that no layer has used up yet."""

    __slots__ = ("forward", "taken", "used")

    def __init__(self) -> None:
        self.taken: list[tuple[Stack, Entry, Any]] = []
        self.used = 0
        self.forward: weakref.ref[Forward] | None = None

    def give_back(self, start: int, used: int) -> None:
        """Undo a part of it that has raised: what it took from `start` on goes back, if nothing was used up."""
        if self.used == used:
            for stack, entry, cache in reversed(self.taken[start:]):
                entry.cache = cache
                stack.append(entry)
        else:
            forward = None if self.forward is None else self.forward()
            if forward is not None:
                forward.discard()
        del self.taken[start:]

    def finish(self, forwards: list[Forward]) -> None:
        """Drop what the forward of the module has kept and its backward has not taken, unless that has raised."""
        forward = None if self.forward is None or not self.used else self.forward()
        if forward is not None and forward in forwards:
            forward.discard()
            forwards.remove(forward)


_backward_now: ContextVar[Backward | None] = ContextVar("xpcnn_backward", default=None)


def take(stack: Stack, restore: bool = True) -> Entry | None:
    """Take the last entry from a stack, to be given back if the backward that takes it raises; None for no entry."""
    while stack:
        if restore and isinstance(stack[-1].cache, Deferred):
            stack[-1].cache.restore()
        entry = stack.pop()
        if restore and isinstance(entry.cache, Deferred):
            entry.cache = GONE  # its network is no more
        if entry.cache is not GONE:
            backward = _backward_now.get()
            if backward is not None:
                backward.taken.append((stack, entry, entry.cache))
                if backward.forward is None:
                    backward.forward = entry.forward
            return entry
    return None


def drop(stack: Stack) -> None:
    """Drop the last entry of a stack, for a backward that needs nothing of it."""
    entry = take(stack, restore=False)
    if entry is not None:
        entry.cache = GONE


def use_up() -> None:
    """Say that a part of the backward at work is done with its cache, so that an error can give nothing back."""
    backward = _backward_now.get()
    if backward is not None:
        backward.used += 1


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a class's backward so that it loses no cache where it raises, and takes `input_gradient`.

    One that has no such argument of its own computes dx all the same, and None comes of it.
    """
    code = getattr(function, "__code__", None)
    if getattr(function, "is_guarded", False) or code is None:
        return function
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    spares = "input_gradient" in names or bool(code.co_flags & 0x08)  # **options

    @functools.wraps(function)
    def backward(self: Any, *gradients: Any, **options: Any) -> Any:
        now = _backward_now.get()
        if now is None:
            token = _backward_now.set(Backward())
            try:
                return backward(self, *gradients, **options)
            finally:
                _backward_now.get().finish(self._forwards)  # type: ignore[union-attr]
                _backward_now.reset(token)
        taken = now.taken
        start, used = len(taken), now.used
        wanted = True if spares else options.pop("input_gradient", True)
        try:
            dx = function(self, *gradients, **options)
        except BaseException:
            now.give_back(start, used)
            raise
        if len(taken) > start:
            del taken[start:]
            now.used = used + 1
        return dx if wanted else None

    if not spares:
        del backward.__wrapped__  # whose signature is another
    backward.is_guarded = True  # type: ignore[attr-defined]
    return backward


# --- what must not change between forward and backward ----------------------------------------------------------------


def check_unchanged(layer: str, entry: Entry, cache: Any, parameters: Iterable[Parameter]) -> None:
    """Raise StateError where the library has changed a parameter, or somebody an array, since a cache was kept."""
    if entry.time != clock.now:
        for parameter in parameters:
            if parameter.changed_at > entry.time:
                raise StateError(
                    f"{layer}.backward: expected the parameters that its forward read, got {parameter.name!r} changed "
                    f"since then by {parameter.changed_by}; run backward before it, or forward once more after it"
                )
    if entry.sums is not None:
        for (_, before), (name, now) in zip(entry.sums, sums_of(cache, parameters), strict=False):
            if before != now:
                raise StateError(
                    f"{layer}.backward: expected the arrays that its forward read as they were, got {name!r} written "
                    "to since then; write after backward, or into a copy"
                )


def sums_of(cache: Any, parameters: Iterable[Parameter]) -> list[tuple[str, int]]:
    """Return (name, checksum) of every array in a cache and in parameters."""
    arrays = [*_arrays("cache", cache, set()), *((each.name or "parameter", each.data) for each in parameters)]
    return [(name, hash(backend_of(array).to_numpy(array).tobytes())) for name, array in arrays]


def _arrays(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Array]]:
    """Yield (name, array) of all arrays in nested tuples, lists and dicts."""
    if id(value) in seen or isinstance(value, (str, int, float, type, type(None), ChannelOp)):
        return  # of an operation's arrays backward reads parameters alone
    seen.add(id(value))
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        with contextlib.suppress(DTypeError):
            backend_of(value)
            yield name, value
        return
    else:  # results of a backend's plan, what groups of layers have kept, or nothing of the kind
        parts = enumerate([*getattr(value, "arrays", ()), *getattr(value, "caches", ())])
    for part, each in parts:
        yield from _arrays(f"{name}.{part}", each, seen)
