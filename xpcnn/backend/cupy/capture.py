"""A whole training step as one CUDA graph: recorded once, then replayed by one launch."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from xpcnn.errors import BackendError

if TYPE_CHECKING:
    from xpcnn.backend.cupy import CupyBackend

MEMORY_ALLOCATION = 2  # cudaErrorMemoryAllocation, which CuPy does not name


class GraphMemory:
    """Where one device records, and the memory that its graphs keep for themselves.

    What is allocated while recording belongs to the graph alone: from the shared pool it would be handed to others
    once Python drops it, and each replay would write over them. So each graph has a pool. Blocks of such a pool that
    Python has dropped are still read and written by recorded nodes, so it must never trim itself, as CuPy's pools do
    when memory runs out; and from CuPy 14.1 on a pool that is merely dropped never gives its blocks back.

    Attributes
    ----------
    lock : RLock
        Held while a step is recorded: all recordings of a device share a stream.
    """

    def __init__(self, cupy: Any, device: Any) -> None:
        self._cupy, self._device = cupy, device
        self.lock = threading.RLock()
        self._stream: Any = None
        self._is_recording = False
        self._numbers = itertools.count()
        # Held here and not by the graphs: Python's collector, where it finds a graph in a circle, would clear CuPy's
        # weak references inside the pool before anybody could ask the pool for its blocks.
        self._pools: dict[int, Any] = {}
        self._dropped: set[int] = set()  # graphs that are gone; arrays may still lie in their pools
        self._inputs: Any = None

    @property
    def stream(self) -> Any:
        """The stream to record on: one for all, as each has a cuBLAS handle and its workspace."""
        if self._stream is None:
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
        return self._stream

    def new_pool(self) -> int:
        """Make a pool for one graph and return its number.

        It may grow while a step is recorded, at the cost of the shared pool alone.
        """
        cuda = self._cupy.cuda
        shared = self._cupy.get_default_memory_pool()

        def fits() -> bool:  # the pool counts the block that it asks for already
            limit = shared.get_limit()
            return not limit or shared.total_bytes() + pool.total_bytes() <= limit

        def allocate(size: int) -> Any:
            if not fits():
                shared.free_all_blocks()
            if fits():
                try:
                    return cuda.MemoryPointer(cuda.Memory(size), 0)
                except cuda.runtime.CUDARuntimeError as error:
                    if error.status != MEMORY_ALLOCATION:
                        raise
                shared.free_all_blocks()
                with contextlib.suppress(cuda.runtime.CUDARuntimeError):
                    return cuda.MemoryPointer(cuda.Memory(size), 0)
            # CuPy's own error, not CUDA's: at that one the pool would trim itself and try again.
            raise cuda.memory.OutOfMemoryError(size, pool.total_bytes() - size, shared.get_limit())

        pool = cuda.MemoryPool(allocate)
        pool.set_limit(size=0)  # CUPY_GPU_MEMORY_LIMIT, too, would make it trim itself: `fits` looks at that
        number = next(self._numbers)
        self._pools[number] = pool
        return number

    def pool(self, number: int) -> Any:
        """Return a graph's pool."""
        return self._pools[number]

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Hold back `give_back` inside the block: what it frees would be freed inside a recording."""
        outer, self._is_recording = self._is_recording, True
        try:
            yield
        finally:
            self._is_recording = outer
            self.give_back()

    @contextlib.contextmanager
    def inputs(self) -> Iterator[None]:
        """Allocate, while a step is recorded, what the host writes before each replay.

        In the graph's own memory an earlier node may have had, and write again, what a later one was given.
        """
        if not self._is_recording:
            yield
            return
        if self._inputs is None:
            self._inputs = self._cupy.cuda.MemoryPool()
        with self._cupy.cuda.using_allocator(self._inputs.malloc):
            yield

    def drop(self, number: int) -> None:
        """Say that a graph is gone. May be called anywhere, by Python's collector too."""
        self._dropped.add(number)
        self.give_back()

    def give_back(self) -> None:
        """Return the blocks of graphs that are gone to the device, as far as no array lies in them."""
        if self._is_recording or not self._dropped:
            return
        with self._device:
            for number in list(self._dropped):
                pool = self._pools[number]
                pool.free_all_blocks()
                if not pool.total_bytes():
                    self._dropped.discard(number)
                    self._pools.pop(number, None)


class CapturedStep:
    """`step`, recorded; calling it replays the record on the current stream.

    The step must have run at least once before, so that every kernel is compiled and loaded. Recording runs the
    Python code but none of the work. Every array that the step reads must live as long as this object and be
    written in place only; Python numbers are fixed for good when recorded. When this object goes, its memory does.

    Raises
    ------
    BackendError
        The step holds something that cannot be recorded; the message says what.
    OutOfMemoryError
        The device has no memory for what the step makes.
    """

    def __init__(self, backend: CupyBackend, step: Callable[[], None]) -> None:
        self._memory, self._device = backend.graphs, backend.device
        self._graph: Any = None
        self._step: Callable[[], None] | None = step  # keeps alive what the graph reads and writes
        with backend.device, self._memory.lock:
            self._number = self._memory.new_pool()
            with backend.guard():
                self._record(backend, step)

    def _record(self, backend: CupyBackend, step: Callable[[], None]) -> None:
        cuda, shared = backend.xp.cuda, backend.xp.get_default_memory_pool()
        backend.synchronize()
        gc.collect()  # what it would free while recording could call CUDA
        # The step has run from the shared pool, which keeps all that it took: without this, recording takes it twice.
        shared.free_all_blocks()
        self._memory.give_back()
        stream = self._memory.stream
        with stream, self._memory.recording():
            if backend.cublas is not None:
                with cuda.using_allocator(shared.malloc):
                    self._cublas = backend.cublas.current()  # the graph's products use its workspace
            is_open = False
            with cuda.using_allocator(self._memory.pool(self._number).malloc):
                try:
                    stream.begin_capture()
                    is_open = True
                    step()
                    is_open = False
                    self._graph = stream.end_capture()
                except BaseException as error:
                    if is_open:
                        with contextlib.suppress(Exception):
                            stream.end_capture()  # ends the recording; what it holds may be invalid, and is dropped
                    if not isinstance(error, Exception) or backend.is_out_of_memory(error):
                        raise
                    raise BackendError(f"capture: the step cannot be recorded: {_reason(error)}") from error

    def __call__(self) -> None:
        """Replay the step, in order with what the current stream was given before and after."""
        with self._device:
            self._graph.launch()

    def __del__(self) -> None:
        if sys.is_finalizing() or "_number" not in self.__dict__:  # CUDA may be gone first
            return
        self._graph = self._step = None
        with contextlib.suppress(Exception):
            self._memory.drop(self._number)

    @property
    def pool_bytes(self) -> int:
        """Bytes of device memory that the graph keeps for itself."""
        with self._device:
            return int(self._memory.pool(self._number).total_bytes())


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
