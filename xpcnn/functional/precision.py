"""float16: what is stored in 16 bits is computed in 32 and rounded once.

As Micikevicius et al. 2018, Mixed precision training (arXiv:1710.03740), section 3.3: products add up in float32, and
so does everything that sums or takes a logarithm; results go back to memory in float16. Nothing else is special about
float16, so an operation on it is a cast, the float32 operation and a cast. A backend may do without the casts: by
products that read float16 and add up in float32 (`Backend.multiplies_float16`, tensor cores), and by kernels that round
what they write (`Backend.stores_float16`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import DTypeError
from xpcnn.functional.layout import batch_first, batch_last

PRECISIONS = ("float16", "float32", "float64")


def check_precision(dtype: Any) -> str:
    """Return the name of a dtype to compute in.

    Raises
    ------
    DTypeError
        It is none of `PRECISIONS`.
    """
    name = dtype if isinstance(dtype, str) else str(getattr(dtype, "name", getattr(dtype, "__name__", dtype)))
    if name == "bfloat16":
        raise DTypeError(
            "dtype: expected float16, float32 or float64, got bfloat16, which NumPy has not and CuPy 14 only in part "
            "(no stacked matmul, no add.at); use float16 with optim.GradScaler, or allow_tf32 on a GPU"
        )
    if name not in PRECISIONS:
        raise DTypeError(f"dtype: expected float16, float32 or float64, got {name!r:.40}")
    return name


def is_narrow(dtype: Any) -> bool:
    """Say whether a dtype is float16."""
    return bool(dtype.char == "e")


def wide(dtype: Any) -> Any:
    """Return the dtype to compute in: float32 for float16, else the same."""
    return "float32" if is_narrow(dtype) else dtype


def in_float32(dtype: Any) -> dict[str, Any]:
    """Return the option with which a function of `xp` computes on float16 in float32, and rounds its result once."""
    return {"dtype": "float32"} if is_narrow(dtype) else {}


def cast(backend: Backend, a: Array, dtype: Any) -> Array:
    """Return `a` in another dtype as a new C-contiguous array; beyond float16's 65504 comes infinity, unannounced."""
    out = backend.empty(a.shape, dtype)
    with backend.errstate():
        backend.xp.copyto(out, a)
    return out


def cast_all(backend: Backend, arrays: Iterable[Array | None], dtype: Any) -> list[Array | None]:
    """Return `cast` of each array; None stands for one that is not there."""
    return [None if a is None else cast(backend, a, dtype) for a in arrays]


def cast_batch(backend: Backend, x: Array, dtype: Any) -> Array:
    """Return a batch (N, C, H, W) or (N, D) in another dtype, in batch-last memory."""
    return batch_first(cast(backend, batch_last(backend, x), dtype))
