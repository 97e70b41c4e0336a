"""A function while it is traced: what it meets and does on the host, and why it cannot be replayed, if so."""

from __future__ import annotations

import collections
import contextlib
import gc
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xpcnn.backend.graph import guards
from xpcnn.backend.graph.code import (
    LOOKS_AT_ALL,
    MISSING,
    PACKAGE,
    STANDARD,
    attributes_of,
    functions_of,
    globals_of,
    is_users,
    is_users_class,
    is_whole,
    line_of,
    look_up,
    put,
    slots_of,
    where,
)
from xpcnn.backend.graph.guards import PLAIN, Guarded, Tokens, TooMuch
from xpcnn.backend.graph.stand_ins import StandIns
from xpcnn.backend.graph.watch import unwatch, unwatched, watch

# Modules whose functions tell what no replay could know, or do what no replay would do again.
OUTSIDE = frozenset({"random", "_random", "time", "secrets", "posix", "nt", "_io", "socket", "numpy.random"})
SPOKEN = frozenset({"print", "input", "open"})  # builtins that do something outside
HANDED_ON = tuple(STANDARD + each for each in ("logging", "queue.py", "threading.py", "subprocess.py", "asyncio"))
SET_UP = frozenset(
    {"manual_seed", "generator", "set_state", "set_num_threads", "set_backend", "set_winograd"}
)  # the library's own
UNWATCHED = frozenset({"__dict__", "vars", "deepcopy"})  # ways to an attribute past what watches it
OUTSIDE_TYPES = frozenset({"Random", "SystemRandom", "Generator", "RandomState", "TextIOWrapper", "BufferedWriter"})

_local = threading.local()
traces = [0]  # traces that run, in all threads: nothing else is looked at while it is 0


def tracing() -> Tracing | None:
    """Return the trace of this thread, or None."""
    return getattr(_local, "tracing", None) if traces[0] else None


def is_tracing() -> bool:
    """Whether this thread traces a function."""
    return traces[0] > 0 and getattr(_local, "tracing", None) is not None


def is_captured() -> bool:
    """Whether this thread traces a function on a device, whose work is done by the replays alone."""
    found = tracing()
    return found is not None and found.arrays.wrap is None


def see(thing: Guarded) -> None:
    """Say that a result depends on an object of the library: a graph that is being traced guards it."""
    if traces[0]:
        found = getattr(_local, "tracing", None)
        if found is not None:
            found.see(thing)


def host(function: Callable[[], None]) -> None:
    """Do something on the host that belongs to a step, now and before, or in, each replay: count it, draw a key."""
    found = tracing()
    note = getattr(_local, "note", None) if found is None else found.host
    if note is None or not note(function):
        function()


def note_host(note: Callable[[Callable[[], None]], bool] | None) -> None:
    """Let `note` do in this thread what `host` is asked for, while a backend captures what no `Tracing` watches."""
    _local.note = note


class Refused(BaseException):
    """Ends a trace that no replay can come of, past whatever the function catches; `Tracing.reason` says why."""


class Tracing:
    """What is known of a function beyond its calls on arrays.

    Parameters
    ----------
    tokens : Tokens
        Of what is guarded.
    tools : tuple of str
        Paths of the backend's own code.
    stops : bool
        Whether to raise `Refused` as soon as there is a reason: where the function runs as written after a trace in
        vain, it prints, draws and counts once.

    Attributes
    ----------
    seen : dict
        By identity, the objects of the library that it has met.
    reason : str or None
        Why it cannot be replayed.
    arrays : StandIns
        The arrays that were there before, and what stands for them.
    hosted : list of callable
        What each replay does on the host before it begins (where the backend does not do it in its place).
    """

    def __init__(self, tokens: Tokens, tools: tuple[str, ...] = (), stops: bool = False) -> None:
        self.tokens, self._tools, self._stops = tokens, tools, stops
        # What the backend that traces does in its own way: noting what is done on the host, standing in for arrays.
        self.note: Callable[[Callable[[], None]], bool] | None = None
        self.seen: dict[int, Guarded] = {}
        self.hosted: list[Callable[[], None]] = []
        self.reason: str | None = None
        self.arrays = StandIns(tokens)
        self.values: dict[tuple[int, str], Named] = {}
        self.names_read: set[str] = set()  # attributes that the user's code looks up
        self.reads_all = False
        self.before: dict[int, tuple[Any, dict[str, Any]]] = {}  # objects and their attributes at the beginning
        self.tokens_before: dict[int, tuple[Any, bool]] = {}
        self.states: dict[int, Any] = {}
        self.array_effects: list[tuple[Any, str, Any]] = []  # attributes that take an array with each call
        self.assigned: dict[int, set[str]] = {}
        self.changes_host = False
        self.afterwards: list[Callable[[], None]] = []  # what is done on the host after each call
        self.objects: dict[int, Any] = {}  # of the user's own
        self.generators: dict[int, tuple[Any, Any, Any]] = {}  # of random numbers, and their states
        self.used: set[int] = set()  # of those arrays, what a call reads or, on a device, was looked up
        self._watched: set[tuple[type, str]] = set()
        self._codes: set[Any] = set()
        self._profile: Any = None
        self._is_collecting = self._is_running = self._is_on_host = False
        self.is_within_library = False
        self._is_whole: bool | None = None

    # --- the library's objects ----------------------------------------------------------------------------------------

    def see(self, thing: Guarded) -> None:
        """Guard an object, and what it is made of."""
        for part in thing.parts():
            if id(part) not in self.seen:
                self.seen[id(part)] = part
                self.states[id(part)] = part.enter_trace()
                self._enter(part)

    def host(self, function: Callable[[], None]) -> bool:
        """Take in what is done on the host; say whether it is, or will be, done without the caller."""
        if self.note is not None:
            self._is_on_host = True  # what it calls is done again with it, whatever that is
            try:
                return self.note(function)
            finally:
                self._is_on_host = False
        self.hosted.append(function)
        return True

    def fail(self, reason: str, error: BaseException | None = None) -> None:
        """Note why there can be no replay, with the line of the user's code, which may have raised an error."""
        if self.reason is None:
            self.reason = f"{reason}{(self._raised(error) if error else '') or where()}"
        if self._stops and self._is_running:
            raise Refused

    def _raised(self, error: BaseException) -> str:
        """Return the line of the user's code below which an error was raised."""
        frames = traceback.walk_tb((error.__cause__ or error).__traceback__)
        lines = [line_of(frame.f_code, line) for frame, line in frames if self._is_users(frame.f_code.co_filename)]
        return lines[-1] if lines else ""

    # --- the user's code ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Tracing:
        _local.tracing = self
        traces[0] += 1
        self._is_running = True
        self._collects = gc.isenabled()
        gc.disable()  # what runs when garbage is collected is no part of the function
        gc.callbacks.insert(0, self._begin_collection)
        gc.callbacks.append(self._end_collection)
        legacy = sys.modules.get("numpy.random.mtrand")
        if legacy is not None:
            self._watch_draws(legacy._rand)
        self._profile = sys.getprofile()
        if not callable(self._profile) and self._profile is not None:
            self._profile.disable()  # cProfile's, which cannot be called (before Python 3.12)
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *details: object) -> None:
        self._is_running = False
        for kind, name in self._watched:
            unwatch(kind, name)
        self._watched.clear()
        if callable(self._profile) or self._profile is None:
            sys.setprofile(self._profile)
        else:
            sys.setprofile(None)
            self._profile.enable()
        gc.callbacks.remove(self._begin_collection)
        gc.callbacks.remove(self._end_collection)
        if self._collects:
            gc.enable()
        traces[0] -= 1
        _local.tracing = None

    @contextlib.contextmanager
    def within_library(self, backend: Any) -> Iterator[None]:
        """Do without a look at each call in a function of the library's, which works on arrays alone.

        Looks at some million calls took half of the time in which a deep network is recorded. Where a function of the
        user's stands in the place of any of the library's, all is looked at.
        """
        if self.is_within_library or not self._is_running or self._is_whole is False:
            yield
            return
        self.is_within_library = True
        sys.setprofile(self._profile if callable(self._profile) else None)
        try:
            if self._is_whole is None:
                self._is_whole = is_whole(vars(backend), vars(backend.home), backend.fused)
            if not self._is_whole:
                self.is_within_library = False
                sys.setprofile(self._watch)
            yield
        finally:
            sys.setprofile(self._watch)
            self.is_within_library = False

    def _begin_collection(self, phase: str, info: Any) -> None:
        if phase == "start" and tracing() is self:
            self._is_collecting = True

    def _end_collection(self, phase: str, info: Any) -> None:
        if phase == "stop" and tracing() is self:
            self._is_collecting = False

    def _is_users(self, filename: str | None) -> bool:
        return is_users(filename) and not str(filename).startswith(self._tools)

    def _is_users_class(self, kind: type) -> bool:
        return is_users_class(kind) and not str(getattr(sys.modules.get(kind.__module__), "__file__", "")).startswith(
            self._tools
        )

    def _watch(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if callable(self._profile):
            self._profile(frame, event, argument)
        if self._is_collecting or self._is_on_host:
            return
        if event == "call":
            code = frame.f_code
            if code not in self._codes:
                self._codes.add(code)
                if self._is_users(code.co_filename) and not str(frame.f_globals.get("__name__")).startswith(
                    "namedtuple_"
                ):
                    self.read(code, frame.f_globals, frame.f_locals)
                elif self._is_outside(code, frame.f_back):
                    self._codes.discard(code)
                    self.fail(f"{code.co_qualname} does something beside arrays at each call")
        elif event == "c_call" and self._is_users(frame.f_code.co_filename):
            module = getattr(argument, "__module__", None)
            owner = getattr(argument, "__self__", None)
            spoken = module == "builtins" and getattr(argument, "__name__", "") in SPOKEN
            if spoken or module in OUTSIDE or type(owner).__name__ in OUTSIDE_TYPES:
                self.fail(f"{getattr(argument, '__qualname__', argument)} gives or does something else at each call")

    def _is_outside(self, code: types.CodeType, caller: types.FrameType | None) -> bool:
        """Whether the user's code calls something that no replay would do again."""
        name = code.co_filename
        if not name.startswith(HANDED_ON) and not (code.co_name in SET_UP and name.startswith(PACKAGE)):
            return False
        return caller is not None and self._is_users(caller.f_code.co_filename)

    def read(self, code: types.CodeType, namespace: dict[str, Any], variables: dict[str, Any]) -> None:
        """Guard what a function of the user's own reads: globals, what its closure holds, its arguments' attributes."""
        self._note_names(code)
        for name in globals_of(code):
            if name in namespace:
                self._meet(namespace, name)
        for name in code.co_freevars:
            if name in variables:
                for function in functions_of(code, variables):
                    for cell_name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
                        self._meet(cell, cell_name)
                break
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        for name in arguments:
            if name in variables:
                self.consider(variables[name])
        if self._stops:
            self._refuse_what_moves_on()

    def read_function(self, function: Any) -> None:
        """Guard what a function that is about to be traced reads."""
        if isinstance(function, types.MethodType):
            self.consider(function.__self__)
            function = function.__func__
        if isinstance(function, types.FunctionType):
            self._codes.add(function.__code__)
            if not self._is_users(function.__code__.co_filename):
                return
            self._note_names(function.__code__)
            for name in globals_of(function.__code__):
                if name in function.__globals__:
                    self._meet(function.__globals__, name)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                self._meet(cell, name)
        else:
            self.consider(function)

    def _note_names(self, code: types.CodeType) -> None:
        names = attributes_of(code)
        self.names_read |= names
        self.reads_all = self.reads_all or not names.isdisjoint(LOOKS_AT_ALL)

    def _meet(self, place: Any, name: str) -> None:
        key = id(place), name
        if key in self.values:
            return
        value = look_up(place, name)
        if value is MISSING:
            return
        self.values[key] = self._named(place, name, value)
        if self.values[key].token is TOO_MUCH:
            self.fail(f"{name!r} holds more than is worth comparing at every call")
        self.arrays.swap(place, name, value)
        self.consider(value)
        if isinstance(value, types.ModuleType) and self._is_users(getattr(value, "__file__", None)):
            self._meet_plain(vars(value))

    def _meet_plain(self, namespace: Any) -> None:
        for name, value in list(namespace.items()):
            if not name.startswith("__") and isinstance(value, PLAIN_VALUES):
                self._note_attribute(namespace, name, value)

    def _named(self, place: Any, name: str, value: Any, is_attribute: bool = False) -> Named:
        tokens = self.tokens.begin()
        try:
            token = tokens.of(value)
        except TooMuch:
            token = TOO_MUCH
        return Named(place, name, value, token, tokens.loose, is_attribute)

    def _note_attribute(self, place: Any, name: str, value: Any) -> None:
        key = id(place), name
        if key not in self.values:
            self.values[key] = self._named(place, name, value, True)

    def read_values(self) -> list[Named]:
        """Return the names that were looked up, with what they stood for."""
        return [
            each
            for each in self.values.values()
            if not each.is_attribute or self.reads_all or each.name in self.names_read
        ]

    def consider(self, value: Any, depth: int = 0) -> None:
        """Guard an object that was met; remember the arrays that it holds as ones that were there before."""
        if isinstance(value, Guarded):
            self.see(value)
        elif self.tokens.is_array(value):
            self.arrays.met[id(value)] = value
        elif isinstance(value, (list, tuple, dict, set)):
            if depth < 3 and len(value) <= 1000:
                for each in list(value.values()) if isinstance(value, dict) else list(value):
                    self.consider(each, depth + 1)
        elif isinstance(value, types.FunctionType):
            if value.__closure__ and self._is_users(value.__code__.co_filename) and depth < 3:
                for name, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
                    self._meet(cell, name)
        elif isinstance(value, types.MethodType):
            self.consider(value.__self__, depth + 1)
        elif isinstance(value, guards.BY_IDENTITY):
            if isinstance(value, type):
                self._note_class(value)
        elif type(value).__name__ in OUTSIDE_TYPES and _drawn(value) is not None:
            self._watch_draws(value)
        elif hasattr(value, "__dict__") and self._is_users_class(type(value)) and id(value) not in self.objects:
            self.objects[id(value)] = value
            attributes = dict(vars(value))
            for name, each in attributes.items():
                self._note_attribute(vars(value), name, each)
            self._enter(value)
            if depth < 4:
                self.consider(attributes, depth + 1)
        elif self._is_users_class(type(value)):
            for name in slots_of(type(value)):
                self._meet(value, name)

    def _enter(self, thing: Any) -> None:
        """Put what stands for an array in a trace in the place of each that an object holds."""
        if isinstance(thing, Guarded):
            tokens = self.tokens.begin()
            try:
                self.tokens_before[id(thing)] = thing.guard_token(tokens), tokens.loose
            except TooMuch:
                self.fail(f"a {type(thing).__name__} holds more than is worth comparing at every call")
                self.tokens_before[id(thing)] = None, False
        attributes = getattr(thing, "__dict__", None)
        if attributes is None:
            return
        self.before[id(thing)] = thing, dict(attributes)
        for name, value in self.before[id(thing)][1].items():
            if self.tokens.is_array(value) or self._is_users_class(type(thing)):
                self.arrays.swap(attributes, name, value)
            if type(value).__name__ in OUTSIDE_TYPES:
                self.consider(value)
            if self._stops and self._is_running and self._has_arrays(value):
                self._watch_attribute(thing, name)
        # Attributes of the user's own classes are read as the object's, unless something nearer hides them.
        for name in self._note_class(type(thing)):
            if name not in attributes:
                self._note_attribute(attributes, name, MISSING)

    def _note_class(self, kind: type) -> list[str]:
        """Guard attributes of a class and those below it; return their names."""
        kinds = [each for each in kind.__mro__ if self._is_users_class(each)]
        found = {
            name: None
            for each in kinds
            for name, value in list(vars(each).items())
            if not name.startswith("__") and unwatched(value) is not MISSING
        }
        for name in found:
            for each in kinds:
                self._note_attribute(each, name, unwatched(look_up(each, name)))
        return list(found)

    def _watch_attribute(self, thing: Any, name: str) -> None:
        key = type(thing), name
        if key in self._watched or (isinstance(thing, Guarded) and name in thing.unguarded):
            return
        if watch(*key, tracing):
            self._watched.add(key)

    def looks_up(self, value: Any) -> None:
        """Take arrays in an attribute as read: a device's calls do not tell which they read."""
        self.used.update(id(each) for each in self._leaves(value))

    def assigns(self, thing: Any, name: str, value: Any) -> None:
        """Refuse an array in the place of one that was looked up: the next call must look up the new one."""
        _, attributes = self.before.get(id(thing), (thing, {}))
        old = attributes.get(name)
        if value is not old and self._has_arrays(value) and any(id(each) in self.used for each in self._leaves(old)):
            self.changes_host = True
            self.fail(_reads_what_it_assigned(thing, name))

    def _watch_draws(self, generator: Any) -> None:
        self.generators[id(generator)] = generator, _drawn(generator), _bits(generator).state

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def leave(self, undo: bool) -> None:
        """Find what the function has changed on the host; attributes that hold traced arrays get plain ones."""
        self.arrays.put_back()
        before, _local.tracing = getattr(_local, "tracing", None), self
        traces[0] += 1
        try:
            self._leave(undo)
        finally:
            traces[0] -= 1
            _local.tracing = before

    def _leave(self, undo: bool) -> None:
        for generator, drawn, _ in self.generators.values():
            if _drawn(generator) != drawn:
                self.fail(f"it draws random numbers from a {type(generator).__name__}")
        for thing in self.seen.values():
            reason = thing.leave_trace(self.states[id(thing)], undo)
            if reason is not None:
                self.fail(reason)
        for thing, attributes in self.before.values():
            skipped = thing.unguarded if isinstance(thing, Guarded) else frozenset()
            now = vars(thing)
            for name in [*now]:
                old, new = attributes.get(name, MISSING), now[name]
                if new is old or name in skipped:
                    continue
                if self._has_arrays(new):
                    leaves = self._leaves(old)
                    number = not leaves and old is not MISSING and old is not None and self._is_read(name)
                    unknown = self._stops and bool(leaves) and not self.names_read.isdisjoint(UNWATCHED)
                    if number or unknown or any(id(each) in self.used for each in leaves):
                        self.changes_host = True
                        self.fail(_reads_what_it_assigned(thing, name))
                    self.array_effects.append((now, name, new))
                    self.assigned.setdefault(id(thing), set()).add(name)
                    now[name] = self.arrays.plain(new)
                elif not isinstance(thing, Guarded) and not self._is_read(name) and isinstance(new, PLAIN):
                    self.array_effects.append((now, name, new))
                elif not self._is_same(old, new):
                    self.changes_host = True
                    self.fail(f"it sets the attribute {name!r} of {_named(thing)} to another value")
            if any(name not in now for name in attributes):
                self.changes_host = True
                self.fail(f"it deletes an attribute of {_named(thing)}")
        self._refuse_what_moves_on()
        for each in self.read_values():
            place, name, value = each.place, each.name, each.value
            if (
                each.is_attribute
                and not isinstance(place, type)
                and any(place is vars(o) for o in self.objects.values())
            ):
                continue  # seen above
            now_there = look_up(place, name)
            if now_there is not value and not self._is_same(value, now_there):
                self.changes_host = True
                self.fail(f"it sets {name!r} to another value")
                put(place, name, self.arrays.plain(now_there))

    def _refuse_what_moves_on(self) -> None:
        for each in self.read_values():
            if moves_on(each.value):
                self.fail(f"it reads {each.name!r}, a {type(each.value).__name__}, which may be another at each call")

    def undo(self) -> None:
        """Give all objects the attributes that they had before, and generators of random numbers their states."""
        for generator, drawn, state in self.generators.values():
            if _drawn(generator) != drawn:
                _bits(generator).state = state
        for place, name, value, *_ in self.values.values():
            if look_up(place, name) is not value:
                put(place, name, value)
        for thing, attributes in self.before.values():
            vars(thing).clear()
            vars(thing).update(attributes)
        for thing in self.seen.values():
            thing.leave_trace(self.states[id(thing)], True)

    def guarded(self) -> list[tuple[Any, Any, frozenset[str], bool]]:
        """Return everything that is compared: the object, its token, attributes left out, and whether at every call."""
        things: list[tuple[Any, Any, frozenset[str], bool]] = []
        for thing in self.seen.values():
            token, loose = self.tokens_before[id(thing)]
            without = frozenset(self.assigned.get(id(thing), ()))
            if without:
                tokens = self.tokens.begin()
                there = vars(thing)
                names = {**there}
                there.update({name: value for name, value in self.before[id(thing)][1].items() if name not in without})
                try:
                    token = (
                        thing.guard_token(tokens, without)
                        if isinstance(thing, Guarded)
                        else tokens.of_attributes(thing, without)
                    )
                finally:
                    there.clear()
                    there.update(names)
            things.append((thing, token, without, loose))
        return things

    def _leaves(self, value: Any, depth: int = 0) -> list[Any]:
        value = self.tokens.untraced(value)
        if self.tokens.is_array(value):
            return [value]
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
        return [leaf for each in inside for leaf in self._leaves(each, depth + 1)] if depth < 4 else []

    def _is_read(self, name: str) -> bool:
        return self.reads_all or name in self.names_read

    def _has_arrays(self, value: Any, depth: int = 0) -> bool:
        if self.tokens.is_array(self.tokens.untraced(value)):
            return True
        if depth < 4 and isinstance(value, (tuple, list)):
            return any(self._has_arrays(each, depth + 1) for each in value)
        return (
            depth < 4 and isinstance(value, dict) and any(self._has_arrays(each, depth + 1) for each in value.values())
        )

    def _is_same(self, a: Any, b: Any) -> bool:
        try:
            return bool(self.tokens.begin().of(a) == self.tokens.begin().of(b))
        except TooMuch:
            return False


PLAIN_VALUES = (int, float, str, tuple, bool, type(None), types.FunctionType)
TOO_MUCH = object()


class Named(NamedTuple):
    """A name in a namespace, a cell or a class, and what it stood for before the function was traced."""

    place: Any
    name: str
    value: Any
    token: Any
    loose: bool  # whether the value can change while it stays the same object
    is_attribute: bool  # looked up only where the user's code has such a name


def moves_on(value: Any) -> bool:
    """Whether an object changes in ways that no guard sees: an iterator, a queue, a buffer."""
    return hasattr(type(value), "__next__") or isinstance(value, (collections.deque, bytearray, memoryview))


def _bits(generator: Any) -> Any:
    """Return what a generator of NumPy's draws from; None for anything else."""
    return getattr(generator, "bit_generator", None) or getattr(generator, "_bit_generator", None)


def _drawn(generator: Any) -> Any:
    """Return what tells whether a generator of NumPy's has drawn; None for anything else."""
    bits = _bits(generator)
    return None if bits is None else repr(bits.state)


def _reads_what_it_assigned(thing: Any, name: str) -> str:
    return f"it reads the attribute {name!r} of {_named(thing)} that the last call has assigned"


def _named(thing: Any) -> str:
    return f"a {type(thing).__name__}"
