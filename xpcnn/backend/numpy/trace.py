"""A function traced as a list of NumPy calls over fixed arrays, and replayed without the Python between them.

What a CUDA graph is to a GPU. Layers, checks and views cost some microseconds of Python around every call, under a lock
that the threads share; a replay is a bare loop. While it is traced, the function runs on a `TracingBackend`, whose
arrays (`traced.py`) and `xp` note each call with the very memory that it read and wrote. Memory comes from a pool of
its own, in which the graph uses a block again as soon as the function has dropped it.
"""

from __future__ import annotations

import contextlib
import copy
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xpcnn.backend.graph.code import callers_are_users
from xpcnn.backend.graph.extents import Extent, Extents
from xpcnn.backend.graph.tracing import note_host, tracing
from xpcnn.backend.numpy import traced
from xpcnn.backend.numpy.arena import Arena, empty_like
from xpcnn.backend.numpy.calls import Call, bind, reads_and_writes, refill, refill_all
from xpcnn.backend.numpy.liveness import without_dead
from xpcnn.backend.numpy.memory import SMALLEST, Block, BlockPool, aligned
from xpcnn.backend.numpy.quiet import quiet
from xpcnn.backend.numpy.regions import WORTH_A_HAND_OVER, Link, Region, play
from xpcnn.backend.numpy.traced import TracedArray, deep_plain, plain
from xpcnn.errors import BackendError

if TYPE_CHECKING:
    from xpcnn.backend.numpy import NumpyBackend

# Functions that only make arrays: what they return is as constant as their arguments.
_MAKERS = frozenset(
    [
        "arange",
        "empty",
        "zeros",
        "ones",
        "full",
        "array",
        "eye",
        "identity",
        "linspace",
        "tri",
        "empty_like",
    ]
)
_PASSED = frozenset({"asarray", "dtype", "result_type", "errstate", "finfo", "iinfo"})


class Graph:
    """`step`, which runs once while it is traced; calling the object replays it.

    Every array that the step reads or writes and that is not its own is used where it lies: write new input there.
    """

    def __init__(self, backend: NumpyBackend, step: Callable[[], None]) -> None:
        self._backend = backend
        recorder = tracing_backend(backend, backend.workers.arena)
        try:
            with backend.recording(recorder):
                step()
        finally:
            recorder.close()
        recorder.note_refills()
        self.calls: list[Call] = recorder.calls
        self._arena = recorder.arena
        self.blocks = recorder.blocks
        self._own = recorder.own_memory()
        self._bind()

    def _bind(self) -> None:
        self._written = list(written_by(self.calls))
        for region in (call.function for call in self.calls):
            if isinstance(region, Region):
                region.bind()
        self._bound = bind(self.calls)
        self._link = None if self._arena is None else Link(self._backend.workers, self._arena, self.calls, self._bound)

    def keep_only(self, read: Iterable[Any]) -> None:
        """Leave out all work on memory of its own that neither comes to light elsewhere nor in the arrays `read`."""
        self.calls = without_dead(self.calls, self._own, list(read))
        self._bind()

    def cut(self, mark: Callable[[], None]) -> tuple[Graph, Graph]:
        """Return what is done before and after `mark`, which was noted on the way, as graphs over the same memory."""
        place = next(i for i, call in enumerate(self.calls) if call.function is mark)
        first, second = copy.copy(self), copy.copy(self)
        first.calls, second.calls = self.calls[:place], self.calls[place + 1 :]
        for half in (first, second):
            half._bind()
        return first, second

    def writes(self, array: Any) -> bool:
        """Whether a call writes to an array that is not the graph's own."""
        return any(np.may_share_memory(array, other) for other in self._written)

    def written(self) -> Iterator[Any]:
        """Yield the arrays that calls write to and that are not the graph's own."""
        return (array for array in self._written if not self._own.holds(array))

    def is_own(self, array: Any) -> bool:
        """Whether an array lies in memory of the graph, which replays write again."""
        return bool(self._own.holds(array))

    def __call__(self) -> None:
        link, blas = self._link, self._backend.blas
        blas.hold()
        try:
            with quiet():
                if link is None or not link.play():
                    play(self._bound)
        finally:
            blas.release()


def written_by(calls: Iterable[Call]) -> Iterator[Any]:
    """Yield the arrays that calls write to."""
    for call in calls:
        if isinstance(call.function, Region):
            for part in call.function.parts:
                yield from written_by(part)
            continue
        known = reads_and_writes(call)
        yield from (
            call.args[:1]
            if known is None and call.args and isinstance(call.args[0], np.ndarray)
            else known[1]
            if known
            else ()
        )


class OwnMemory:
    """The memory of one graph, as extents."""

    def __init__(self, extents: Iterable[Extent], held: Any) -> None:
        self._held = held  # its owners live as long as the graph
        self._extents = Extents(extents)

    def holds(self, array: Any) -> bool:
        """Whether an array lies in it."""
        address = array.__array_interface__["data"][0]
        return self._extents.meets(address, address + 1)


def region_worth(backend: NumpyBackend, arena: Arena | None) -> float:
    """Return the elementary operations from which a recorded step shares work out."""
    return backend.pool.worth / 4 if arena is None else WORTH_A_HAND_OVER


def tracing_backend(
    backend: NumpyBackend, arena: Arena | None, buffers: dict[Any, Any] | None = None, worth: float | None = None
) -> Any:
    """Return a backend that does what `backend` does and notes it.

    In `arena` lies all that worker processes are to reach; `buffers` holds the threads' scratch memory by slot and
    worker, and work of `worth` elementary operations or more is shared out.
    """

    class TracingBackend(type(backend)):  # type: ignore[misc]
        """`NumpyBackend` with a list of calls; work that the pool would share out is noted as one list per thread."""

        home = backend

        def __init__(self) -> None:
            self.__dict__.update(backend.__dict__)
            self.arena = arena
            smallest = SMALLEST if arena is None and buffers is None else 0
            self.blocks = BlockPool(keep=True, source=None if arena is None else arena.cut, smallest=smallest)
            self.calls: list[Call] = []
            self.xp: Any = _TracingNamespace(self)
            self.worker: int | None = None
            self.buffers: dict[Any, Any] = {} if buffers is None else buffers
            self.buffers_used: dict[Any, None] = {}
            self.outgrown = False  # whether calls refer to a buffer that was replaced by a larger one
            self.small: list[Any] = []  # arrays of its own that lie in no block
            self.made: list[tuple[list[Call], int, Any, Any]] = []  # where in which calls, the array and what it holds

        # --- arrays -----------------------------------------------------------------------------------------------

        @property
        def is_running(self) -> bool:
            """Whether the calling thread is the one that is traced, and still is."""
            return backend._local.recorder is self

        def wrap(self, array: Any) -> TracedArray:
            """Return what stands for an array."""
            return array if type(array) is TracedArray else TracedArray(array, self)

        def for_array(self, array: Any) -> Any:
            return self

        def asarray(self, a: Any, dtype: Any = None) -> Any:
            if type(a) is TracedArray:
                return a if dtype is None else a.astype(dtype, copy=False)
            return backend.asarray(a, dtype)

        def from_dlpack(self, x: Any) -> Any:
            return x if type(x) is TracedArray else backend.from_dlpack(x)

        def to_numpy(self, a: Any) -> Any:
            return np.asarray(a)

        def empty(self, shape: Sequence[int], dtype: Any) -> Any:
            return self.wrap(self._new(tuple(shape), np.dtype(dtype)))

        def _new(self, shape: tuple[int, ...], dtype: Any) -> Any:
            array = self.blocks.empty(shape, dtype)
            if array.base is None:
                self.small.append(array)
            return array

        def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
            return self.constant_made(self._zeros(shape, dtype))

        def _zeros(self, shape: Sequence[int], dtype: Any) -> Any:
            array = None if self.arena is None else self.arena.array(shape, dtype)
            if array is None:
                array = plain(super().zeros(shape, dtype))
            array.fill(0)
            return array

        def constant_made(self, array: Any) -> TracedArray:
            """Return what stands for a new array that holds the same at this place of each replay."""
            self.small.append(array)
            self.made.append((self.calls, len(self.calls), array, array.copy()))
            return self.wrap(array)

        def note_refills(self) -> None:
            """Let replays fill the constants again to which a later call writes."""
            written = sorted(a.__array_interface__["data"][0] for a in written_by(self.calls))
            for calls, place, array, content in reversed(self.made):
                start = array.__array_interface__["data"][0]
                first = bisect_left(written, start)
                if first < len(written) and written[first] < start + array.nbytes:
                    content = content if self.arena is None else self.arena.copy(content)
                    calls.insert(place, Call(np.copyto, (array, content)))
            self.made.clear()

        def scratch(self, slot: str, shape: Sequence[int], dtype: Any) -> Any:
            # A buffer per thread of the replay; it grows, so calls hold views of whichever was large enough.
            key = slot, self.worker
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if key not in self.buffers or self.buffers[key].size < size:
                self.outgrown |= key in self.buffers_used
                store = None if self.arena is None else self.arena.cut(size)
                self.buffers[key] = aligned(size) if store is None else store
                self.small.append(self.buffers[key])
            self.buffers_used[key] = None
            return self.wrap(self.buffers[key][:size].view(dtype).reshape(shape))

        def bordered(self, key: Any, shape: Sequence[int], dtype: Any) -> Any:
            key = key, np.dtype(dtype), self.worker
            if key not in self.buffers:
                self.buffers[key] = self._zeros(shape, dtype)
            return self.wrap(self.buffers[key])

        def constant(self, a: Any) -> Any:
            return backend.constant(a) if type(a) is not TracedArray else a.copy()

        def place(self, a: Any) -> Any:
            return a if type(a) is TracedArray else backend.place(a)

        def strided_view(self, a: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
            return self.wrap(backend.strided_view(plain(a), shape, strides))

        def own_memory(self) -> OwnMemory:
            """Return what belongs to the graph."""
            extents = [(store.address, store.address + store.nbytes) for store in self.blocks.kept or ()]
            for array in self.small:
                start = array.__array_interface__["data"][0]
                extents.append((start, start + array.nbytes))
            return OwnMemory(extents, (self.blocks, self.small, self.buffers))

        # --- work -------------------------------------------------------------------------------------------------

        def get_num_threads(self) -> int:
            return 1 if self.worker is not None else super().get_num_threads()

        def parallel(
            self, function: Callable[[Any], None], tasks: Sequence[Any], work: float = 0.0, products: bool = True
        ) -> None:
            threads = min(self.get_num_threads(), len(tasks))
            least = region_worth(backend, arena) if worth is None else worth
            if self.worker is not None or threads < 2 or work < least:
                for task in tasks:
                    function(task)
                return
            outer = self.calls
            parts: list[list[Call]] = [[] for _ in range(threads)]
            self.blocks.resting = True  # tasks run at once in the replay: none may take what another gave back
            try:
                for index, task in enumerate(tasks):
                    self.worker = index % threads
                    self.calls = parts[self.worker]
                    function(task)
            finally:
                self.calls, self.worker = outer, None
                self.blocks.resting = False
            self.calls.append(Call(Region(self.pool, parts, work)))

        def call(self, function: Callable[..., Any], *arguments: Any) -> None:
            arguments = deep_plain(arguments)
            function(*arguments)
            self._note(function, arguments)

        def planned(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
            return function(self, *arguments)

        def demand(self, holds: Any, error: Exception) -> None:
            holds = plain(holds)
            backend.demand(holds, error)
            self.calls.append(Call(backend.demand, (self._unclaimed(holds), error)))

        def errstate(self) -> contextlib.AbstractContextManager[Any]:
            return contextlib.nullcontext()  # the replay is under one as a whole

        # --- noting -----------------------------------------------------------------------------------------------

        def note_host(self, function: Callable[[], None]) -> bool:
            """Do something on the host, here and at this place of each replay."""
            function()
            self.calls.append(Call(function))
            return True

        def fail(self, reason: str) -> None:
            """Say that there can be no replay."""
            found = tracing()
            if found is None:
                raise BackendError(f"capture: {reason}")
            found.fail(reason)

        def compute(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            """Call a function that computes, note it, and return what stands for its result."""
            out = options.get("out")
            self._check(args, options)
            args, options = deep_plain(tuple(args)), deep_plain(dict(options))
            result = function(*args, **options)
            if out is None and isinstance(result, np.generic):
                result = np.asarray(result)
            if isinstance(result, (tuple, list)):
                if out is not None or not all(isinstance(each, (np.ndarray, np.generic)) for each in result):
                    self.fail(f"numpy.{_name(function)} cannot be replayed")
                    return result
                arrays = [self.kept(np.asarray(each), args) for each in result]
                self._note(refill_all, (arrays, *args), {"function": function, "options": options})
                return (
                    type(result)(map(self.wrap, arrays))
                    if type(result) in (tuple, list)
                    else tuple(map(self.wrap, arrays))
                )
            if not isinstance(result, np.ndarray):
                if result is not None or out is None:
                    self.fail(f"{_name(function)} gives a number to the host")
                return result
            if out is None:
                result = self.kept(result, args)
            if isinstance(function, np.ufunc) and function.nout == 1:
                options.pop("out", None)
                self._note(function, args[: function.nin], {**options, "out": result})
            elif out is not None or _name(function) in traced.TAKE_OUT or _is_reduction(function):
                self._note(function, args, {**options, "out": result})
            else:
                self._note(refill, (result, *args), {"function": function, "options": options})
            if out is None:
                return self.wrap(result)
            return out

        def write(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            """Call a function that writes to its first argument, and note it."""
            self._check(args, options)
            args, options = deep_plain(tuple(args)), deep_plain(dict(options))
            function(*args, **options)
            if function is np.copyto and options.get("casting") == "unsafe" and not isinstance(args[1], np.ndarray):
                args = args[0], np.asarray(args[1]), *args[2:]
            self._note(function, args, options)

        def numpy_function(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            """Do what a function of NumPy's does that was called with a traced array."""
            name = _name(function)
            if name in traced.LOOKS:
                return function(*deep_plain(tuple(args)), **deep_plain(dict(options)))
            if name in traced.WRITES:
                self.write(function, tuple(args), dict(options))
                return None
            if name in traced.DEPENDS_ON_VALUES or (name == "where" and len(args) + len(options) == 1):
                self.fail(f"numpy.{name} gives an array whose shape depends on values")
                return function(*deep_plain(tuple(args)), **deep_plain(dict(options)))
            if name in traced.VIEWS:
                result = function(*deep_plain(tuple(args)), **deep_plain(dict(options)))
                views = result if isinstance(result, (tuple, list)) else (result,)
                given = [a for a in _arrays(deep_plain((args, options))) if a.size]
                if all(not v.size or any(np.may_share_memory(v, a) for a in given) for v in views):
                    return (
                        type(result)(map(self.wrap, result)) if isinstance(result, (tuple, list)) else self.wrap(result)
                    )
            if not str(getattr(function, "__module__", "")).startswith("numpy"):
                self.fail(f"{name} is of another library")
            return self.compute(function, args, options)

        def kept(self, result: Any, args: tuple[Any, ...]) -> Any:
            """Return a copy of a new result in the graph's own memory; a view of an argument as it is."""
            if any(np.may_share_memory(result, a) for a in _arrays(args)):
                return result
            there: Any = empty_like(result, self._new)
            np.copyto(there, result)
            return there

        def note_copy(self, result: Any, function: Any, source: Any) -> None:
            """Note that `result` is what a method made of `source`."""
            self._note(refill, (result, source), {"function": function, "options": {}})

        def _check(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            """See to it that the user's code computes with arrays alone of which is known what is in them."""
            found = tracing()
            if found is None or found.reason is not None or found.is_within_library or not callers_are_users():
                return
            for array in _arrays((args, options)):
                if array.size and not self._is_known(array, found.arrays.met):
                    found.fail("an array comes in that the call has made without the library's knowledge")

        def _is_known(self, array: Any, roots: dict[int, Any]) -> bool:
            base: Any = array
            while base is not None:
                if id(base) in roots or isinstance(base, Block) or id(base) in self._small_ids():
                    return True
                base = getattr(base, "base", None)
            return self.own_memory().holds(array) or any(np.may_share_memory(array, root) for root in roots.values())

        def _small_ids(self) -> set[int]:
            return {id(array) for array in self.small}

        def _note(self, function: Any, args: tuple[Any, ...], options: dict[str, Any] | None = None) -> None:
            found = tracing()
            if found is not None:
                found.used.update(id(array) for array in _arrays(args) if id(array) in found.arrays.met)
            self.calls.append(Call(function, self._unclaimed(args), self._unclaimed(options or {})))

        def _unclaimed(self, value: Any) -> Any:
            """Return nested arrays without the claim on memory of the graph's own pool.

            The pool may then hand a block out again once the function has dropped it, as it will in every replay.
            """
            kind = type(value)
            if kind in (tuple, list):
                return kind([self._unclaimed(each) for each in value])
            if kind is dict:
                return {name: self._unclaimed(each) for name, each in value.items()}
            if not isinstance(value, np.ndarray):
                return value
            base: Any = value
            while base is not None and not isinstance(base, Block):
                base = getattr(base, "base", None)  # an array, or what `as_strided` puts between a view and its array
            return value if base is None or base.pool is not self.blocks else np.asarray(_Place(value))

        def close(self) -> None:
            """Let go of the namespace, which refers to this: a graph that is dropped is to go at once."""
            self.xp.__dict__.clear()
            self.xp = np

    return TracingBackend()


class _TracingNamespace:
    """`numpy`, noting every call that computes."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if name in _PASSED or not callable(function) or isinstance(function, type):
            return function
        if name in _MAKERS:
            noted: Any = partial(self._made, function)
        elif isinstance(function, np.ufunc):
            noted = _TracingUfunc(self._backend, function)
        elif name == "ascontiguousarray":
            noted = self._contiguous
        else:
            noted = partial(self._called, function)
        setattr(self, name, noted)
        return noted

    def _made(self, function: Any, *args: Any, **options: Any) -> Any:
        backend = self._backend
        if any(type(a) is TracedArray for a in (*args, *options.values())):
            if function is np.empty_like:
                return backend.wrap(backend.kept(function(*map(plain, args), **options), ()))
            return backend.compute(function, args, options)
        result = function(*args, **options)
        result = result if backend.arena is None else backend.arena.copy(result)
        if function in (np.empty, np.empty_like):
            backend.small.append(result)
            return backend.wrap(result)
        return backend.constant_made(result)

    def _contiguous(self, a: Any, dtype: Any = None) -> Any:
        array = plain(a)
        if array.flags.c_contiguous and dtype in (None, array.dtype):
            return a
        there = self._backend.empty(array.shape, dtype or array.dtype)
        self._called(np.copyto, there, a)
        return there

    def _called(self, function: Any, *args: Any, **options: Any) -> Any:
        return self._backend.numpy_function(function, args, options)


class _TracingUfunc:
    """A ufunc, noting its calls."""

    def __init__(self, backend: Any, function: Any) -> None:
        self._backend, self._function = backend, function

    def __call__(self, *args: Any, **options: Any) -> Any:
        function = self._function
        if len(args) > function.nin:  # the result's place by position
            options["out"] = args[function.nin]
            args = args[: function.nin]
        return self._backend.compute(function, args, options)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._function, name)
        if name not in ("reduce", "accumulate", "outer", "reduceat"):
            return value
        return lambda *args, **options: self._backend.compute(value, args, options)


class _Place:
    """The address, shape and strides of an array, without the array."""

    def __init__(self, a: Any) -> None:
        self.__array_interface__ = a.__array_interface__


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _is_reduction(function: Any) -> bool:
    return isinstance(getattr(function, "__self__", None), np.ufunc) and _name(function) in ("reduce", "accumulate")


def _arrays(value: Any) -> Iterator[Any]:
    """Yield the plain arrays in nested tuples, lists and dicts."""
    kind: type = type(value)
    if kind is TracedArray:
        return
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _arrays(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _arrays(each)


@contextlib.contextmanager
def recording(backend: NumpyBackend, recorder: Any) -> Iterator[None]:
    """Let this thread's operations go to `recorder` for the length of a `with` block."""
    backend._local.recorder = recorder
    backend._recorders.append(recorder)
    backend.blas.hold()  # as in every replay: some kernels give other last bits with more threads
    found = tracing()
    if found is not None:
        found.note, found.arrays.wrap = recorder.note_host, recorder.wrap
    else:
        note_host(recorder.note_host)
    try:
        yield
    finally:
        if found is not None:
            found.note = found.arrays.wrap = None
        note_host(None)
        backend.blas.release()
        backend._recorders.remove(recorder)
        backend._local.recorder = None
