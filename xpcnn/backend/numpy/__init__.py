"""The NumPy backend: arrays on the host, work shared by a few threads."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xpcnn.backend.base import Backend
from xpcnn.backend.numpy import convolution, cores, elementwise, images, plans, products, trace
from xpcnn.backend.numpy.memory import SMALLEST, BlockPool, aligned, trim
from xpcnn.backend.numpy.places import extent_of
from xpcnn.backend.numpy.plain import PlainNumpyBackend
from xpcnn.backend.numpy.quiet import quiet
from xpcnn.backend.numpy.threads import Blas, ThreadPool
from xpcnn.backend.numpy.traced import TracedArray, plain
from xpcnn.backend.numpy.workers import WorkerProcesses
from xpcnn.backend.split import split_evenly

# OpenBLAS itself keeps products below this many multiply-adds in one thread (interface/gemm.c), so they need no hold.
SINGLE_THREADED_PRODUCT = 65536 * 4
# Multiply-adds from which a product is cut into a strip for each thread: one that a worker process may be handed. Who
# makes the strips does not change their bits, how many there are may.
SHARED_PRODUCT = 1e6

# The working set of a slab of channels. Threads wait for each other at every call and want few of them; a helper
# process has nobody to wait for, and half as much lies in a core's own cache. Measured on two cores, ms: max-pooling
# of 128x64x28x28 by threads 4.7 (5.2 with twice as much, 5.8 with half), a step of lenet5 with a helper 4.5 (4.8 with
# four times as much).
SLAB_BYTES, SLAB_BYTES_OF_HELPERS = 1 << 20, 1 << 19

FUSED: dict[str, Callable[..., Any]] = {**convolution.FUSED, **elementwise.FUSED, **images.FUSED}

# Bytes that memory hands over at once, and those of an array that no longer lies in a core's own cache.
CACHE_LINE, FETCH_BYTES = 64, 4 << 20

# Geometries whose padded buffers a thread keeps.
BORDERED_KEPT = 64


class _Here(threading.local):
    """What is so in this thread alone; an attribute of the class is found in a seventh of the time of one missing."""

    slab_bytes: int | None = None
    worth: float | None = None  # elementary operations from which work is cut
    recorder: Any = None


class NumpyBackend(PlainNumpyBackend):
    """Plain NumPy made fast: BLAS makes the products, a thread pool shares out the rest, what comes again is recorded.

    Attributes
    ----------
    winograd : bool
        Whether large 3x3 convolutions may go through Winograd's transforms (`convolution/winograd.py`).
    """

    fused = FUSED
    winograd = True
    # What a core's own cache holds beside the weights and the output of a tile.
    column_bytes = 4 << 20
    fetch_bytes = FETCH_BYTES

    def __init__(self) -> None:
        self.blas = Blas()
        self.pool = ThreadPool()
        self.blocks = BlockPool()
        self.workers = WorkerProcesses(self.pool)
        self.plans = plans.Plans(self)
        self._local = _Here()
        self._work = threading.local()  # what `scratch` and `bordered` keep
        self._slab_bytes: int | None = SLAB_BYTES
        self._recorders: list[Any] = []  # of all threads

    @property
    def slab_bytes(self) -> int | None:
        """The working set of one slab of channels in this thread."""
        return self._local.slab_bytes or self._slab_bytes

    @slab_bytes.setter
    def slab_bytes(self, value: int | None) -> None:
        self._slab_bytes = value

    @property
    def region_worth(self) -> float:
        """Elementary operations from which work is cut for several threads, in this thread."""
        return self._local.worth or self.pool.worth

    @contextlib.contextmanager
    def as_recorded(self) -> Iterator[None]:
        local = self._local
        before = local.slab_bytes, local.worth
        arena = self.workers.arena
        local.slab_bytes = None if arena is None else SLAB_BYTES_OF_HELPERS
        local.worth = trace.region_worth(self, arena)
        try:
            yield
        finally:
            local.slab_bytes, local.worth = before

    @property
    def is_as_recorded(self) -> bool:
        return self._local.worth is not None

    def cuts(self) -> Any:
        return self.slab_bytes, self.region_worth

    def for_array(self, array: Any) -> Backend:
        # While a step is recorded, what its thread computes goes to the recorder.
        return self if not self._recorders else self._local.recorder or self

    captures = True
    capture_runs = True

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        # A record has memory of its own: what steps before it used would add to the peak (lenet5: 10 MB).
        self.blocks.give_back()
        self.drop_scratch()
        self.plans.clear()
        trim()
        return trace.Graph(self, step)

    def settings(self) -> Any:
        return self.pool.size, self.winograd, self.column_bytes, self._slab_bytes

    def traced(self, a: Any) -> Any:
        recorder = self._local.recorder
        return a if recorder is None else recorder.wrap(a)

    def untraced(self, a: Any) -> Any:
        return plain(a)

    def overlap(self, a: Any, b: Any) -> bool:
        return np.may_share_memory(a, b)

    def extent(self, a: Any) -> tuple[int, int]:
        return extent_of(a)

    def recording(self, recorder: Any) -> contextlib.AbstractContextManager[None]:
        """Send this thread's operations to `recorder` for the length of a `with` block."""
        return trace.recording(self, recorder)

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        return self.blocks.empty(tuple(shape), np.dtype(dtype))

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        dtype = np.dtype(dtype)
        array: np.ndarray[Any, Any] = aligned(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
        array.fill(0)
        return array

    def scratch(self, slot: str, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        size = np.dtype(dtype).itemsize
        for extent in shape:
            size *= extent
        store: np.ndarray[Any, Any] | None = getattr(self._work, slot, None)
        if store is None or store.size < size:
            store = aligned(size)
            setattr(self._work, slot, store)
        work: np.ndarray[Any, Any] = store[:size].view(dtype).reshape(shape)
        return work

    def fetch(self, a: Any) -> None:
        # A number of each line, in the order in which they lie: memory runs ahead of such a pass, not of one that skips
        # every other run, which waits for each (max-pooling of 128x64x28x28 by one thread, ms: 7.6, and 9.4 without).
        lines = a.reshape(a.shape[0], -1)[:, :: CACHE_LINE // a.itemsize]
        self.xp.copyto(self.scratch("lines", lines.shape, a.dtype), lines)

    def drop_scratch(self) -> None:
        """Let go of what `scratch` and `bordered` keep, in all threads; who needs it makes it anew."""
        self._work = threading.local()

    def bordered(self, key: Any, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return a work array that was zero when it was made; whoever uses a key writes the same part each time."""
        kept = self._work.__dict__.setdefault("bordered", {})
        array: np.ndarray[Any, Any] | None = kept.get((key, dtype))
        if array is None:
            if len(kept) >= BORDERED_KEPT:
                kept.clear()
            array = kept[key, dtype] = self.zeros(shape, dtype)
        return array

    def contiguous(self, a: Any) -> Any:
        if a.ndim < 2 or a.flags.c_contiguous or (type(a) is TracedArray and self.home is self):
            return super().contiguous(a)  # whose `xp` leaves a traced array to who traces
        out = self.empty(a.shape, a.dtype)
        self.copyto(out, a)
        return out

    def copyto(self, out: Any, a: Any) -> None:
        if out.ndim < 2 or not images.turn(self, out, a):
            self.xp.copyto(out, a)

    def duplicate(self, a: Any) -> Any:
        if type(a) is np.ndarray and a.nbytes < SMALLEST:
            return a.copy("K")
        return super().duplicate(a)

    def place(self, a: Any) -> Any:
        return self.workers.place(a)

    def constant(self, a: Any) -> Any:
        fixed = np.array(a, order="K")
        fixed.flags.writeable = False
        return fixed

    def get_num_threads(self) -> int:
        return 1 if self.pool.inside else self.pool.size

    def set_num_threads(self, n: int) -> None:
        self.pool.size = n

    def shares(self, work: float) -> bool:
        return work >= self.pool.worth and self.get_num_threads() > 1

    def parallel(
        self, function: Callable[[Any], None], tasks: Sequence[Any], work: float = 0.0, products: bool = True
    ) -> None:
        worth = self.region_worth
        with self.blas.single() if products else contextlib.nullcontext():
            if work < worth or len(tasks) < 2 or self.pool.inside:
                for task in tasks:
                    function(task)
            elif work < self.pool.worth:  # shared out when it is recorded: each task is cut as one thread's
                self.pool.run_alone(function, tasks)
            else:
                self.pool.run(function, tasks)

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function that is none of NumPy's, now and in every replay of what is being recorded."""
        function(*arguments)

    def planned(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.plans.run(key, function, arguments)

    def matmul(self, a: Any, b: Any, out: Any = None) -> Any:
        m, k = a.shape[-2:]
        n = b.shape[-1]
        size = m * n * k
        if k == 1 and out is not None:
            return self.xp.multiply(a, b, out=out)  # of one example; NumPy keeps such a product from BLAS
        if size <= SINGLE_THREADED_PRODUCT and min(m, n) > 1:
            return self.xp.matmul(a, b, out=out)
        # A pool at work already holds BLAS; a product of two matrices outside of one is shared out.
        threads = self.get_num_threads()
        if size < SHARED_PRODUCT or threads == 1 or a.ndim != 2 or b.ndim != 2 or self.pool.busy:
            with self.blas.single():
                return self._product(a, b, out)
        if out is None:
            out = self.empty((m, n), np.result_type(a, b))

        def strip(part: range) -> None:
            if m >= n:
                self._product(a[part.start : part.stop], b, out[part.start : part.stop])
            else:
                columns = slice(part.start, part.stop)
                self._product(a, b[:, columns], out[:, columns])

        strips = split_evenly(max(m, n), threads)
        self.parallel(strip, strips, size / 8)  # eight multiply-adds in the time of one operation
        return out

    def _product(self, a: Any, b: Any, out: Any) -> Any:
        m, k = a.shape[-2:]
        n = b.shape[-1]
        if not self.multiplies_pieces(b.dtype):
            return self.xp.matmul(a, b, out=out)
        columns, rows = products.column_piece(m, k, n), products.row_piece(m, k, n)
        if columns and b.strides[-1] != b.itemsize:  # pieces of a transposed factor lose
            if m < products.FEWEST_ROWS or b.ndim > 2:
                columns = 0
            else:
                turned = self.scratch("factor", b.shape, b.dtype)
                self.copyto(turned, b)
                b = turned
        if not columns and not rows:
            return self.xp.matmul(a, b, out=out)
        if out is None:
            out = self.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n), b.dtype)
        if columns:
            left, right, result = products.column_pieces(a, b, out, columns)
        else:
            left, right, result = products.row_pieces(a, b, out, rows)
        self.xp.matmul(left, right, out=result)
        return out

    def multiplies_pieces(self, dtype: Any) -> bool:
        """Say whether products of this dtype are to be cut for OpenBLAS's kernels for small matrices."""
        return self.blas.multiplies_small and dtype == np.float32

    def strided_view(self, a: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        return np.asarray(_View(a, shape, strides))

    def row_sums(self, a: Any, out: Any = None) -> Any:
        # A product with ones runs at the speed of BLAS, two to three times that of a pairwise sum.
        with self.blas.single():  # its threads would spin on for a while, on the cores of the pool
            if out is None:
                return self.xp.matmul(a, self._ones(a.shape[1], a.dtype))
            return self.xp.matmul(a, self._ones(a.shape[1], a.dtype), out=out)

    def row_dots(self, a: Any, b: Any) -> Any:
        with self.blas.single():
            return self.xp.matmul(a[:, None, :], b[:, :, None])[:, 0, 0]  # (rows,)

    def _ones(self, n: int, dtype: Any) -> np.ndarray[Any, Any]:
        slot = f"ones{np.dtype(dtype).char}"
        ones = getattr(self._local, slot, None)
        if ones is None or ones.size < n:
            ones = self.constant(np.ones(n, dtype))
            setattr(self._local, slot, ones)
        row: np.ndarray[Any, Any] = ones[:n]
        return row

    def errstate(self) -> contextlib.AbstractContextManager[Any]:
        return quiet()

    def info(self) -> dict[str, Any]:
        libraries = [library.info() for library in self.blas.libraries]
        return {
            "backend": self.name,
            "numpy": np.__version__,
            "device": _processor(),
            "threads": self.get_num_threads(),
            "helpers": self.workers.allowed,
            "blas": [
                f"{library['internal_api']} {library['version']} ({library.get('architecture', 'unknown')} kernel)"
                for library in libraries
            ],
        }

    def hints(self) -> list[str]:
        lines = [
            f"{name}={os.environ[name]} holds OpenBLAS to a choice of its own: `unset {name}` "
            "lets it take the fastest kernel of this processor"
            for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
            if name in os.environ
        ]
        flags = _processor_flags()
        for library in self.blas.libraries:
            architecture = library.info().get("architecture", "")
            if "avx512f" in flags and architecture in ("Haswell", "Zen", "Sandybridge"):
                lines.append(f"the {architecture} kernel does not use this processor's AVX-512: update NumPy")
        ranks = cores.idle_ranks(self.get_num_threads())
        if ranks > 1:
            lines.append(
                f"one process uses {self.get_num_threads()} of {cores.available()} cores: "
                f"`mpiexec -n {ranks} xpcnn train --distributed` uses all (xpcnn guide distributed)"
            )
        return lines


class _View:
    """What NumPy makes a view of: `as_strided`, in a third of the time that threads wait for."""

    __slots__ = ("__array_interface__", "base")

    def __init__(self, base: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.base = base
        self.__array_interface__ = {**base.__array_interface__, "shape": shape, "strides": strides}


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    import platform

    return platform.processor() or platform.machine()


def _processor_flags() -> set[str]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()
