"""The array module of the fake device: the part of CuPy that `xpcnn` may use, with CuPy's signatures.

A name that is not here does not exist for portable code. Before adding one, check that CuPy has it, with what keywords,
and that it neither synchronises nor copies from the host.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided as np_as_strided

from .array import FakeArray, Ufunc, call, download, host, matmul, upload, wrap

UFUNCS = """
    absolute add arctan arctan2 bitwise_and bitwise_or bitwise_xor ceil copysign cos cosh divide equal exp exp2 expm1
    floor floor_divide fmax fmin greater greater_equal invert isfinite isinf isnan left_shift less less_equal log log10
    log1p log2 logical_and logical_not logical_or logical_xor maximum minimum multiply negative not_equal power
    reciprocal remainder right_shift rint sign signbit sin sinh sqrt square subtract tan tanh true_divide trunc
"""
CONSTANTS_AND_TYPES = """
    bool_ can_cast dtype e finfo float16 float32 float64 floating iinfo inexact inf int16 int32 int64 int8 integer
    intp isscalar issubdtype nan newaxis number pi promote_types signedinteger uint16 uint32 uint64 uint8
    unsignedinteger
"""


def _fill_with_rubbish(array: np.ndarray) -> np.ndarray:
    """Fill memory that nobody has written yet, so that reading it shows."""
    kind = array.dtype.kind
    array.fill(np.nan if kind in "fc" else True if kind == "b" else np.iinfo(array.dtype).max)
    return array


def empty(shape: Any, dtype: Any = float, order: str = "C") -> FakeArray:
    return FakeArray(_fill_with_rubbish(np.empty(shape, dtype, order)))


def empty_like(a: FakeArray, dtype: Any = None, order: str = "K") -> FakeArray:
    return FakeArray(_fill_with_rubbish(np.empty_like(host(a), dtype, order)))


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> FakeArray:
    return FakeArray(np.zeros(shape, dtype, order))


def zeros_like(a: FakeArray, dtype: Any = None, order: str = "K") -> FakeArray:
    return FakeArray(np.zeros_like(host(a), dtype, order))


def ones(shape: Any, dtype: Any = float, order: str = "C") -> FakeArray:
    return FakeArray(np.ones(shape, dtype, order))


def ones_like(a: FakeArray, dtype: Any = None, order: str = "K") -> FakeArray:
    return FakeArray(np.ones_like(host(a), dtype, order))


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> FakeArray:
    return FakeArray(np.full(shape, host(fill_value), dtype, order))


def full_like(a: FakeArray, fill_value: Any, dtype: Any = None, order: str = "K") -> FakeArray:
    return FakeArray(np.full_like(host(a), host(fill_value), dtype, order))


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> FakeArray:
    return FakeArray(np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype))


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = float, order: str = "C") -> FakeArray:
    return FakeArray(np.eye(N, M, k, dtype, order))


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False) -> FakeArray:
    if isinstance(obj, FakeArray):
        return obj.astype(obj.dtype if dtype is None else dtype, order=order, copy=copy)
    if isinstance(obj, list | tuple) and builtins.any(isinstance(part, FakeArray) for part in obj):
        raise TypeError("array: a list of device arrays is put together on the host; use stack or concatenate")
    return upload(obj, dtype)


def asarray(a: Any, dtype: Any = None, order: str | None = None) -> FakeArray:
    return array(a, dtype, copy=False, order=order or "K")


def ascontiguousarray(a: FakeArray, dtype: Any = None) -> FakeArray:
    return FakeArray(np.ascontiguousarray(host(a), dtype))


def asnumpy(a: Any) -> np.ndarray:
    return download(a) if isinstance(a, FakeArray) else np.asarray(a)


def copy(a: FakeArray, order: str = "K") -> FakeArray:
    return a.copy(order)


def copyto(dst: FakeArray, src: Any, casting: str = "same_kind", where: FakeArray | None = None) -> None:
    with np.errstate(all="ignore"):
        np.copyto(host(dst), host(src), casting, True if where is None else host(where))


def where(condition: FakeArray, x: Any = None, y: Any = None) -> FakeArray:
    if x is None or y is None:
        raise AssertionError("where: with one argument it makes the device wait for the host")
    return call(np.where, condition, x, y)


def clip(a: FakeArray, a_min: Any, a_max: Any, out: FakeArray | None = None) -> FakeArray:
    if a_min is None:
        return call(np.minimum, a, a_max, out=out)
    return call(np.maximum, a, a_min, out=out) if a_max is None else call(np.clip, a, a_min, a_max, out=out)


def reshape(a: FakeArray, newshape: Any, order: str = "C") -> FakeArray:
    return FakeArray(np.reshape(host(a), newshape, order=order))


def transpose(a: FakeArray, axes: Any = None) -> FakeArray:
    return FakeArray(np.transpose(host(a), axes))


def moveaxis(a: FakeArray, source: Any, destination: Any) -> FakeArray:
    return FakeArray(np.moveaxis(host(a), source, destination))


def swapaxes(a: FakeArray, axis1: int, axis2: int) -> FakeArray:
    return FakeArray(np.swapaxes(host(a), axis1, axis2))


def expand_dims(a: FakeArray, axis: Any) -> FakeArray:
    return FakeArray(np.expand_dims(host(a), axis))


def squeeze(a: FakeArray, axis: Any = None) -> FakeArray:
    return FakeArray(np.squeeze(host(a), axis))


def ravel(a: FakeArray) -> FakeArray:
    return a.ravel()


def broadcast_to(array: FakeArray, shape: Any) -> FakeArray:
    return FakeArray(np.broadcast_to(host(array), shape))


def flip(a: FakeArray, axis: Any = None) -> FakeArray:
    return FakeArray(np.flip(host(a), axis))


def roll(a: FakeArray, shift: Any, axis: Any = None) -> FakeArray:
    return wrap(np.roll(host(a), shift, axis))


def tile(A: FakeArray, reps: Any) -> FakeArray:
    return wrap(np.tile(host(A), reps))


def repeat(a: FakeArray, repeats: int, axis: int | None = None) -> FakeArray:
    return wrap(np.repeat(host(a), repeats, axis))


def pad(array: FakeArray, pad_width: Any, mode: str = "constant", **kwargs: Any) -> FakeArray:
    return wrap(np.pad(host(array), pad_width, mode, **kwargs))


def concatenate(tup: Sequence[FakeArray], axis: int | None = 0, out: FakeArray | None = None) -> FakeArray:
    result = wrap(np.concatenate([host(part) for part in tup], axis), *tup)
    if out is None:
        return result
    out[...] = result
    return out


def stack(tup: Sequence[FakeArray], axis: int = 0) -> FakeArray:
    return wrap(np.stack([host(part) for part in tup], axis), *tup)


def take(a: FakeArray, indices: FakeArray, axis: int | None = None, out: FakeArray | None = None) -> FakeArray:
    return call(np.take, a, indices, axis=axis, out=out, mode="wrap")


def take_along_axis(a: FakeArray, indices: FakeArray, axis: int) -> FakeArray:
    return wrap(np.take_along_axis(host(a), host(indices) % a.shape[axis], axis))


def put_along_axis(arr: FakeArray, indices: FakeArray, values: Any, axis: int) -> None:
    np.put_along_axis(host(arr), host(indices) % arr.shape[axis], host(values), axis)


def dot(a: FakeArray, b: FakeArray, out: FakeArray | None = None) -> FakeArray:
    return matmul(a, b, out) if a.ndim == b.ndim == 2 else call(np.dot, a, b, out=out)


def outer(a: FakeArray, b: FakeArray) -> FakeArray:
    return call(np.outer, a, b)


def tensordot(a: FakeArray, b: FakeArray, axes: Any = 2) -> FakeArray:
    return call(np.tensordot, a, b, axes=axes)


def einsum(subscripts: str, *operands: FakeArray, dtype: Any = None, optimize: Any = False) -> FakeArray:
    return wrap(np.einsum(subscripts, *map(host, operands), dtype=dtype, optimize=optimize), *operands)


def sum(a: FakeArray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return a.sum(axis, dtype, out, keepdims)


def prod(a: FakeArray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return a.prod(axis, dtype, out, keepdims)


def mean(a: FakeArray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return a.mean(axis, dtype, out, keepdims)


def var(
    a: FakeArray, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False
) -> Any:
    return a.var(axis, dtype, out, ddof, keepdims)


def std(
    a: FakeArray, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False
) -> Any:
    return a.std(axis, dtype, out, ddof, keepdims)


def max(a: FakeArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return a.max(axis, out, keepdims)


def min(a: FakeArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return a.min(axis, out, keepdims)


def any(a: FakeArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return a.any(axis, out, keepdims)


def all(a: FakeArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return a.all(axis, out, keepdims)


def argmax(a: FakeArray, axis: Any = None, *, out: Any = None, keepdims: bool = False) -> Any:
    return a.argmax(axis, out=out, keepdims=keepdims)


def argmin(a: FakeArray, axis: Any = None, *, out: Any = None, keepdims: bool = False) -> Any:
    return a.argmin(axis, out=out, keepdims=keepdims)


def cumsum(a: FakeArray, axis: int | None = None, dtype: Any = None, out: Any = None) -> Any:
    return call(np.cumsum, a, axis=axis, dtype=dtype, out=out, explicit=dtype is not None)


def count_nonzero(a: FakeArray, axis: Any = None) -> Any:
    return call(np.count_nonzero, a, axis=axis)  # 0-d on the device, unlike NumPy's int


def argsort(a: FakeArray, axis: int = -1) -> FakeArray:
    return call(np.argsort, a, axis=axis, kind="stable")


def sort(a: FakeArray, axis: int = -1) -> FakeArray:
    return call(np.sort, a, axis=axis)


def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    return np.result_type(*(a.dtype if isinstance(a, FakeArray) else a for a in arrays_and_dtypes))


def may_share_memory(a: FakeArray, b: FakeArray) -> bool:
    return np.may_share_memory(host(a), host(b))


def shares_memory(a: FakeArray, b: FakeArray) -> bool:
    return np.shares_memory(host(a), host(b))


class _StrideTricks:
    """`xp.lib.stride_tricks`: `as_strided` is metadata only; `sliding_window_view` synchronises on CuPy."""

    @staticmethod
    def as_strided(x: FakeArray, shape: Any = None, strides: Any = None) -> FakeArray:
        return FakeArray(np_as_strided(host(x), shape, strides))


class _Lib:
    stride_tricks = _StrideTricks()


class FakeNamespace:
    """Stands where `numpy` or `cupy` stands; every name that is not in CuPy, or must not be used, is missing."""

    __name__ = "fake"
    ndarray = FakeArray
    lib = _Lib()

    def __init__(self) -> None:
        functions: list[Callable[..., Any]] = [
            empty, empty_like, zeros, zeros_like, ones, ones_like, full, full_like, arange, eye, array, asarray,
            ascontiguousarray, asnumpy, copy, copyto, where, clip, reshape, transpose, moveaxis, swapaxes, expand_dims,
            squeeze, ravel, broadcast_to, flip, roll, tile, repeat, pad, concatenate, stack, take, take_along_axis,
            put_along_axis, dot, outer, tensordot, einsum, matmul, sum, prod, mean, var, std, max, min, any, all,
            argmax, argmin, cumsum, count_nonzero, argsort, sort, result_type, may_share_memory, shares_memory,
        ]  # fmt: skip
        for function in functions:
            setattr(self, function.__name__, function)
        self.amax, self.amin, self.abs = max, min, Ufunc(np.absolute)
        for name in UFUNCS.split():
            setattr(self, name, Ufunc(getattr(np, name)))
        for name in CONSTANTS_AND_TYPES.split():
            setattr(self, name, getattr(np, name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"fake device: xp.{name} is not in CuPy, or not to be used (tests/fake_device/namespace.py)"
        )


xp = FakeNamespace()
