"""`FakeArray`: an array that behaves like CuPy's where CuPy is stricter than NumPy, over a private NumPy array.

It refuses host arrays as operands, conversion without being asked, and values read one by one; it counts every copy
that a GPU would make. What it computes is NumPy's, so that results can be compared bit by bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class HiddenCopyError(AssertionError):
    """The code under test made the device wait for the host, or moved data that nobody asked it to move."""


class UpcastError(AssertionError):
    """float32 operands gave a float64 result."""


class CaptureError(RuntimeError):
    """Something that CUDA forbids while a graph is captured."""


@dataclass
class Counters:
    """What crossed between host and device, or was copied in silence."""

    uploads: int = 0
    downloads: int = 0
    syncs: int = 0
    matmul_copies: list[str] = field(default_factory=list)
    view_copies: list[str] = field(default_factory=list)  # operands that are another view object of `out`

    def reset(self) -> None:
        self.uploads = self.downloads = self.syncs = 0
        self.matmul_copies.clear()
        self.view_copies.clear()


counters = Counters()
_allowed: ContextVar[bool] = ContextVar("fake_allow_sync", default=False)
_capturing: ContextVar[bool] = ContextVar("fake_capturing", default=False)


@contextmanager
def allow_sync() -> Iterator[None]:
    """Allow `float(x)`, `bool(x)`, `x.item()` and the like inside the block (they are counted)."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def capture() -> Iterator[None]:
    """Forbid, as stream capture does, every copy between host and device inside the block."""
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def upload(value: Any, dtype: Any = None) -> FakeArray:
    """Copy a host array, scalar or list to the fake device."""
    if _capturing.get():
        raise CaptureError("the current stream is capturing: copies from the host are not allowed")
    counters.uploads += 1
    return FakeArray(np.array(value, dtype=dtype, order="C"))


def download(array: FakeArray) -> np.ndarray:
    """Copy a fake array to the host, as `cupy.ndarray.get` does."""
    if _capturing.get():
        raise CaptureError("the current stream is capturing: copies to the host are not allowed")
    counters.downloads += 1
    return np.array(array._host)


def _sync(what: str) -> None:
    if _capturing.get():
        raise CaptureError(f"the current stream is capturing: {what} is not allowed")
    if not _allowed.get():
        raise HiddenCopyError(f"{what} makes the device wait for the host")
    counters.syncs += 1


def host(value: Any) -> Any:
    """Return what NumPy needs for an operand, or refuse it: fake arrays and Python scalars only."""
    if isinstance(value, FakeArray):
        return value._host
    if isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"Unsupported type {type(value)}: a host array or scalar met a fake device array")
    if isinstance(value, bool | int | float | complex):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def wrap(result: Any, *operands: Any) -> Any:
    """Wrap a NumPy result in C order; flag a float64 that came from float32."""
    if isinstance(result, tuple):
        return tuple(wrap(part, *operands) for part in result)
    result = np.asarray(result, order="C")
    kinds = {operand.dtype for operand in operands if isinstance(operand, FakeArray)}
    if result.dtype == np.float64 and kinds & {np.dtype(np.float32), np.dtype(np.float16)}:
        raise UpcastError(f"float64 result from operands of {sorted(map(str, kinds))}")
    return FakeArray(result)


def call(function: Callable[..., Any], *operands: Any, out: Any = None, explicit: bool = False, **options: Any) -> Any:
    """Call a NumPy function on fake operands, in silence as on a GPU, and wrap what it returns.

    `explicit`: the caller named a dtype, so that float64 is no accident.
    """
    plain = [host(operand) for operand in operands]
    if isinstance(out, tuple):
        (out,) = out
    if out is not None:
        if not isinstance(out, FakeArray):
            raise TypeError(f"return arrays must be of the fake device, got {type(out)}")
        options["out"] = out._host
        for operand in operands:
            other = isinstance(operand, FakeArray) and operand is not out
            if other and np.shares_memory(operand._host, out._host, max_work=1):
                counters.view_copies.append(f"{function.__name__} {operand.shape}")
    with np.errstate(all="ignore"):
        result = function(*plain, **options)
    if out is not None:
        return out
    return wrap(result) if explicit else wrap(result, *operands)


class Ufunc:
    """A NumPy ufunc with the keywords that CuPy's have: `out`, `dtype`, `casting`."""

    def __init__(self, ufunc: np.ufunc) -> None:
        self._ufunc = ufunc
        self.__name__ = ufunc.__name__
        self.nin, self.nout = ufunc.nin, ufunc.nout

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wrong = set(kwargs) - {"out", "dtype", "casting"}
        if wrong:
            raise TypeError(f"Wrong arguments {sorted(wrong)}: {self.__name__} takes out, dtype and casting")
        if len(args) > self.nin:
            *args, kwargs["out"] = args  # type: ignore[assignment]
        return call(self._ufunc, *args, explicit=kwargs.get("dtype") is not None, **kwargs)

    def reduce(self, a: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        if self.__name__ not in ("add", "multiply"):
            raise NotImplementedError("only `add` and `multiply` are supported in `reduce`")
        return call(self._ufunc.reduce, a, axis=axis, dtype=dtype, out=out, keepdims=keepdims)


def _binary(name: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    ufunc = Ufunc(getattr(np, name))

    def forward(self: FakeArray, other: Any) -> Any:
        return ufunc(self, other)

    def reflected(self: FakeArray, other: Any) -> Any:
        return ufunc(other, self)

    def in_place(self: FakeArray, other: Any) -> Any:
        return ufunc(self, other, out=self)

    return forward, reflected, in_place


def _refuse(what: str, function: Callable[[np.ndarray], Any]) -> Callable[[FakeArray], Any]:
    def method(self: FakeArray) -> Any:
        _sync(what)
        return function(self._host)

    return method


class FakeArray:
    """An array of the fake device; see the module."""

    __slots__ = ("_host",)
    __array_priority__ = 100
    __array_ufunc__ = None  # a NumPy array on the left leaves the operation to us, and we refuse it
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"expected a NumPy array, got {type(array)}")
        self._host = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} was called with a fake device array: call it on the backend's xp")

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: FakeArray(self._host.T))

    def __repr__(self) -> str:
        return f"FakeArray(shape={self.shape}, dtype={self.dtype})"  # the values would need a copy to the host

    def __len__(self) -> int:
        return len(self._host)

    def __deepcopy__(self, memo: Any) -> FakeArray:
        return self.copy()

    __copy__ = lambda self: self.copy()  # noqa: E731
    __bool__ = _refuse("bool(array)", bool)
    __float__ = _refuse("float(array)", float)
    __int__ = _refuse("int(array)", int)
    __index__ = _refuse("index(array)", operator.index)
    __complex__ = _refuse("complex(array)", complex)
    item = _refuse("array.item()", lambda a: a.item())
    tolist = _refuse("array.tolist()", lambda a: a.tolist())
    __iter__ = _refuse("iteration", lambda a: iter([FakeArray(np.asarray(row)) for row in a]))

    def get(self) -> np.ndarray:
        return download(self)

    def set(self, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype or array.shape != self.shape:
            raise TypeError(f"set: expected a NumPy array {self.shape} {self.dtype}")
        self._host[...] = upload(array)._host

    # Views and copies
    def reshape(self, *shape: Any) -> FakeArray:
        return FakeArray(self._host.reshape(*shape))

    def transpose(self, *axes: Any) -> FakeArray:
        return FakeArray(self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> FakeArray:
        return FakeArray(self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> FakeArray:
        return FakeArray(self._host.squeeze(axis))

    def ravel(self) -> FakeArray:
        return FakeArray(self._host.ravel())

    def flatten(self) -> FakeArray:
        return FakeArray(self._host.flatten())

    def view(self, dtype: Any = None) -> FakeArray:
        return FakeArray(self._host.view() if dtype is None else self._host.view(dtype))

    def copy(self, order: str = "C") -> FakeArray:
        return FakeArray(self._host.copy(order))

    def astype(self, dtype: Any, order: str = "K", casting: str = "unsafe", *, copy: bool = True) -> FakeArray:
        with np.errstate(all="ignore"):
            return FakeArray(self._host.astype(dtype, order=order, casting=casting, copy=copy))

    def fill(self, value: Any) -> None:
        self._host.fill(host(value))

    # Indexing
    def _index(self, index: Any, writing: bool) -> tuple[Any, ...]:
        """Check an index and return NumPy's: no masks, no host arrays, out-of-range positions wrap."""
        parts = list(index) if isinstance(index, tuple) else [index]
        if not any(part is Ellipsis for part in parts):
            parts.append(Ellipsis)  # a full integer index then gives a 0-d view, as on the device
        axes = sum(part is not None and part is not Ellipsis for part in parts)
        axis = 0
        for position, part in enumerate(parts):
            if part is None:
                continue
            if part is Ellipsis:
                axis += self.ndim - axes
                continue
            if isinstance(part, FakeArray):
                if part.dtype == np.bool_:
                    _sync("indexing with a boolean mask")
                    parts[position] = part._host
                    axis += part.ndim - 1
                else:
                    parts[position] = part._host % self.shape[axis]
            elif not isinstance(part, slice | int | np.integer) or isinstance(part, bool):
                raise TypeError(f"an index of type {type(part)} would be copied from the host")
            axis += 1
        if writing and any(isinstance(part, np.ndarray) and part.dtype != np.bool_ for part in parts):
            places = np.arange(self.size).reshape(self.shape)[tuple(parts)]
            if np.unique(places).size != places.size:
                raise AssertionError("assignment to an index that occurs twice is undefined on a GPU")
        return tuple(parts)

    def __getitem__(self, index: Any) -> FakeArray:
        return FakeArray(np.asarray(self._host[self._index(index, writing=False)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[self._index(index, writing=True)] = host(value)

    # Reductions
    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        explicit = dtype is not None
        return call(np.sum, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims, explicit=explicit)

    def prod(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        explicit = dtype is not None
        return call(np.prod, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims, explicit=explicit)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        explicit = dtype is not None
        return call(np.mean, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims, explicit=explicit)

    def var(self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        return call(np.var, self, axis=axis, dtype=dtype, out=out, ddof=ddof, keepdims=keepdims)

    def std(self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        return call(np.std, self, axis=axis, dtype=dtype, out=out, ddof=ddof, keepdims=keepdims)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return call(np.max, self, axis=axis, out=out, keepdims=keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return call(np.min, self, axis=axis, out=out, keepdims=keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return call(np.any, self, axis=axis, out=out, keepdims=keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return call(np.all, self, axis=axis, out=out, keepdims=keepdims)

    def argmax(self, axis: Any = None, *, out: Any = None, keepdims: bool = False) -> Any:
        return call(np.argmax, self, axis=axis, out=out, keepdims=keepdims)

    def argmin(self, axis: Any = None, *, out: Any = None, keepdims: bool = False) -> Any:
        return call(np.argmin, self, axis=axis, out=out, keepdims=keepdims)

    # Operators
    __add__, __radd__, __iadd__ = _binary("add")
    __sub__, __rsub__, __isub__ = _binary("subtract")
    __mul__, __rmul__, __imul__ = _binary("multiply")
    __truediv__, __rtruediv__, __itruediv__ = _binary("true_divide")
    __floordiv__, __rfloordiv__, __ifloordiv__ = _binary("floor_divide")
    __mod__, __rmod__, __imod__ = _binary("remainder")
    __pow__, __rpow__, __ipow__ = _binary("power")
    __and__, __rand__, __iand__ = _binary("bitwise_and")
    __or__, __ror__, __ior__ = _binary("bitwise_or")
    __xor__, __rxor__, __ixor__ = _binary("bitwise_xor")
    __lshift__, __rlshift__, __ilshift__ = _binary("left_shift")
    __rshift__, __rrshift__, __irshift__ = _binary("right_shift")
    __eq__, _, _ = _binary("equal")  # type: ignore[assignment]
    __ne__, _, _ = _binary("not_equal")  # type: ignore[assignment]
    __lt__, _, _ = _binary("less")
    __le__, _, _ = _binary("less_equal")
    __gt__, _, _ = _binary("greater")
    __ge__, _, _ = _binary("greater_equal")

    def __neg__(self) -> Any:
        return Ufunc(np.negative)(self)

    def __abs__(self) -> Any:
        return Ufunc(np.absolute)(self)

    def __invert__(self) -> Any:
        return Ufunc(np.invert)(self)

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)


def matmul(a: Any, b: Any, out: Any = None) -> FakeArray:
    """Multiply matrices, and log the copies that CuPy makes before it calls cuBLAS."""
    for name, operand in (("a", a), ("b", b)):
        host(operand)
        flags = operand.flags
        if not (flags.c_contiguous or (operand.ndim == 2 and flags.f_contiguous) or operand.ndim < 2):
            counters.matmul_copies.append(f"{name} {operand.shape} with strides {operand.strides}")
    if isinstance(out, FakeArray) and not (out.flags.c_contiguous and out.dtype == np.result_type(a.dtype, b.dtype)):
        counters.matmul_copies.append(f"out {out.shape} {out.dtype} with strides {out.strides}")
    return call(np.matmul, a, b, out=out)
