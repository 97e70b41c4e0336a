"""A graph with what it depends on, whether that is as it was, and what a call that replays it gives back."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from xpcnn.backend.graph import guards
from xpcnn.backend.graph.code import MISSING, look_up, put
from xpcnn.backend.graph.extents import Extents
from xpcnn.backend.graph.guards import Guarded, Tokens, TooMuch
from xpcnn.backend.graph.tracing import TOO_MUCH, Tracing

if TYPE_CHECKING:
    from xpcnn.backend.base import Backend


# What `Record.changed` says of gradients and settings.
GRADIENTS, SETTING = "whether gradients are zero", "a setting of the backend"


class NotReplayable(Exception):
    """A function gives something back that no replay could make."""


class Record:
    """A graph with what it depends on, and what it gives back."""

    def __init__(
        self,
        backend: Backend,
        tracing: Tracing,
        replay: Callable[[], None],
        slots: list[Any],
        result: Any,
        writes: bool,
        arguments: list[Any],
    ) -> None:
        self._backend, self._replay, self._slots = backend, replay, slots
        self._is_array = tracing.tokens.is_array
        self._copyto = backend.xp.copyto
        self._hosted = tuple(tracing.hosted)
        self._afterwards = tuple(tracing.afterwards)
        self.replays = 0
        known = [*tracing.arrays.met.values(), *(a for part in tracing.seen.values() for a in part.arrays())]
        is_own = getattr(replay, "is_own", None) or (lambda array: not any(array is root for root in known))
        self._template = _template(result, backend, slots, is_own, self._is_array)
        effects = tracing.array_effects
        self._effects = [
            (place, name, _template(value, backend, slots, is_own, self._is_array)) for place, name, value in effects
        ]
        flags = [
            (part, tracing.states[id(part)][0], part.grad_is_zero)
            for part in tracing.seen.values()
            if hasattr(part, "grad_is_zero")
        ]
        self._expected = [(part, before) for part, before, _ in flags]
        self._after = [(part, after) for part, before, after in flags if before is not after]
        # Guards.
        self._held = tracing.tokens.held, tracing.arrays.met, tracing.objects
        self._things = tracing.guarded()
        self._loose = [(thing, token, without) for thing, token, without, loose in self._things if loose]
        names = tracing.read_values()
        if any(each.token is TOO_MUCH for each in names):
            (name, *_) = [each.name for each in names if each.token is TOO_MUCH]
            raise NotReplayable(f"{name!r} holds more than is worth comparing at every call")
        assigned = {(id(place), name) for place, name, _ in effects}
        names = [each for each in names if (id(each.place), each.name) not in assigned]
        self._names = [(each.place, each.name, each.value) for each in names if not each.loose]
        self._containers = [(each.place, each.name, each.token) for each in names if each.loose]
        self._settings = backend.settings()
        if not self._same():
            raise NotReplayable(f"it changes what it depends on ({self.changed})")
        self._version = guards.version[0]
        known_writes = getattr(replay, "writes", None)  # of what a device records nobody knows
        self.written = [i for i, slot in enumerate(slots) if writes and (known_writes is None or known_writes(slot))]
        written = getattr(replay, "written", None)  # nobody knows of a device: all that is not an argument
        others = written() if written else (a for a in known if not any(a is each for each in arguments))
        self._written_elsewhere = Memory(backend, list(others))
        live = [each for each in _leaves(self._template) if not isinstance(each, int)]
        live += [each for _, _, template in self._effects for each in _leaves(template) if not isinstance(each, int)]
        live += [slots[i] for i in self.written]
        keep_only = getattr(replay, "keep_only", None)
        if keep_only is not None:
            keep_only(live)

    changed = ""

    @property
    def filled(self) -> list[Any]:
        """The parameters whose gradients were zero before, and are not after it."""
        return [part for part, after in self._after if not after]

    # --- whether it holds -------------------------------------------------------------------------------------------

    def holds(self, gradients: bool = True) -> bool:
        """Whether all that was read on the host is as it was."""
        if guards.version[0] != self._version:
            now = guards.version[0]
            if not self._same():
                return False
            self._version = now
        for place, name, value in self._names:
            if type(place) is dict:
                if place.get(name, MISSING) is value:
                    continue
            elif type(place) is types.CellType:
                try:
                    if place.cell_contents is value:
                        continue
                except ValueError:
                    return False
            elif look_up(place, name) is value:
                continue
            if not _equal(look_up(place, name), value):
                self.changed = name
                return False
        if self._loose or self._containers:
            tokens = Tokens(self._is_array, self._backend.untraced)
            for thing, token, without in self._loose:
                if _token(tokens, thing, without) != token:
                    self.changed = type(thing).__name__
                    return False
            for place, name, token in self._containers:
                try:
                    if tokens.begin().of(look_up(place, name)) != token:
                        self.changed = name
                        return False
                except TooMuch:
                    return False
        for part, before in self._expected if gradients else ():
            if part.grad_is_zero is not before:
                self.changed = GRADIENTS
                return False
        return True

    def settle(self) -> None:
        """Let objects of the library bring to order what the user has changed."""
        for thing, _, _, _ in self._things:
            if isinstance(thing, Guarded):
                thing.settle()

    def _same(self) -> bool:
        if self._backend.settings() != self._settings:
            self.changed = SETTING
            return False
        self.settle()
        tokens = Tokens(self._is_array, self._backend.untraced)
        for thing, token, without, _ in self._things:
            if _token(tokens, thing, without) != token:
                self.changed = type(thing).__name__
                return False
        return True

    def meets(self, arrays: list[Any]) -> bool:
        """Whether arguments share memory with each other or with what is written: copies would not see it change."""
        if len(arrays) > 1 and self.written and overlap(self._backend, arrays):
            return True
        return self._written_elsewhere.meets(arrays)

    # --- what it does -----------------------------------------------------------------------------------------------

    def replay(self, arrays: list[Any], out: Any = None) -> Any:
        """Do what the function did, with these arrays."""
        for slot, array in zip(self._slots, arrays, strict=True):
            self._backend.copyto(slot, array)
        for function in self._hosted:
            function()
        self._replay()
        self.replays += 1
        for part, after in self._after:
            part.grad_is_zero = after
        return self.first(arrays, out)

    def first(self, arrays: list[Any], out: Any = None) -> Any:
        """Hand out copies of what the last replay, or the tracing, has left; an array alone in `out`, if given."""
        for i in self.written:
            self._copyto(arrays[i], self._slots[i])
        for function in self._afterwards:
            function()
        for place, name, template in self._effects:
            put(place, name, self._built(template, arrays))
        if out is not None and type(self._template) is _Own:
            self._copyto(out, self._template.array)
            return out
        return self._built(self._template, arrays)

    def part(self, index: int, arrays: list[Any]) -> Any:
        """Return one of the results alone, of a function that returns a tuple."""
        return self._built(self._template.values[index], arrays)

    def _built(self, template: Any, arrays: list[Any]) -> Any:
        kind = type(template)
        if kind is _Own:
            return self._backend.duplicate(template.array)
        if kind is _Given:
            return arrays[template.index]
        if kind is _Nest:
            return template.make([self._built(each, arrays) for each in template.values])
        return template.value


class Memory:
    """The memory of arrays that outlive a call."""

    def __init__(self, backend: Backend, arrays: list[Any]) -> None:
        self._extent, self._arrays = backend.extent, arrays
        pieces = [piece for each in arrays if (piece := backend.extent(each)) is not None]
        self._extents = Extents(pieces)
        self._owners = {id(_owner(each)) for each in arrays}

    def meets(self, arrays: list[Any]) -> bool:
        """Whether one of `arrays` lies in it."""
        for array in arrays:
            owner = _owner(array)
            if getattr(owner, "base", None) is None and id(owner) not in self._owners:
                continue  # memory of its own, or a part of such
            piece = self._extent(array)
            if any(array is each for each in self._arrays) if piece is None else self._extents.meets(*piece):
                return True
        return False


def _owner(array: Any) -> Any:
    base = getattr(array, "base", None)
    return _owner(base) if type(base) is type(array) else array


def overlap(backend: Backend, arrays: list[Any]) -> bool:
    """Whether two arguments share memory: what is written to one is then seen in the other, but not in its copy."""
    return any(backend.overlap(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


class _Own:
    """A result in memory of the graph."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array


class _Given:
    """An argument, given back as it came."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class _Same:
    """What is the same each time."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Nest:
    """Results in a tuple, list or dict."""

    __slots__ = ("make", "values")

    def __init__(self, make: Callable[[list[Any]], Any], values: list[Any]) -> None:
        self.make, self.values = make, values


def _template(value: Any, backend: Backend, slots: list[Any], is_own: Any, is_array: Any) -> Any:
    plain = backend.untraced(value)
    if is_array(plain):
        for index, slot in enumerate(slots):
            if plain is slot:
                return _Given(index)
        return _Own(plain) if is_own(plain) or any(backend.overlap(plain, slot) for slot in slots) else _Same(plain)
    kind = type(value)

    def inside(values: Any) -> list[Any]:
        return [_template(each, backend, slots, is_own, is_array) for each in values]

    if kind is tuple or kind is list:
        return _Nest(kind, inside(value))
    if kind is dict:
        names = list(value)
        return _Nest(lambda made: dict(zip(names, made, strict=True)), inside(value.values()))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _Nest(lambda made: kind(*made), inside(value))
    if isinstance(value, (*guards.PLAIN, Guarded, *guards.BY_IDENTITY)):
        return _Same(value)
    raise NotReplayable(f"it gives back a {kind.__name__}, which a replay could not make anew")


def _leaves(template: Any) -> Iterator[Any]:
    if type(template) is _Own:
        yield template.array
    elif type(template) is _Nest:
        for each in template.values:
            yield from _leaves(each)


def _token(tokens: Tokens, thing: Any, without: frozenset[str]) -> Any:
    try:
        if isinstance(thing, Guarded):
            return thing.guard_token(tokens.begin(), without)
        return tokens.begin().of(thing)
    except TooMuch:
        return object()


def _equal(a: Any, b: Any) -> bool:
    """Whether two values that are not one object are the same plain value."""
    return type(a) is type(b) and isinstance(a, (*guards.PLAIN, tuple)) and bool(a == b)
