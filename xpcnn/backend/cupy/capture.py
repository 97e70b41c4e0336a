"""A whole training step as one CUDA graph: recorded once, then replayed by one launch."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from xpcnn.errors import BackendError

if TYPE_CHECKING:
    from xpcnn.backend.cupy import CupyBackend


class CapturedStep:
    """`step`, recorded; calling it replays the record on the current stream.

    The step must have run at least once before, so that every kernel is compiled and loaded. Recording runs the
    Python code but none of the work. Every array that the step reads must live as long as this object and be
    written in place only; Python numbers are fixed for good when recorded.

    Raises
    ------
    BackendError
        The step holds something that cannot be recorded; the message says what.
    """

    def __init__(self, backend: CupyBackend, step: Callable[[], None]) -> None:
        cuda = backend.xp.cuda
        self._step = step  # keeps alive what the graph reads and writes
        # What is allocated while recording belongs to the graph alone: from the shared pool it would be handed to
        # others once Python drops it, and each replay would write over them.
        self._pool = cuda.MemoryPool()
        backend.synchronize()
        gc.collect()  # what it would free while recording could call CUDA
        if backend.capture_stream is None:  # one for all, as each has a cuBLAS handle and its workspace
            backend.capture_stream = cuda.Stream(non_blocking=True)
        stream = backend.capture_stream
        with backend.guard(), stream, _out_of_pool(cuda, self._pool):
            if backend.cublas is not None:
                with _out_of_pool(cuda, backend.xp.get_default_memory_pool()):
                    backend.cublas.handle()
            stream.begin_capture()
            try:
                step()
            except BaseException as error:
                with contextlib.suppress(Exception):
                    stream.end_capture()  # ends the recording; what it holds may be invalid, and is dropped
                if isinstance(error, Exception) and not isinstance(error, MemoryError):
                    raise BackendError(f"capture: the step cannot be recorded: {_reason(error)}") from error
                raise
            try:
                self._graph: Any = stream.end_capture()
            except Exception as error:
                raise BackendError(f"capture: the step cannot be recorded: {_reason(error)}") from error

    def __call__(self) -> None:
        """Replay the step, in order with what the current stream was given before and after."""
        self._graph.launch()

    @property
    def pool_bytes(self) -> int:
        """Bytes of device memory that the graph keeps for itself."""
        return int(self._pool.total_bytes())


@contextlib.contextmanager
def _out_of_pool(cuda: Any, pool: Any) -> Iterator[None]:
    with cuda.using_allocator(pool.malloc):
        yield


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
