"""Host memory that is used again: large arrays come from blocks that return here when the last view is gone.

glibc gives large arrays back to the system and takes fresh pages for the next, which the kernel clears: on the
machine of `bench/results` that costs more than filling the array. Nothing here needs care from a caller: a block
is free when Python has dropped the array and all its views, as with CuPy's memory pool.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np

SMALLEST = 1 << 18  # bytes; malloc keeps smaller pieces itself
ALIGNMENT = 64  # bytes: a cache line, and a register of AVX-512
GRAIN = 1 << 16  # bytes; blocks are whole multiples, so that near sizes share them


def aligned(size: int) -> np.ndarray[Any, Any]:
    """Return `size` uninitialised bytes that begin with a cache line.

    malloc puts large pieces 16 bytes behind a page, where every load of 64 bytes takes parts of two lines.
    """
    store = np.empty(size + ALIGNMENT, np.uint8)
    skip = -store.ctypes.data % ALIGNMENT
    return store[skip : skip + size]


def trim() -> None:
    """Let the system have what malloc keeps of arrays that are gone, where malloc is glibc's."""
    import ctypes

    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Store:
    """Bytes at a fixed place."""

    __slots__ = ("address", "memory", "nbytes")

    def __init__(self, memory: Any) -> None:
        self.memory, self.address, self.nbytes = memory, memory.ctypes.data, memory.nbytes


class Block:
    """A piece of memory, as NumPy makes an array of it; goes back to its pool when nothing refers to it any more."""

    __slots__ = ("__array_interface__", "pool", "store")

    def __init__(
        self, pool: BlockPool, store: Store, shape: tuple[int, ...], strides: tuple[int, ...] | None, kind: str
    ) -> None:
        self.pool = pool
        self.store = store
        self.__array_interface__ = {
            "shape": shape,
            "strides": strides,
            "typestr": kind,
            "data": (store.address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        # May run in any thread at any moment: one append is all it does.
        self.pool.returned.append(self.store)


class BlockPool:
    """Free blocks of host memory by size.

    Parameters
    ----------
    spare : float
        Free and used blocks together may hold this many times the most that was ever in use at once; what is over
        goes back to the system.
    keep : bool
        Keep all memory for as long as the pool itself, used or not.
    source : callable, optional
        Returns that many bytes, or None where it has no more: where blocks come from first.
    smallest : int
        Smaller arrays are no blocks, but NumPy's own.

    Attributes
    ----------
    resting : bool
        While it is set, nothing that comes back is handed out again.
    """

    def __init__(
        self,
        spare: float = 2.0,
        *,
        keep: bool = False,
        source: Callable[[int], Any] | None = None,
        smallest: int = SMALLEST,
    ) -> None:
        self.spare = spare
        self._smallest = smallest
        self._source = source
        self.resting = False
        self.kept: list[Store] | None = [] if keep else None
        self._lock = threading.Lock()
        self.returned: list[Store] = []
        self.free: dict[int, list[Store]] = {}
        self.free_bytes = 0
        self.used_bytes = 0
        self.peak_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Return an uninitialised C-contiguous array."""
        size = math.prod(shape) * dtype.itemsize
        if size < self._smallest:
            return np.empty(shape, dtype)
        return np.asarray(Block(self, self._store(size), shape, None, dtype.str))

    def laid_out(
        self, size: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, kind: str
    ) -> tuple[np.ndarray[Any, Any], int]:
        """Return an uninitialised array at the beginning of `size` bytes of its own, and its address."""
        if size < self._smallest:
            array: np.ndarray[Any, Any] = np.ndarray(shape, kind, np.empty(size, np.uint8), 0, strides)
            return array, array.__array_interface__["data"][0]
        store = self._store(size)
        return np.asarray(Block(self, store, shape, strides, kind)), store.address

    def _store(self, size: int) -> Store:
        if size >= SMALLEST:
            size = -(-size // GRAIN) * GRAIN
        else:
            size = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        with self._lock:
            self._collect()
            store = self._take(size)
            self.used_bytes += store.nbytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return store

    def give_back(self) -> None:
        """Give all free blocks back to the system."""
        with self._lock:
            self._collect()
            self.free.clear()
            self.free_bytes = 0

    def _collect(self) -> None:
        while self.returned and not self.resting:
            store = self.returned.pop()
            self.used_bytes -= store.nbytes
            self.free_bytes += store.nbytes
            self.free.setdefault(store.nbytes, []).append(store)

    def _take(self, size: int) -> Store:
        fitting = self.free.get(size)
        if not fitting:
            near = [free for free in self.free if size <= free <= size + size // 4]
            fitting = self.free[min(near)] if near else None
        if fitting:
            store = min(fitting, key=attrgetter("address"))  # memory that repeats keeps what is bound to it
            fitting.remove(store)
            if not fitting:
                del self.free[store.nbytes]
            self.free_bytes -= store.nbytes
            return store
        self._trim(size)
        memory = self._source(size) if self._source is not None else None
        store = Store(aligned(size) if memory is None else memory)
        if self.kept is not None:
            self.kept.append(store)
        return store

    def _trim(self, wanted: int) -> None:
        """Give free blocks back to the system, the largest first, before new memory is taken."""
        if self.kept is not None:
            return
        allowed = self.spare * self.peak_bytes
        while self.free and self.free_bytes + self.used_bytes + wanted > allowed:
            size = max(self.free)
            stores = self.free[size]
            stores.pop()
            if not stores:
                del self.free[size]
            self.free_bytes -= size
