"""Real `cupy.ndarray` objects over host memory, so that CuPy's own metadata rules hold on a machine without a GPU.

Views, flags, strides and dispatch are CuPy's. Kernels and cuBLAS calls run on the CPU. Whatever else would allocate
or launch raises CuPy's own error: a copying `reshape`, an elementwise operation that has no kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np

from xpcnn.backend.cupy import CupyBackend
from xpcnn.backend.cupy.cublas import COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F, Cublas
from xpcnn.backend.cupy.updates import FUSED

from .shim import CpuKernels, guarded

DTYPES = {0: np.float32, 1: np.float64, 2: np.float16}


def wrap(host: np.ndarray) -> cupy.ndarray:
    """Return a CuPy array over a C-contiguous host array."""
    assert host.flags.c_contiguous
    memory = cupy.cuda.UnownedMemory(host.ctypes.data, max(1, host.nbytes), host, 0)
    return cupy.ndarray(host.shape, host.dtype, cupy.cuda.MemoryPointer(memory, 0))


def device(host: np.ndarray) -> cupy.ndarray:
    """Copy a host array to guarded memory under a CuPy array."""
    copy = guarded(host.shape, host.dtype)
    copy[...] = host
    return wrap(copy)


def view(array: cupy.ndarray) -> np.ndarray:
    """Return the numbers of a CuPy array over host memory, in place."""
    spans = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    before = -sum(span for span in spans if span < 0)
    size = before + sum(span for span in spans if span > 0) + array.itemsize
    memory = (ctypes.c_uint8 * size).from_address(array.data.ptr - before)
    return np.ndarray(array.shape, array.dtype, memory, before, array.strides)


class HostKernels(CpuKernels):
    """The CPU kernels, on CuPy arrays."""

    has_guards = False

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def launch(self, name: str, dtype: np.dtype[Any], grid: tuple[int, ...], *args: Any) -> None:
        from tests.fake_device import FakeArray

        def plain(arg: Any) -> Any:
            if not isinstance(arg, cupy.ndarray):
                return arg
            assert arg.flags.c_contiguous or name == "add_bias"  # whose rows may be part of longer ones
            return FakeArray(view(arg))

        super().launch(name, dtype, grid, *map(plain, args))


class CpuCublas:
    """cuBLAS's calls on host memory, by the definitions of its manual: column-major, op(A) op(B)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    @staticmethod
    def matrix(address: Any, kind: int, rows: int, columns: int, leading: int) -> np.ndarray:
        assert leading >= max(1, rows), "leading dimension below the number of rows"
        dtype = np.dtype(DTYPES[kind])
        size = (leading * (columns - 1) + rows) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(address.value)
        return np.ndarray((rows, columns), dtype, memory, 0, (dtype.itemsize, leading * dtype.itemsize))

    def cublasGemmEx(
        self, handle, ta, tb, m, n, k, alpha, a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind, ldc, compute, algorithm
    ):
        self.calls.append(("gemm", compute))
        assert min(m, n, k) > 0
        assert (compute == COMPUTE_64F) == (c_kind == 1)
        assert compute in (COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32)
        number = ctypes.c_double if c_kind == 1 else ctypes.c_float
        scale, keep = (ctypes.cast(p, ctypes.POINTER(number)).contents.value for p in (alpha, beta))
        left = self.matrix(a, a_kind, *((k, m) if ta else (m, k)), lda)
        right = self.matrix(b, b_kind, *((n, k) if tb else (k, n)), ldb)
        target = self.matrix(c, c_kind, m, n, ldc)
        product = scale * ((left.T if ta else left) @ (right.T if tb else right))
        target[...] = product + keep * target if keep else product
        return 0

    def cublasGemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, a, a_kind, lda, a_step, b, b_kind, ldb, b_step, beta, c, c_kind, ldc,
        c_step, count, compute, algorithm,
    ):  # fmt: skip
        def at(pointer: Any, kind: int, step: Any, i: int) -> ctypes.c_void_p:
            return ctypes.c_void_p(pointer.value + i * step.value * np.dtype(DTYPES[kind]).itemsize)

        for i in range(count):
            self.cublasGemmEx(
                handle, ta, tb, m, n, k, alpha, at(a, a_kind, a_step, i), a_kind, lda, at(b, b_kind, b_step, i),
                b_kind, ldb, beta, at(c, c_kind, c_step, i), c_kind, ldc, compute, algorithm,
            )  # fmt: skip
        self.calls[-count:] = [("batched", compute)]
        return 0

    def cublasCreate_v2(self, handle):
        return 0

    def cublasSetStream_v2(self, handle, stream):
        return 0

    def cublasSetWorkspace_v2(self, handle, workspace, size):
        return 0


class HostCupyBackend(CupyBackend):
    """The CuPy backend, its own code, without a device below."""

    def __init__(self) -> None:
        self.name = "cupy"
        self.xp = cupy
        self.device_id = 0
        self.device = contextlib.nullcontext()
        self.is_cuda = True
        self.device_name = "host memory"
        self.compute_capability = (9, 0)
        self.multiprocessors = 3
        self.column_bytes = 1 << 20
        self._tf32 = self._implicit_gemm = False
        self.fused = FUSED
        self.merges = self.keeps_columns = True
        self.update_limit = 1 << 20
        self.kernels = HostKernels()
        self.library = CpuCublas()
        stub = SimpleNamespace(
            cuda=SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=0)),
            empty=lambda shape, dtype: wrap(np.empty(shape, dtype)),
        )
        self.cublas = Cublas(stub, (9, 0), self.library)

    def for_array(self, array: Any) -> HostCupyBackend:
        return self

    def activate(self) -> None:
        pass

    def empty(self, shape: Any, dtype: Any) -> cupy.ndarray:
        return wrap(guarded(tuple(shape), dtype))

    def zeros(self, shape: Any, dtype: Any) -> cupy.ndarray:
        array = self.empty(shape, dtype)
        view(array)[...] = 0
        return array

    def asarray(self, a: Any, dtype: Any = None) -> cupy.ndarray:
        return a if isinstance(a, cupy.ndarray) else device(np.asarray(a, dtype))

    def contiguous(self, a: Any) -> cupy.ndarray:
        return a if a.flags.c_contiguous else device(view(a))

    def to_numpy(self, a: Any) -> np.ndarray:
        return view(a).copy()
