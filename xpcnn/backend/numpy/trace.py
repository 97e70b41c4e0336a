"""A training step recorded as a list of NumPy calls over fixed arrays, and replayed without the Python between them.

What a CUDA graph is to a GPU. Layers, checks and views cost some microseconds of Python around every call, under a
lock that the threads share; a replay is a bare loop. While it records, the step runs on a `RecordingBackend`, whose
`xp` notes each call with the very arrays that it read and wrote. Memory comes from a pool of its own, in which the
record uses a block again as soon as the step has dropped it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xpcnn.backend.numpy.arena import Arena, empty_like
from xpcnn.backend.numpy.encoding import refill
from xpcnn.backend.numpy.memory import SMALLEST, Block, BlockPool, aligned
from xpcnn.backend.numpy.regions import WORTH_A_HAND_OVER, Link, Region, Tape, play
from xpcnn.errors import BackendError

if TYPE_CHECKING:
    from xpcnn.backend.numpy import NumpyBackend

# Functions that only make arrays: what they return is as constant as their arguments.
_MAKERS = frozenset({"arange", "empty", "zeros", "ones", "full", "array"})
_PASSED = _MAKERS | {"asarray", "dtype", "result_type"}
# Their third positional argument is deprecated; for the others it is the quickest way to say where results go.
_NEED_KEYWORD = (np.maximum, np.minimum)


class RecordedStep:
    """`step`, which runs once while it is recorded; calling the object replays it.

    Every array that the step reads or writes and that is not its own is used where it lies: write new input there.

    Raises
    ------
    BackendError
        The step holds something that cannot be recorded; the message says what.
    """

    def __init__(self, backend: NumpyBackend, step: Callable[[], None]) -> None:
        self._blas = backend.blas
        self._recorder = recording = recorder(backend, backend.workers.arena)
        with backend.recording(recording):
            step()
        self._tape = recording.tape
        self._link = Link(backend.workers, recording.arena, self._tape) if recording.arena is not None else None
        recording.close()

    def __call__(self) -> None:
        link = self._link
        self._blas.hold()
        try:
            with np.errstate(all="ignore"):
                if link is None or not link.play():
                    play(self._tape)
        finally:
            self._blas.release()


def recorder(
    backend: NumpyBackend, arena: Arena | None, buffers: dict[Any, Any] | None = None, worth: float | None = None
) -> Any:
    """Return a backend that does what `backend` does and notes it.

    In `arena` lies all that worker processes are to reach; `buffers` holds the threads' scratch memory by slot and
    worker, and work of `worth` elementary operations or more is shared out.
    """

    class RecordingBackend(type(backend)):  # type: ignore[misc]
        """`NumpyBackend` with a notebook; work that the pool would share out is noted as one tape per thread."""

        home = backend

        def __init__(self) -> None:
            self.__dict__.update(backend.__dict__)
            self.arena = arena
            smallest = SMALLEST if arena is None and buffers is None else 0
            self.blocks = BlockPool(keep=True, source=None if arena is None else arena.cut, smallest=smallest)
            self.tape: Tape = []
            self.xp: Any = _Notebook(self)
            self.worker: int | None = None
            self.buffers: dict[Any, Any] = {} if buffers is None else buffers
            self.buffers_used: dict[Any, None] = {}
            self.outgrown = False  # whether the tape refers to a buffer that was replaced by a larger one

        def for_array(self, array: Any) -> Any:
            return self

        def get_num_threads(self) -> int:
            return 1 if self.worker is not None else super().get_num_threads()

        def scratch(self, slot: str, shape: Sequence[int], dtype: Any) -> Any:
            # A buffer per thread of the replay; it grows, so tapes hold views of whichever was large enough.
            key = slot, self.worker
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if key not in self.buffers or self.buffers[key].size < size:
                self.outgrown |= key in self.buffers_used
                store = None if self.arena is None else self.arena.cut(size)
                self.buffers[key] = aligned(size) if store is None else store
            self.buffers_used[key] = None
            return self.buffers[key][:size].view(dtype).reshape(shape)

        def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
            array = None if self.arena is None else self.arena.array(shape, dtype)
            if array is None:
                return super().zeros(shape, dtype)
            array.fill(0)
            return array

        def bordered(self, key: Any, shape: Sequence[int], dtype: Any) -> Any:
            key = key, dtype, self.worker
            if key not in self.buffers:
                self.buffers[key] = self.zeros(shape, dtype)
            return self.buffers[key]

        def parallel(
            self, function: Callable[[Any], None], tasks: Sequence[Any], work: float = 0.0, products: bool = True
        ) -> None:
            threads = min(self.get_num_threads(), len(tasks))
            least = backend.pool.worth / 4 if arena is None else WORTH_A_HAND_OVER
            if worth is not None:
                least = worth
            if self.worker is not None or threads < 2 or work < least:
                for task in tasks:
                    function(task)
                return
            outer = self.tape
            tapes: list[Tape] = [[] for _ in range(threads)]
            self.blocks.resting = True  # tasks run at once in the replay: none may take what another gave back
            try:
                for index, task in enumerate(tasks):
                    self.worker = index % threads
                    self.tape = tapes[self.worker]
                    function(task)
            finally:
                self.tape, self.worker = outer, None
                self.blocks.resting = False
            self.tape.append((Region(self.pool, tapes, work), ()))

        def planned(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
            return function(self, *arguments)

        def demand(self, holds: Any, error: Exception) -> None:
            super().demand(holds, error)
            self.tape.append((super().demand, (holds, error)))

        def errstate(self) -> contextlib.AbstractContextManager[Any]:
            return contextlib.nullcontext()  # the replay is under one as a whole

        def close(self) -> None:
            """Let go of the notebook, which refers to itself: a record that is dropped is to go at once."""
            self.xp._backend = None
            self.xp = np

    return RecordingBackend()


class _Notebook:
    """`numpy`, noting every call that computes."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if not callable(function) or isinstance(function, type) or name in _PASSED - _MAKERS:
            return function
        noted = partial(self._made if name in _MAKERS else self._call, name, function)
        setattr(self, name, noted)
        return noted

    def _made(self, name: str, function: Any, *args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        return result if self._backend.arena is None else self._backend.arena.copy(result)

    def _call(self, name: str, function: Any, *args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if self._backend.arena is not None and options.get("out") is None and isinstance(result, np.ndarray):
            result = self._reachable(result, args)
        if name == "copyto":
            self._note(partial(function, **options) if options else function, args)
        elif name == "ascontiguousarray":
            if not np.may_share_memory(result, args[0]):
                self._note(np.copyto, (result, args[0]))
        elif not isinstance(result, np.ndarray):
            raise BackendError(f"capture: xp.{name} gave a number of the host, which a replay could not change")
        elif isinstance(function, np.ufunc):
            options.pop("out", None)
            args = args[: function.nin]
            if function in _NEED_KEYWORD:
                options["out"] = _alias(self._backend.blocks, result)
            else:
                args = (*args, result)
            self._note(partial(function, **options) if options else function, args)
        elif name in ("sum", "max", "min", "prod", "mean"):
            self._note(partial(function, **{**options, "out": _alias(self._backend.blocks, result)}), args)
        else:
            self._note(partial(refill, function, options), (result, *args))
        return result

    def _reachable(self, result: Any, args: tuple[Any, ...]) -> Any:
        """Return a copy of a new result in the record's own memory; a view of an argument as it is."""
        if any(isinstance(a, np.ndarray) and np.may_share_memory(result, a) for a in args):
            return result
        there = empty_like(result, self._backend.blocks.empty)
        np.copyto(there, result)
        return there

    def _note(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        pool = self._backend.blocks
        self._backend.tape.append((function, tuple(_alias(pool, a) for a in args)))


def _alias(pool: BlockPool, a: Any) -> Any:
    """Return `a`, or the same memory without the claim on it where it lies in a block of the record's own pool.

    The pool may then hand the block out again once the step has dropped it, as it will in every replay.
    """
    if not isinstance(a, np.ndarray):
        return a
    base: Any = a
    while base is not None and not isinstance(base, Block):
        base = getattr(base, "base", None)  # an array, or what `as_strided` puts between a view and its array
    if base is None or base.pool is not pool:
        return a
    return np.asarray(_Place(a))


class _Place:
    """The address, shape and strides of an array, without the array."""

    def __init__(self, a: Any) -> None:
        self.__array_interface__ = a.__array_interface__


@contextlib.contextmanager
def recording(backend: NumpyBackend, recorder: Any) -> Iterator[None]:
    """Let this thread's operations go to `recorder` for the length of a `with` block."""
    backend._local.recorder = recorder
    backend._recorders.append(recorder)
    backend.blas.hold()  # as in every replay: some kernels give other last bits with more threads
    try:
        yield
    finally:
        backend.blas.release()
        backend._recorders.remove(recorder)
        backend._local.recorder = None
