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
from xpcnn.backend.numpy import lowering, plans, products, trace
from xpcnn.backend.numpy.memory import BlockPool, aligned, trim
from xpcnn.backend.numpy.quiet import quiet
from xpcnn.backend.numpy.threads import Blas, ThreadPool
from xpcnn.backend.numpy.workers import WorkerProcesses
from xpcnn.backend.spans import spans
from xpcnn.errors import DTypeError

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

# Geometries whose padded buffers a thread keeps.
BORDERED_KEPT = 64


class NumpyBackend(Backend):
    """Arrays are `numpy.ndarray`; BLAS makes the products and a thread pool shares out the rest."""

    name = "numpy"
    xp = np
    fused = {"fill_columns": lowering.fill_columns, "lower_rows": lowering.lower_rows}  # noqa: RUF012
    immediate = True
    stacks_rows = True
    # From this many input and output channels on, Winograd's fewer multiplications outweigh its transforms
    # (measured: `python bench/run.py conv-64x14`; see `functional/winograd.py`).
    winograd_channels = 16
    # What a core's own cache holds beside the weights and the output of a tile.
    column_bytes = 4 << 20

    def __init__(self) -> None:
        self.blas = Blas()
        self.pool = ThreadPool()
        self.blocks = BlockPool()
        self.workers = WorkerProcesses(self.pool)
        self.plans = plans.Plans(self)
        self._local = threading.local()
        self._work = threading.local()  # what `scratch` and `bordered` keep
        self._slab_bytes: int | None = SLAB_BYTES
        self._recorders: list[Any] = []  # of all threads

    @property
    def slab_bytes(self) -> int | None:
        """The working set of one slab of channels in this thread."""
        return getattr(self._local, "slab_bytes", None) or self._slab_bytes

    @slab_bytes.setter
    def slab_bytes(self, value: int | None) -> None:
        self._slab_bytes = value

    @contextlib.contextmanager
    def as_recorded(self) -> Iterator[None]:
        before = getattr(self._local, "slab_bytes", None)
        self._local.slab_bytes = None if self.workers.arena is None else SLAB_BYTES_OF_HELPERS
        try:
            yield
        finally:
            self._local.slab_bytes = before

    def owns(self, array: Any) -> bool:
        # A masked array would lose its mask, and `*` of a matrix is another product.
        return isinstance(array, np.ndarray) and not (isinstance(array, np.matrix) or hasattr(array, "filled"))

    def asarray(self, a: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
        if not isinstance(a, (np.ndarray, np.generic, list, tuple, int, float)) and not hasattr(a, "__array__"):
            raise DTypeError(f"a: expected an array or nested lists of numbers, got {type(a).__name__}")
        return np.asarray(a, dtype=dtype)

    def to_numpy(self, a: Any) -> np.ndarray[Any, Any]:
        return np.asarray(a)

    def for_array(self, array: Any) -> Backend:
        # While a step is recorded, what its thread computes goes to the recorder.
        return self if not self._recorders else getattr(self._local, "recorder", None) or self

    captures = True
    capture_runs = True

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        # A record has memory of its own: what steps before it used would add to the peak (lenet5: 10 MB).
        self.blocks.give_back()
        self.drop_scratch()
        self.plans.clear()
        trim()
        return trace.RecordedStep(self, step)

    def recording(self, recorder: Any) -> contextlib.AbstractContextManager[None]:
        """Send this thread's operations to `recorder` for the length of a `with` block."""
        return trace.recording(self, recorder)

    def synchronize(self) -> None:
        """Nothing to wait for: NumPy returns when the work is done."""

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

    def drop_scratch(self) -> None:
        """Let go of what `scratch` and `bordered` keep, in all threads; who needs it makes it anew."""
        self._work = threading.local()

    def bordered(self, key: Any, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        kept = self._work.__dict__.setdefault("bordered", {})
        array: np.ndarray[Any, Any] | None = kept.get((key, dtype))
        if array is None:
            if len(kept) >= BORDERED_KEPT:
                kept.clear()
            array = kept[key, dtype] = self.zeros(shape, dtype)
        return array

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
        with self.blas.single() if products else contextlib.nullcontext():
            if work < self.pool.worth or len(tasks) < 2 or self.pool.inside:
                for task in tasks:
                    function(task)
            else:
                self.pool.run(function, tasks)

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

        self.parallel(strip, spans(max(m, n), threads), size / 8)  # eight multiply-adds in the time of one operation
        return out

    def _product(self, a: Any, b: Any, out: Any) -> Any:
        m, k = a.shape[-2:]
        n = b.shape[-1]
        piece = products.column_piece(m, k, n) if self._in_pieces(b.dtype) else 0
        if not piece or b.strides[-1] != b.itemsize:  # pieces of a transposed factor lose
            return self.xp.matmul(a, b, out=out)
        if out is None:
            out = self.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n), b.dtype)
        left, right, result = products.column_pieces(a, b, out, piece)
        self.xp.matmul(left, right, out=result)
        return out

    def _in_pieces(self, dtype: Any) -> bool:
        return self.blas.multiplies_small and dtype == np.float32

    def outer_sum(self, a: Any, b: Any, out: Any = None) -> Any:
        piece = products.outer_piece(a.shape[2], b.shape[2], a.shape[3]) if self._in_pieces(a.dtype) else None
        if piece is None:
            return super().outer_sum(a, b, out)
        left, right = products.outer_pieces(a, b, piece)
        shape = (*left.shape[:4], right.shape[4], left.shape[-2], right.shape[-1])  # (G, R, P, K', F', k, f)
        if out is None:
            out = self.empty((a.shape[0], a.shape[2], b.shape[2]), a.dtype)
        place = products.outer_place(out, piece)  # (G, K', F', k, f)
        with self.blas.single():
            if shape[1] * shape[2] == 1:  # nothing to add up
                self.xp.matmul(left[:, 0, 0], right[:, 0, 0], out=place)
                return out
            parts = self.scratch("parts", shape, a.dtype)
            self.xp.matmul(left, right, out=parts)
        self.xp.sum(parts.reshape(shape[0], -1, *shape[3:]), axis=1, out=place)
        return out

    def left_factor(self, a: Any) -> Any:
        # OpenBLAS's kernels for small matrices are 1.1 times faster on a left factor with contiguous columns.
        return self.contiguous(a.swapaxes(-1, -2)).swapaxes(-1, -2)

    def strided_view(self, a: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        return np.asarray(_View(a, shape, strides))

    def row_sums(self, a: Any) -> Any:
        # A product with ones runs at the speed of BLAS, two to three times that of a pairwise sum.
        with self.blas.single():  # its threads would spin on for a while, on the cores of the pool
            return self.xp.matmul(a, self._ones(a.shape[1], a.dtype))

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

    def demand(self, holds: Any, error: Exception) -> None:
        if not holds.all():
            raise error

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
