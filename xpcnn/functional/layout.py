"""Batch-last memory: logically (N, C, H, W) and (N, D), in memory (C, H, W, N) and (D, N); and what may come in.

Runs of N lie side by side, so columns are copied in long runs, a product's result is the next layer's input, and
one channel is one contiguous row.
"""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import DTypeError, MixedBackendsError, ShapeError


def batch_last(backend: Backend, x: Array) -> Array:
    """Return `x` (N, ...) as a C-contiguous (..., N): itself where memory already lies so, else a copy."""
    x = x.transpose(1, 2, 3, 0) if x.ndim == 4 else x.T  # (C, H, W, N) or (D, N)
    return x if x.flags.c_contiguous else backend.contiguous(x)


def batch_first(x: Array) -> Array:
    """Return the logical view (N, ...) of batch-last memory (..., N)."""
    return x.transpose(3, 0, 1, 2) if x.ndim == 4 else x.T  # (N, C, H, W) or (N, D)


def copy_batch_last(backend: Backend, x: Array) -> Array:
    """Return a copy of `x` (N, ...) that lies batch-last and belongs to the caller."""
    copy = empty_batch_last(backend, tuple(x.shape), x.dtype)
    copy[...] = x
    return copy


def empty_batch_last(backend: Backend, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array of a logical shape (N, ...) that lies batch-last."""
    return backend.empty((*shape[1:], shape[0]), dtype).transpose(len(shape) - 1, *range(len(shape) - 1))


def check_backend(name: str, x: Array, backend: Backend) -> None:
    """Raise MixedBackendsError unless `x` belongs to `backend`."""
    here = backend_of(x)
    if here is not backend:
        raise MixedBackendsError(
            f"{name}: expected all on one backend, got {here.name} for a forward on {backend.name}; bring it there "
            f'with xpcnn.use_backend("{backend.name}") and xpcnn.get_backend().asarray(...)'
        )


def check_floating(name: str, x: Array) -> None:
    """Raise DTypeError unless `x` is of a floating type."""
    if x.dtype.kind != "f":
        raise DTypeError(f"{name}: expected a floating type such as float32, got {x.dtype}; convert it first")


def check_ndim(name: str, x: Array, axes: str) -> None:
    """Raise ShapeError unless `x` has as many axes as named, such as "N, C, H, W"."""
    if x.ndim != axes.count(",") + 1:
        raise ShapeError(f"{name}: expected shape ({axes}), got {tuple(x.shape)}")


def check_like(name: str, x: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise ShapeError or DTypeError unless `x` has this shape and dtype."""
    if tuple(x.shape) != tuple(shape):
        raise ShapeError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.dtype != dtype:
        raise DTypeError(f"{name}: expected dtype {dtype}, got {x.dtype}")
