"""Host arrays to the device: in the order in which they lie, and batch after batch beside the work on the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xpcnn.backend.base import Array
from xpcnn.errors import DTypeError

if TYPE_CHECKING:
    from xpcnn.backend.cupy import CupyBackend


LARGE = 1 << 24  # bytes; beyond, an upload goes without pinned memory


def upload(cupy: Any, a: Any, dtype: Any = None) -> Array:
    """Copy host data to the current device; a dense array keeps its order of axes in memory, unlike `cupy.asarray`."""
    if not isinstance(a, (np.ndarray, np.generic, list, tuple, int, float)) and not hasattr(a, "__array__"):
        raise DTypeError(f"a: expected an array or nested lists of numbers, got {type(a).__name__}")
    if isinstance(a, (list, tuple)) and any(isinstance(part, cupy.ndarray) for part in a):
        return cupy.asarray(a, dtype=dtype)
    host = np.asarray(a, dtype=dtype)
    if host.dtype.kind not in "biufc":
        raise DTypeError(f"a: expected numbers, got dtype {host.dtype}")
    axes = memory_order(host)
    dense = np.ascontiguousarray(host.transpose(axes)).reshape([host.shape[axis] for axis in axes])
    if dense.nbytes < LARGE:
        device = cupy.asarray(dense)
    else:  # CuPy would copy it to pinned memory first, as much again on the host, and keep that for good
        device = cupy.empty(dense.shape, dense.dtype)
        cupy.cuda.get_current_stream().synchronize()  # whoever had this memory before; the copy waits for no stream
        device.data.copy_from_host(dense.ctypes.data, dense.nbytes)
    return device.transpose(np.argsort(axes).tolist()) if axes != sorted(axes) else device


def memory_order(a: np.ndarray[Any, Any]) -> list[int]:
    """Return the axes of `a` from the slowest in memory to the fastest; as they are where it has no dense order."""
    axes = sorted(range(a.ndim), key=lambda axis: (-abs(a.strides[axis]), axis))
    return axes if a.transpose(axes).flags.c_contiguous and not a.flags.c_contiguous else list(range(a.ndim))


class Slot:
    """Pinned host memory for one batch, and the event after which it may be written again."""

    @classmethod
    def pair(cls, cupy: Any) -> tuple[Slot, Slot]:
        """One to fill while the other is copied."""
        return cls(cupy), cls(cupy)

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._memory: Any = None
        self.done = cupy.cuda.Event(disable_timing=True)

    def fill(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Copy `arrays`, side by side, and return the copies."""
        self.done.synchronize()  # the copy of two batches ago: long finished unless the device is that far behind
        starts, size = [], 0
        for array in arrays:
            starts.append(size)
            size += -(-array.nbytes // 256) * 256
        if self._memory is None or self._memory.mem.size < size:
            self._memory = self._cupy.cuda.alloc_pinned_memory(max(size, 256))
        copies = []
        for start, array in zip(starts, arrays, strict=True):
            copy = np.frombuffer(self._memory, array.dtype, array.size, start).reshape(array.shape)
            copy[...] = array
            copies.append(copy)
        return copies


def prefetch(backend: CupyBackend, batches: Iterable[Sequence[Any]]) -> Iterator[tuple[Array, ...]]:
    """Yield the arrays of each batch on the device; the next batch is copied while the caller works on the last.

    Host arrays go by pinned memory and a stream of their own, arrays of the device pass through. A batch that was
    yielded is the caller's and is not written again.
    """
    cupy = backend.xp
    backend.activate()
    # Kept from call to call: pinned memory is slow to get, and its events say when it may be written again.
    copying, slots = backend.lanes.pop() if backend.lanes else (cupy.cuda.Stream(non_blocking=True), Slot.pair(cupy))
    waiting: tuple[tuple[Array, ...], Any] | None = None
    try:
        for index, batch in enumerate(batches):
            ready, waiting = waiting, _start(backend, batch, slots[index % 2], copying)
            if ready is not None:
                yield _finish(cupy, *ready)
        if waiting is not None:
            last, waiting = waiting, None
            yield _finish(cupy, *last)
    finally:
        if waiting is not None:
            # The memory of a batch that nobody took goes back to the pool, for what comes after its copy.
            _finish(cupy, *waiting)
        backend.lanes.append((copying, slots))


def _start(backend: CupyBackend, batch: Sequence[Any], slot: Slot, copying: Any) -> tuple[tuple[Array, ...], Any]:
    cupy = backend.xp
    hosts = {i: np.asarray(a) for i, a in enumerate(batch) if not isinstance(a, cupy.ndarray)}
    orders = {i: memory_order(host) for i, host in hosts.items()}
    pinned = slot.fill([host.transpose(orders[i]) for i, host in hosts.items()])
    arrays = list(batch)
    targets = [backend.empty(copy.shape, copy.dtype) for copy in pinned]
    # Allocated in the order of the current stream: whoever had this memory before is done when that work is.
    allocated = cupy.cuda.Event(disable_timing=True)
    allocated.record()
    copying.wait_event(allocated)
    for target, copy, (i, order) in zip(targets, pinned, orders.items(), strict=True):
        target.set(copy, stream=copying)
        arrays[i] = target.transpose(np.argsort(order).tolist())
    slot.done.record(copying)
    done = cupy.cuda.Event(disable_timing=True)
    done.record(copying)
    return tuple(arrays), done


def _finish(cupy: Any, arrays: tuple[Array, ...], done: Any) -> tuple[Array, ...]:
    cupy.cuda.get_current_stream().wait_event(done)
    return arrays
