"""Matrix products by cuBLAS on handles of our own, through ctypes.

CuPy refuses its own cuBLAS calls while a graph is captured (cupy#6290), copies operands that are not contiguous, and
spends more host time on a product than the call itself. A handle of our own has none of the three: any operand whose
rows or columns are dense goes in as it lies, by its leading dimension.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
from typing import Any, NamedTuple

from xpcnn.backend.base import Array
from xpcnn.errors import BackendError, OutOfMemoryError

# cuBLAS's and CUDA's enumerations (cublas_api.h, library_types.h).
DATA_TYPES = {"f": 0, "d": 1, "e": 2}  # CUDA_R_32F, CUDA_R_64F, CUDA_R_16F
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
GEMM_DEFAULT = -1
ALLOC_FAILED = 3  # CUBLAS_STATUS_ALLOC_FAILED
# What the cuBLAS manual recommends for Hopper and for what came before it (cublasSetWorkspace).
WORKSPACE_HOPPER, WORKSPACE = 32 << 20, 8 << 20


class Operand(NamedTuple):
    """How a matrix, or a stack of them, lies in memory; counted in elements."""

    rows: int
    columns: int
    transposed: bool  # whether columns, not rows, are dense
    leading: int
    batch: int
    step: int  # from one matrix of the stack to the next; 0 repeats the only one


def operand(array: Array) -> Operand | None:
    """Describe an array of 2 or 3 axes to cuBLAS; None where neither rows nor columns are dense."""
    if array.ndim not in (2, 3) or not array.size:
        return None
    size = array.itemsize
    strides = array.strides
    rows, columns = array.shape[-2:]
    down, across = strides[-2] // size, strides[-1] // size
    batch, step = (array.shape[0], strides[0] // size) if array.ndim == 3 else (1, 0)
    if min(strides) < 0 or max(array.shape) >= 1 << 31:
        return None
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return Operand(rows, columns, False, down if rows > 1 else columns, batch, step)
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return Operand(rows, columns, True, across if columns > 1 else rows, batch, step)
    return None


class Handle(NamedTuple):
    """A cuBLAS handle bound to a stream, and the memory that its products may use; a graph that uses it holds it."""

    pointer: ctypes.c_void_p
    workspace: Array


class Cublas:
    """One device's cuBLAS: a handle for each thread and stream, as handles may not be shared between either."""

    def __init__(self, cupy: Any, compute_capability: tuple[int, int], library: Any = None) -> None:
        self._cupy = cupy
        self._workspace_bytes = WORKSPACE_HOPPER if compute_capability >= (9, 0) else WORKSPACE
        self._local = threading.local()
        self._library = library
        self._is_missing = False

    def takes(self, a: Array, b: Array, out: Array | None) -> bool:
        """Whether `product` can do this one: one supported dtype, dense rows or columns, a library that loads."""
        if a.dtype != b.dtype or a.dtype.char not in DATA_TYPES or (out is not None and out.dtype != a.dtype):
            return False
        first, second = operand(a), operand(b)
        if first is None or second is None or first.columns != second.rows:
            return False
        stacks = {part.batch for part, array in ((first, a), (second, b)) if array.ndim == 3}
        if len(stacks) > 1:
            return False
        if out is not None:
            third = operand(out)
            wanted = (*stacks, first.rows, second.columns)
            if third is None or tuple(out.shape) != wanted or (out.ndim == 3 and third.batch > 1 and not third.step):
                return False
        return self._load() is not None

    def product(self, a: Array, b: Array, out: Array, *, tf32: bool = False, accumulate: bool = False) -> None:
        """Write `a @ b` to `out`, or add it there; `takes` has said that it can."""
        target = operand(out)
        if target is not None and target.transposed:
            # cuBLAS writes dense columns. A target with dense rows is the transposed target of b.T @ a.T, so the
            # code below is for dense rows alone.
            a, b, out = _turned(b), _turned(a), _turned(out)
            target = operand(out)
        first, second = operand(a), operand(b)
        if first is None or second is None or target is None:
            raise BackendError(f"product: expected dense rows or columns, got strides {a.strides}, {b.strides}")
        char = a.dtype.char
        scalar = ctypes.c_double if char == "d" else ctypes.c_float
        compute = COMPUTE_64F if char == "d" else COMPUTE_32F_FAST_TF32 if tf32 and char == "f" else COMPUTE_32F
        alpha, beta, kind = scalar(1), scalar(1 if accumulate else 0), DATA_TYPES[char]
        # Row-major `a @ b` is column-major `b @ a`: the operands change places and keep their flags.
        shape = int(second.transposed), int(first.transposed), target.columns, target.rows, first.columns
        b_at, a_at, out_at = (ctypes.c_void_p(_address(array)) for array in (b, a, out))
        library, handle = self._load(), self.current().pointer
        if target.batch == 1:
            status = library.cublasGemmEx(
                handle, *shape, ctypes.byref(alpha), b_at, kind, second.leading, a_at, kind, first.leading,
                ctypes.byref(beta), out_at, kind, target.leading, compute, GEMM_DEFAULT,
            )  # fmt: skip
        else:
            steps = (ctypes.c_longlong(part.step) for part in (second, first, target))
            status = library.cublasGemmStridedBatchedEx(
                handle, *shape, ctypes.byref(alpha), b_at, kind, second.leading, next(steps), a_at, kind,
                first.leading, next(steps), ctypes.byref(beta), out_at, kind, target.leading, next(steps),
                target.batch, compute, GEMM_DEFAULT,
            )  # fmt: skip
        _check(status, "product")

    def current(self) -> Handle:
        """Return this thread's handle for the current stream; make it before a capture begins, not inside."""
        stream = self._cupy.cuda.get_current_stream().ptr
        handles: dict[int, Handle] = self._local.__dict__.setdefault("handles", {})
        if stream not in handles:
            library = self._load()
            pointer = ctypes.c_void_p()
            _check(library.cublasCreate_v2(ctypes.byref(pointer)), "cublasCreate")
            _check(library.cublasSetStream_v2(pointer, ctypes.c_void_p(stream)), "cublasSetStream")
            # After the stream, which resets it. Without one of our own cuBLAS would allocate inside a capture.
            workspace = self._cupy.empty(self._workspace_bytes, "u1")
            size = ctypes.c_size_t(self._workspace_bytes)
            _check(library.cublasSetWorkspace_v2(pointer, ctypes.c_void_p(_address(workspace)), size), "workspace")
            # Never destroyed: there are few, and at exit CUDA may be gone first.
            handles[stream] = Handle(pointer, workspace)
        return handles[stream]

    def _load(self) -> Any:
        """Return the library that CuPy itself uses; None where it cannot be loaded."""
        if self._library is None and not self._is_missing:
            try:
                importlib.import_module("cupy_backends.cuda.libs.cublas")  # loads the library from where CuPy finds it
                major = self._cupy.cuda.runtime.runtimeGetVersion() // 1000
                windows = sys.platform == "win32"
                self._library = ctypes.CDLL(f"cublas64_{major}.dll" if windows else f"libcublas.so.{major}")
            except (ImportError, OSError, RuntimeError):
                self._is_missing = True  # products are then CuPy's, whose own error says what is wrong
        return self._library


def _turned(array: Array) -> Array:
    return array.T if array.ndim == 2 else array.transpose(0, 2, 1)


def _address(array: Array) -> int:
    return array.data.ptr  # type: ignore[no-any-return]


def _check(status: int, what: str) -> None:
    if status == ALLOC_FAILED:
        raise OutOfMemoryError(f"cuBLAS: {what} found no memory; use a smaller batch, or end other programs on the GPU")
    if status != 0:
        raise BackendError(f"cuBLAS: {what} failed with status {status} (cublasStatus_t in the cuBLAS manual)")
