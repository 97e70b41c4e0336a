"""What `xpcnn info` says of a GPU: versions, device, memory, and settings that would make it faster."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from xpcnn.backend.cupy import kernel_cache

if TYPE_CHECKING:
    from xpcnn.backend.cupy import CupyBackend


def info(backend: CupyBackend) -> dict[str, Any]:
    """Return versions, device, memory and settings as plain values."""
    cupy = backend.xp
    runtime = cupy.cuda.runtime
    pool = cupy.get_default_memory_pool()
    with backend.device:
        free, total = runtime.memGetInfo()
        used, kept, limit = pool.used_bytes(), pool.free_bytes(), pool.get_limit() or None
    major, minor = backend.compute_capability
    return {
        "backend": backend.name,
        "cupy": cupy.__version__,
        "runtime": _version(runtime.runtimeGetVersion()),
        "driver": _version(runtime.driverGetVersion()),
        "device": backend.device_name,
        "compute_capability": f"{major}.{minor}",
        "cublas": "own handle" if backend.cublas is not None else "CuPy's",
        "tf32": backend.allow_tf32,
        "implicit_gemm": backend.implicit_gemm,
        "captures": backend.captures,
        "fused": sorted(backend.fused),
        "memory_bytes": total,
        "memory_free_bytes": free,
        "pool_used_bytes": used,
        "pool_kept_bytes": kept,
        "pool_limit_bytes": limit,
    }


def hints(backend: CupyBackend) -> list[str]:
    """Return what the user could change to make this GPU faster, a line each."""
    lines = []
    if not backend.allow_tf32 and backend.is_cuda and backend.compute_capability >= (8, 0):
        lines.append("XPCNN_TF32=1 lets float32 products use tensor cores, at 10 bits of mantissa instead of 23")
    if kernel_cache.instead_of is not None:
        lines.append(
            f"CuPy cannot write its compiled kernels to {kernel_cache.instead_of}, so they are in "
            f"{os.environ[kernel_cache.VARIABLE]}, which may not stay: set {kernel_cache.VARIABLE} to a folder "
            "that can be written"
        )
    if not backend.is_cuda:
        lines.append("AMD GPUs run the portable code: the CUDA kernels and captured steps are for NVIDIA GPUs")
    return lines


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
