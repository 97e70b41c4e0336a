"""An arena: memory that other processes see, of which arrays are cut.

One memfd as large as the machine's memory is mapped once; pages cost something only when they are written. Helper
processes (`worker.py`) map the same file, so that an array is there what it is here: an offset, a shape, strides.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import mmap
import os
import platform
import select
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpcnn.backend.numpy.memory import ALIGNMENT

PAGE = 4096
COPIED_AT_ONCE = 1 << 20  # bytes that a child of a fork copies at a time
PATIENCE = 10.0  # seconds that a fork waits for its child to copy


def empty_like(array: Any, empty: Callable[[tuple[int, ...], Any], Any]) -> Any:
    """Return an array of `empty`'s that has the shape of `array` and its order of axes in memory."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    there = empty(tuple(array.shape[axis] for axis in order), array.dtype)
    return there.transpose(sorted(range(array.ndim), key=order.__getitem__))


class Piece:
    """A piece of an arena, which goes back to it when nothing refers to it any more."""

    __slots__ = ("__array_interface__", "_arena", "_place")

    def __init__(self, arena: Arena, offset: int, size: int) -> None:
        self._arena, self._place = arena, (offset, size)
        self.__array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (arena.address + offset, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self._arena.returned.append(self._place)  # may run in any thread at any moment: one append is all it does


class Arena:
    """`size` bytes that can be shared; the first `reserved` of them are never cut.

    Free stretches keep no pages: they are punched out of the file.

    Raises
    ------
    OSError, ValueError, AttributeError
        The system has nothing of the kind, or gives none.
    """

    def __init__(self, size: int, reserved: int) -> None:
        self.size = size
        self.file = os.memfd_create("xpcnn")
        try:
            os.ftruncate(self.file, size)
            self.map = mmap.mmap(self.file, size)
        except BaseException:
            os.close(self.file)
            raise
        self._close = weakref.finalize(self, os.close, self.file)
        self.address: int = np.frombuffer(self.map, np.uint8).ctypes.data
        self.is_shared = True
        self.returned: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = []  # (offset, size) by offset; no two of them touch
        self._top = reserved  # nothing was ever cut from here on

    def cut(self, size: int) -> np.ndarray[Any, Any] | None:
        """Return `size` uninitialised bytes that begin with a cache line, or None where there are no more."""
        if not self.is_shared:
            return None
        size = -(-max(1, size) // ALIGNMENT) * ALIGNMENT
        if size >= PAGE:
            size = -(-size // PAGE) * PAGE
        with self._lock:
            self._collect()
            offset = self._place(size)
        return None if offset is None else np.asarray(Piece(self, offset, size))

    def array(self, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any] | None:
        """Return an uninitialised C-contiguous array, or None."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        piece = self.cut(size)
        return None if piece is None else piece[:size].view(dtype).reshape(shape)

    def copy(self, array: Any) -> Any:
        """Return a copy of `array` with its axes in the same order in memory, in here while there is room."""

        def empty(shape: Sequence[int], dtype: Any) -> Any:
            piece = self.array(shape, dtype)
            return np.empty(shape, dtype) if piece is None else piece

        there = empty_like(array, empty)
        there[...] = array
        return there

    def offset(self, array: Any) -> int | None:
        """Return where the first element of `array` lies; None where that is not in here."""
        place: int = array.__array_interface__["data"][0] - self.address
        return place if 0 <= place < self.size else None

    def _place(self, size: int) -> int | None:
        fitting = [index for index, (_, free) in enumerate(self._free) if free >= size]
        if fitting:
            index = min(fitting, key=lambda i: self._free[i][1])
            offset, free = self._free.pop(index)
            if free > size:
                self._free.insert(index, (offset + size, free - size))
            return offset
        offset = self._top if size < PAGE else -(-self._top // PAGE) * PAGE
        if offset + size > self.size:
            return None
        if offset > self._top:
            bisect.insort(self._free, (self._top, offset - self._top))
        self._top = offset + size
        return offset

    def _collect(self) -> None:
        while self.returned:
            offset, size = self.returned.pop()
            start, end = offset, offset + size
            index = bisect.bisect(self._free, (offset, 0))
            if index < len(self._free) and self._free[index][0] == end:
                end += self._free.pop(index)[1]
            if index and sum(self._free[index - 1]) == start:
                index -= 1
                start = self._free.pop(index)[0]
            self._free.insert(index, (start, end - start))
            # Whole free pages that the piece had a part in; those of its neighbours are gone already.
            first = max(-(-start // PAGE), offset // PAGE) * PAGE
            last = min(end // PAGE, -(-(offset + size) // PAGE)) * PAGE
            if first < last:
                with contextlib.suppress(OSError):  # it only gives memory back
                    self.map.madvise(mmap.MADV_REMOVE, first, last - first)

    # --- a child of a fork keeps what it inherited, to itself --------------------------------------------------------

    def privatise(self) -> None:
        """Put a private copy in the place of the shared memory; nothing more can be cut after that.

        Raises
        ------
        OSError
            The system gives no memory.
        """
        import ctypes

        self.is_shared = False
        self._lock = threading.Lock()  # another thread may have held it
        put = ctypes.CDLL(None, use_errno=True).mmap
        put.restype = ctypes.c_void_p
        put.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        private = 0x02 | 0x20 | 0x10  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED

        def remap(offset: int, size: int, protection: int) -> None:
            wanted = self.address + offset
            if size and put(wanted, size, protection, private, -1, 0) != wanted:
                raise OSError(ctypes.get_errno(), "mmap")

        used = -(-self._top // PAGE) * PAGE
        holes = [*self._free, (used, 0)]
        offset = 0
        for start, free in holes:  # what is free is not read: reading would bring its pages back
            for begin in range(offset, start, COPIED_AT_ONCE):
                begin -= begin % PAGE
                size = min(-(-start // PAGE) * PAGE - begin, COPIED_AT_ONCE + PAGE)
                content = ctypes.string_at(self.address + begin, size)
                remap(begin, size, mmap.PROT_READ | mmap.PROT_WRITE)
                ctypes.memmove(self.address + begin, content, size)
            offset = start + free
        remap(used, -(-self.size // PAGE) * PAGE - used, 0)
        self._close()


def privatise_after_fork(arena: Callable[[], Arena | None]) -> None:
    """See to it that children of forks share nothing with their parent; `arena` returns the one there is.

    The parent waits in the fork until the child has copied: what it wrote meanwhile would show up there.
    """
    pipes: dict[int, tuple[int, int]] = {}  # by thread
    thread = threading.get_ident

    def before() -> None:
        if arena() is not None:
            pipes[thread()] = os.pipe()

    def in_parent() -> None:
        if thread() in pipes:
            there, here = pipes.pop(thread())
            os.close(here)
            select.select([there], [], [], PATIENCE)
            os.close(there)

    def in_child() -> None:
        shared = arena()
        try:
            if shared is not None and shared.is_shared:
                shared.privatise()
        except OSError as error:
            # To go on would be to write into the parent's parameters.
            text = f"xpcnn: a forked process gets no memory of its own ({error}) and ends here; set XPCNN_PROCESSES=0\n"
            os.write(2, text.encode())
            os._exit(70)
        for pipe in pipes.values():
            for end in pipe:
                os.close(end)
        pipes.clear()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def new_arena(reserved: int) -> Arena | None:
    """Return an arena as large as the memory of the machine, or None where there can be none.

    Counters are handed between processes in the order in which they are written, as x86 keeps it.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Arena(size // PAGE * PAGE, reserved)
    except (OSError, ValueError, OverflowError, AttributeError, MemoryError):
        return None
