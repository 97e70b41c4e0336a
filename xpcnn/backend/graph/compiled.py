"""`xpcnn.compile`: a function that records what it does and replays it, unless what it depends on has changed.

A call whose arguments look as they did (arrays by shape, dtype and strides, all else by value) and whose guards hold
copies its arrays to where the graph reads them, replays, and hands out copies of the results. Any other call runs the
function: as written a few times, then traced, or as written for good where there is a reason (said once).
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from xpcnn.backend import base
from xpcnn.backend.graph import guards
from xpcnn.backend.graph.code import levels_to_caller
from xpcnn.backend.graph.guards import Tokens, TooMuch
from xpcnn.backend.graph.record import GRADIENTS, SETTING, Memory, NotReplayable, Record, overlap
from xpcnn.backend.graph.tracing import Refused, Tracing, is_tracing
from xpcnn.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from xpcnn.backend.base import Backend

P = ParamSpec("P")
R = TypeVar("R")

EAGER_CALLS = 3  # before one is traced: kernels are compiled, workspaces made, and what the first call sets is set
RARE_CALLS = 16  # of a smaller batch than one that is recorded
MISSES = 4  # graphs in a row that were never replayed, before a function runs as written
GRAPHS_KEPT = 8  # kinds of arguments; the one used longest ago gives way

contexts: list[Callable[[], Any]] = []  # what else belongs to the kind of a call, such as `no_grad`
bypasses: list[Callable[[], bool]] = []  # whether calls are to run as written just now


@functools.cache
def is_enabled() -> bool:
    """Whether anything is recorded: unless XPCNN_COMPILE=0 or XPCNN_PORTABLE=1 forbids it.

    Raises
    ------
    ConfigError
        One of them is neither 0 nor 1.
    """
    for name, usual in (("XPCNN_COMPILE", "1"), ("XPCNN_PORTABLE", "0")):
        value = os.environ.get(name) or usual
        if value not in ("0", "1"):
            raise ConfigError(f"{name}: expected 0 or 1, got {value!r}")
        if value != usual:
            return False
    return True


def compile(function: Callable[P, R]) -> Compiled[P, R]:
    """Return a function that does what `function` does, recorded and replayed; also a decorator.

    Called again with arrays of the same shapes, dtypes and strides it replays what it did: on NumPy a list of calls, on
    CuPy a CUDA graph. Results belong to the caller. Contents of arrays are read anew at each call; everything else that
    the function read is guarded (options of layers, losses and optimisers, modes, parameters added, replaced or frozen,
    globals, what a closure holds, arguments that are no arrays), and a call that finds it changed looks at the function
    anew. The random state is an input that each call moves on. What cannot be recorded (an `if` on a value, printing
    one, another library's state) runs as written, and a warning says so once, with the line.

    A training step is a function of a batch, and work whose result nobody reads is left out of it.

    Parameters
    ----------
    function : callable
        Takes and returns arrays, in tuples, lists and dicts too.

    Raises
    ------
    ConfigError
        `function` cannot be called.

    Notes
    -----
    XPCNN_COMPILE=0 runs everything as written, to the same bits. Forwards that keep caches belong into one compiled
    function with their backward. Calls with arguments that share memory with each other, or with what the function
    writes by another way, such as a parameter's array, run as written. Numbers that NumPy would return as scalars are
    arrays of shape ().

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> predict = xpcnn.compile(lambda x: layer(x))
    >>> predict(np.ones((4, 3), "float32")).shape
    (4, 2)
    """
    return Compiled(function)


class Compiled(Generic[P, R]):
    """What `compile` returns.

    Parameters
    ----------
    function : callable
        See `compile`.
    backend : Backend, optional
        Where calls without arrays compute; by default on the active one.
    strict : bool
        Whether what cannot be recorded is an error.
    kept : int
        How many kinds of calls to keep graphs of.
    layout : callable, optional
        Copies an array argument, from a backend and an array, to memory of the graph. The layout of arguments is then
        no part of the kind of a call.
    eager : int, optional
        How many calls of each kind run as written before one is recorded. By default those of a training step: a few in
        all, and more of a batch that is smaller than another.
    writes : bool
        Whether the function may write to its arguments.
    quiet : bool
        Whether to say nothing of what cannot be recorded.
    """

    def __init__(
        self,
        function: Callable[P, R],
        backend: Backend | None = None,
        *,
        strict: bool = False,
        kept: int = GRAPHS_KEPT,
        layout: Callable[[Backend, Any], Any] | None = None,
        eager: int | None = None,
        writes: bool = True,
        quiet: bool = False,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"function: expected something to call, got {type(function).__name__}")
        functools.update_wrapper(self, function, updated=())
        self._function, self._backend, self._strict, self._kept = function, backend, strict, kept
        self._layout, self._eager, self._writes, self._quiet = layout, eager, writes, quiet
        self._cases: dict[Any, _Case] = {}
        self._clock = itertools.count()  # tells which kind was used longest ago
        self._lock = threading.Lock()
        self._calls = 0
        self._largest: dict[Any, int] = {}  # batches that are recorded
        self._said: set[str] = set()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._call(args, dict(sorted(kwargs.items())) if kwargs else kwargs, None)

    def fill(self, out: Any, *args: Any) -> None:
        """Write the array that a call returns to `out`, without a copy between where it is replayed."""
        result = self._call(args, {}, out)
        if result is not out:
            self._home((out,)).xp.copyto(out, result)

    def _call(self, args: Any, kwargs: Any, out: Any) -> Any:
        """Return what a call returns; that is `out`, filled, where a graph that gives one array was replayed."""
        if not is_enabled() or is_tracing() or _is_bypassed():
            return self._as_written(self._home(args), args, kwargs)
        arrays: list[Any] = []
        try:
            key = _key(args, kwargs, arrays, self._layout is None)
            backend = self._home(arrays)
            key = backend, key
            hash(key)
        except (TooMuch, TypeError):
            return self._as_written(self._home(args), args, kwargs)
        case = self._cases.get(key)
        if case is not None and case.free:
            case.used = next(self._clock)
            record = _taken(case.free)
            if record is not None:
                if record.holds():
                    try:
                        if not record.meets(arrays):
                            return record.replay(arrays, out)
                    finally:
                        case.free.append(record)
                    return self._as_written(backend, args, kwargs)
                case.drop(record)
                if record.changed == SETTING and not backend.capture_runs:
                    self._calls = case.calls = 0  # other kernels, which must be compiled before they are recorded
        return self._otherwise(backend, key, args, kwargs, arrays)

    def _home(self, arrays: Any) -> Backend:
        for each in arrays:
            owner = base._by_type.get(type(each))
            if owner is not None:
                return owner.for_array(each)
        if self._backend is not None:
            return self._backend
        from xpcnn.backend import get_backend

        return get_backend()

    def _as_written(self, backend: Backend, args: Any, kwargs: Any) -> Any:
        if is_tracing():
            return self._function(*args, **kwargs)
        with backend.as_recorded(), backend.errstate():
            return self._function(*args, **kwargs)

    def _otherwise(self, backend: Backend, key: Any, args: Any, kwargs: Any, arrays: list[Any]) -> Any:
        with self._lock:
            case = self._cases.get(key)
            if case is None:
                case = self._cases[key] = _Case()
            case.used = next(self._clock)
            while len(self._cases) > self._kept:
                del self._cases[min(self._cases, key=lambda each: self._cases[each].used)]
            case.calls += 1
            self._calls += 1
        if case.misses >= MISSES and case.reason is None:
            case.reason = case.said_of_misses()
            self._say(case.reason)
        if self._eager is None:
            ready = self._calls > EAGER_CALLS and not self._is_rest(case, arrays)
        else:
            ready = case.calls > self._eager
        if case.reason is not None or not backend.captures or not ready or overlap(backend, arrays):
            return self._as_written(backend, args, kwargs)
        return self._record(backend, case, args, kwargs, arrays)

    def _is_rest(self, case: _Case, arrays: list[Any]) -> bool:
        """Whether a batch is one that is recorded but smaller, such as an epoch's last: seldom worth its own memory."""
        if not arrays or not arrays[0].ndim or arrays[0].shape[0] >= self._largest.get(_family(arrays), 0):
            return False
        return case.calls <= RARE_CALLS or 4 * case.calls < self._calls

    def _record(self, backend: Backend, case: _Case, args: Any, kwargs: Any, arrays: list[Any]) -> Any:
        tokens = Tokens(_is_array, backend.untraced)
        tracing = Tracing(tokens, backend.tools, stops=not backend.capture_runs)
        if self._settle(backend, args, kwargs).meets(arrays):
            return self._as_written(backend, args, kwargs)
        copied = backend.duplicate if self._layout is None else functools.partial(self._layout, backend)
        slots = [backend.place(copied(array)) for array in arrays]
        outcome: list[Any] = []

        def step() -> None:
            tracing.read_function(self._function)
            tracing.consider([args, kwargs])
            there = iter([backend.traced(slot) for slot in slots])
            outcome.append(self._function(*_with_arrays(args, there), **_with_arrays(kwargs, there)))

        ready = False
        try:
            with tracing:
                with backend.as_recorded(), backend.errstate():
                    replay = backend.capture(step)
                ready = True
        except Refused:
            ready = False
        except BackendError as error:
            if not backend.capture_runs and isinstance(error, MemoryError):
                tracing.undo()
            if backend.capture_runs or isinstance(error, MemoryError):
                raise
            tracing.fail(str(error), error)
        finally:
            tracing.arrays.put_back()
            if backend.capture_runs:
                tracing.leave(undo=False)
            elif ready:
                tracing.leave(undo=tracing.reason is not None)
        if tracing.reason is None and ready:
            try:
                record = Record(backend, tracing, replay, slots, outcome[0], self._writes, arrays)
            except NotReplayable as error:
                tracing.changes_host = True
                tracing.fail(str(error))
        if tracing.reason is not None:
            if backend.capture_runs:
                if self._writes:
                    _write_back(backend, slots, arrays)
                result = _untraced(outcome[0], backend, slots, arrays)
            else:
                tracing.undo()
                result = self._as_written(backend, args, kwargs)  # an error of the user's own comes from here
            if tracing.changes_host and case.second_chances:
                case.second_chances -= 1
                self._calls = 0
            else:
                case.reason = tracing.reason
            if case.reason is not None:
                self._say(case.reason)
            return result
        if arrays and arrays[0].ndim:
            family = _family(arrays)
            self._largest[family] = max(arrays[0].shape[0], self._largest.get(family, 0))
        if backend.capture_runs:
            result = record.first(arrays)
        else:
            result = record.replay(arrays)
            record.replays = 0  # this one does the work of the call that was recorded
        case.free.append(record)
        return result

    def _settle(self, backend: Backend, args: Any, kwargs: Any) -> Memory:
        """Let the library's objects follow what the user changed: it may need copies on the host, as no capture can.

        Return their memory.
        """
        met = Tracing(Tokens(_is_array, backend.untraced), backend.tools)
        met.read_function(self._function)
        met.consider(getattr(getattr(self._function, "__self__", None), "__dict__", {}))
        seen, roots = list(met.seen.values()), list(met.arrays.met.values()) if self._writes else []
        met.consider([args, kwargs])
        for thing in met.seen.values():
            thing.settle()
        return Memory(backend, roots + [array for thing in seen for array in thing.arrays()])

    def _say(self, reason: str) -> None:
        if self._strict:
            raise BackendError(f"compile: {getattr(self, '__name__', 'the function')} cannot be recorded: {reason}")
        if not self._quiet and reason not in self._said:
            self._said.add(reason)
            name = getattr(self, "__qualname__", type(self._function).__name__)
            warnings.warn(f"compile: {name} runs as written: {reason}", RuntimeWarning, stacklevel=levels_to_caller())

    @property
    def graphs(self) -> int:
        """How many graphs there are that wait to be replayed."""
        return sum(len(case.free) for case in self._cases.values())

    @property
    def reasons(self) -> list[str]:
        """Why calls run as written, where they do."""
        return [case.reason for case in self._cases.values() if case.reason is not None]

    def forget(self) -> None:
        """Drop all graphs, and the memory that they work in."""
        with self._lock:
            self._cases.clear()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        options: dict[str, Any] = {"strict": self._strict, "kept": self._kept}
        options |= {"layout": self._layout, "eager": self._eager, "writes": self._writes, "quiet": self._quiet}
        return functools.partial(Compiled, **options), (self._function, self._backend)

    def __deepcopy__(self, memo: Any) -> Compiled[P, R]:
        import copy

        make, _ = self.__reduce__()
        made: Compiled[P, R] = make(copy.deepcopy(self._function, memo), self._backend)
        return made

    def __repr__(self) -> str:
        return f"compile({self._function!r})"


guards.by_identity(Compiled)


class _Case:
    """Calls of one kind: how many came, and their graphs that are not in use."""

    def __init__(self) -> None:
        self.calls = self.misses = self.used = 0
        self.second_chances = 2
        self.reason: str | None = None
        self.changed: dict[str | None, None] = {}  # of the graphs that were never replayed, in order
        self.free: list[Record] = []

    def drop(self, record: Record) -> None:
        """Let go of a graph whose guards do not hold any more."""
        self.misses = 0 if record.replays else self.misses + 1
        self.changed = {**self.changed, record.changed: None} if self.misses > 1 else {record.changed: None}
        record.settle()

    def said_of_misses(self) -> str:
        """Return why no more graphs are made, with the names of what was another each time."""
        names = [name for name in self.changed if name]
        if names == [GRADIENTS]:
            return "gradients are zero at one call and not at the next; let one function add them up and step"
        found = f" ({', '.join(names[:4])})" if names else ""
        return (
            f"something that it depends on{found} is another at each call; pass it as an argument (where the changes "
            "are over, its forget() begins anew)"
        )


def _is_bypassed() -> bool:
    for bypass in bypasses:  # noqa: SIM110  a generator takes longer than what it asks
        if bypass():
            return True
    return False


def _family(arrays: list[Any]) -> Any:
    """Return what batches of several sizes have in common."""
    return tuple([(array.shape[1:], array.dtype) for array in arrays])


def _key(args: Any, kwargs: Any, arrays: list[Any], strides: bool) -> Any:
    """Return what calls of one kind have in common; append the arrays among the arguments."""
    parts: list[Any] = [context() for context in contexts]
    parts += [_part(each, arrays, strides) for each in args]
    parts += [(name, _part(value, arrays, strides)) for name, value in kwargs.items()]
    return tuple(parts)


def _part(value: Any, arrays: list[Any], strides: bool) -> Any:
    kind = type(value)
    if kind in base._by_type:
        arrays.append(value)
        return value.shape, value.dtype, value.strides if strides else None
    if kind in guards.PLAIN:
        return kind, value
    if kind is tuple or kind is list:
        return kind, tuple([_part(each, arrays, strides) for each in value])
    if kind is dict:
        return kind, tuple([(name, _part(each, arrays, strides)) for name, each in value.items()])
    tokens = Tokens(_is_array, lambda value: value)
    return tokens.of(value)


def _with_arrays(value: Any, there: Iterator[Any]) -> Any:
    """Return nested arguments with other arrays in the place of theirs."""
    kind = type(value)
    if kind in base._by_type:
        return next(there)
    if kind is tuple or kind is list:
        return kind([_with_arrays(each, there) for each in value])
    if kind is dict:
        return {name: _with_arrays(value[name], there) for name in value}
    return value


def _write_back(backend: Backend, slots: list[Any], arrays: list[Any]) -> None:
    """Let the caller's arrays hold what a function has written to their copies."""
    pairs = list(zip(arrays, slots, strict=True))
    changed = [pair for pair in pairs if len({backend.to_numpy(each).tobytes() for each in pair}) > 1]
    for array, slot in changed:
        backend.xp.copyto(array, slot)


def _untraced(value: Any, backend: Backend, slots: list[Any], arrays: list[Any]) -> Any:
    """Return nested results with plain arrays, and the caller's own where a function gives back an argument."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_untraced(each, backend, slots, arrays) for each in value])
    if kind is dict:
        return {name: _untraced(each, backend, slots, arrays) for name, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*[_untraced(each, backend, slots, arrays) for each in value])
    plain = backend.untraced(value)
    return next((array for array, slot in zip(arrays, slots, strict=True) if plain is slot), plain)


def _is_array(value: Any) -> bool:
    return type(value) in base._by_type


def _taken(free: list[Record]) -> Record | None:
    try:
        return free.pop()
    except IndexError:  # another thread was faster
        return None
