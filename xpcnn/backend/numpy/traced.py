"""Arrays as a traced function sees them: they compute at once, and whatever is done with them goes into the trace.

A `TracedArray` stands for one `numpy.ndarray`. Operators, methods, NumPy's functions and what is assigned to parts of
it are calls of the trace; looking at it (shape, slices, transposes) is none. Whatever brings a value to the host (`if`,
`float`, `print`, a library that wants a plain array) gets the true value, and the trace learns that it cannot be
replayed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Functions that look at types and shapes alone, and those whose result may be a part of their argument.
LOOKS = frozenset({
    "result_type", "can_cast", "may_share_memory", "shares_memory", "shape", "ndim", "size", "iscomplexobj",
    "isrealobj", "isscalar", "min_scalar_type", "promote_types", "broadcast_shapes",
})  # fmt: skip
VIEWS = frozenset({
    "reshape", "transpose", "permute_dims", "matrix_transpose", "swapaxes", "moveaxis", "rollaxis", "squeeze",
    "expand_dims", "broadcast_to", "broadcast_arrays", "atleast_1d", "atleast_2d", "atleast_3d", "split",
    "array_split", "hsplit", "vsplit", "dsplit", "diagonal", "ravel", "flip", "fliplr", "flipud", "rot90", "real",
    "imag", "unstack",
})  # fmt: skip
# Functions that write to their first argument, and those whose result has a shape that depends on values.
WRITES = frozenset({
    "copyto", "put", "place", "putmask", "fill_diagonal", "put_along_axis",
})  # fmt: skip
DEPENDS_ON_VALUES = frozenset({
    "nonzero", "flatnonzero", "argwhere", "unique", "unique_all", "unique_counts", "unique_inverse",
    "unique_values", "extract", "compress", "setdiff1d", "intersect1d", "union1d", "setxor1d", "trim_zeros",
    "delete", "histogram", "histogram_bin_edges", "bincount",
})  # fmt: skip
# Reductions and others that say where the result goes by `out`.
TAKE_OUT = frozenset({
    "sum", "max", "min", "amax", "amin", "prod", "mean", "dot", "cumsum", "cumprod", "argmax", "argmin",
})  # fmt: skip


def plain(a: Any) -> Any:
    """Return the array that a traced one stands for; anything else as it is."""
    return a._array if type(a) is TracedArray else a


def deep_plain(a: Any) -> Any:
    """Return nested tuples, lists and dicts with plain arrays."""
    kind = type(a)
    if kind is TracedArray:
        return a._array
    if kind in (tuple, list):
        return kind([deep_plain(each) for each in a])
    if kind is dict:
        return {name: deep_plain(each) for name, each in a.items()}
    if kind is slice:
        return slice(*map(plain, (a.start, a.stop, a.step)))
    return a


class TracedArray:
    """One array of a trace; see the module's docstring."""

    __slots__ = ("__weakref__", "_array", "_trace")
    __array_priority__ = 1000.0

    def __init__(self, array: Array, trace: Any) -> None:
        self._array, self._trace = array, trace

    # `isinstance(x, numpy.ndarray)` holds, for code that asks.
    __class__ = property(lambda self: np.ndarray)

    # --- what it looks like: no call of the trace ---------------------------------------------------------------------

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    itemsize = property(lambda self: self._array.itemsize)
    nbytes = property(lambda self: self._array.nbytes)
    strides = property(lambda self: self._array.strides)
    flags = property(lambda self: self._array.flags)
    T = property(lambda self: TracedArray(self._array.T, self._trace))
    mT = property(lambda self: TracedArray(self._array.mT, self._trace))
    real = property(lambda self: TracedArray(self._array.real, self._trace))

    def __len__(self) -> int:
        return len(self._array)

    def __hash__(self) -> int:
        raise TypeError("unhashable type: 'numpy.ndarray'")

    def __iter__(self) -> Iterator[TracedArray]:
        if not self._array.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self._array)))

    def reshape(self, *shape: Any, **options: Any) -> TracedArray:
        return self._looked_at("reshape", shape, options)

    def transpose(self, *axes: Any) -> TracedArray:
        return TracedArray(self._array.transpose(*axes), self._trace)

    def swapaxes(self, a: int, b: int) -> TracedArray:
        return TracedArray(self._array.swapaxes(a, b), self._trace)

    def squeeze(self, axis: Any = None) -> TracedArray:
        return TracedArray(self._array.squeeze(axis), self._trace)

    def diagonal(self, *args: Any, **options: Any) -> TracedArray:
        return TracedArray(self._array.diagonal(*args, **options), self._trace)

    def view(self, *args: Any, **options: Any) -> TracedArray:
        return TracedArray(self._array.view(*args, **options), self._trace)

    def ravel(self, *args: Any, **options: Any) -> TracedArray:
        return self._looked_at("ravel", args, options)

    def _looked_at(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> TracedArray:
        """Return what a method gives: a view, or a copy, which is a call."""
        result = getattr(self._array, name)(*args, **options)
        if not np.may_share_memory(result, self._array) and self._trace.is_running and result.size:
            result = self._trace.kept(result, (self._array,))
            self._trace.note_copy(result, lambda a: getattr(a, name)(*args, **options), self._array)
        return TracedArray(result, self._trace)

    def __getitem__(self, key: Any) -> Any:
        trace = self._trace
        if not trace.is_running:
            return self._array[deep_plain(key)]
        if _is_basic(key):
            part = self._array[key]
            if not isinstance(part, np.ndarray):  # all axes by number: a view all the same
                part = self._array[(*key, ...) if isinstance(key, tuple) else (key, ...)]
            return TracedArray(part, trace)
        key = deep_plain(key)
        for each in key if isinstance(key, tuple) else (key,):
            if getattr(getattr(each, "dtype", None), "kind", "") == "b" or (
                isinstance(each, list) and any(type(v) is bool for v in each)
            ):
                trace.fail("a boolean mask picks as many elements as its values say (use where, or multiply)")
        return trace.compute(operator.getitem, (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        trace = self._trace
        if not trace.is_running:
            self._array[deep_plain(key)] = plain(value)
        elif _is_basic(key):
            part = self._array[key]
            if not isinstance(part, np.ndarray):
                part = self._array[(*key, ...) if isinstance(key, tuple) else (key, ...)]
            trace.write(np.copyto, (TracedArray(part, trace), value), {"casting": "unsafe"})
        else:
            trace.write(operator.setitem, (self, key, value), {})

    # --- what computes ------------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        trace = self._trace
        out = options.get("out")
        if isinstance(out, tuple) and len(out) == 1:
            options["out"] = out[0]
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        if not trace.is_running:
            return _outside(function, inputs, options)
        if method == "at":
            trace.write(function, inputs, options)
            return None
        return trace.compute(function, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        trace = self._trace
        if not trace.is_running:
            return _outside(function, args, options)
        return trace.numpy_function(function, args, options)

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = "unsafe", subok: bool = True, copy: bool = True
    ) -> Any:
        if not copy and self._array.dtype == dtype:
            return self
        return _applied(self, lambda a: a.astype(dtype, order=order, casting=casting))

    def copy(self, order: Any = "C") -> Any:
        return _applied(self, lambda a: a.copy(order=order))

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()

    def flatten(self, order: Any = "C") -> Any:
        return _applied(self, lambda a: a.flatten(order=order))

    def fill(self, value: Any) -> None:
        self[...] = value

    def sort(self, *args: Any, **options: Any) -> None:
        if self._trace.is_running:
            self._trace.write(lambda a: a.sort(*args, **options), (self,), {})
        else:
            self._array.sort(*args, **options)

    def dot(self, other: Any, out: Any = None) -> Any:
        return np.dot(self, other) if out is None else np.dot(self, other, out=out)

    # --- what brings values to the host -------------------------------------------------------------------------------

    def _host(self, what: str) -> Array:
        if self._trace.is_running:
            self._trace.fail(f"{what} needs a value that only the call itself knows")
        return self._array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self._host("making a plain NumPy array")
        return np.array(array, dtype=dtype) if copy or dtype not in (None, array.dtype) else array

    def __bool__(self) -> bool:
        return bool(self._host("an `if`"))

    def __float__(self) -> float:
        return float(self._host("float()"))

    def __int__(self) -> int:
        return int(self._host("int()"))

    def __index__(self) -> int:
        return operator.index(self._host("an index")[()])

    def __complex__(self) -> complex:
        return complex(self._host("complex()"))

    def __contains__(self, value: Any) -> bool:
        return plain(value) in self._host("`in`")

    def __format__(self, spec: str) -> str:
        return format(self._host("a text")[()], spec)

    def __repr__(self) -> str:
        return repr(self._host("a text"))

    def __str__(self) -> str:
        return str(self._host("a text"))

    def __reduce__(self) -> Any:
        return self._host("a copy of it by pickle").__reduce__()

    def item(self, *args: Any) -> Any:
        return self._host("item()").item(*args)

    def tolist(self) -> Any:
        return self._host("tolist()").tolist()

    def tobytes(self, *args: Any) -> bytes:
        return self._host("tobytes()").tobytes(*args)

    def nonzero(self) -> Any:
        return self._host("nonzero()").nonzero()

    def __dlpack__(self, **options: Any) -> Any:
        return self._host("handing it to another library").__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(np.ndarray, name):  # such as protocols that it does not have
            raise AttributeError(f"'numpy.ndarray' object has no attribute {name!r}")
        return getattr(self._host(f"`.{name}`"), name)


def _outside(function: Any, args: Any, options: Any) -> Any:
    """Call a function after the end of the trace, or in another thread: as if the arrays were plain."""
    return function(*deep_plain(tuple(args)), **deep_plain(dict(options)))


def _applied(a: TracedArray, function: Callable[[Array], Array]) -> Any:
    return a._trace.compute(function, (a,), {}) if a._trace.is_running else function(a._array)


def _is_basic(key: Any) -> bool:
    """Whether an index gives a view."""
    if isinstance(key, tuple):
        return all(map(_is_basic, key))
    if key is None or key is Ellipsis or isinstance(key, slice):
        return not isinstance(key, slice) or not any(
            isinstance(each, TracedArray) for each in (key.start, key.stop, key.step)
        )
    return isinstance(key, (int, np.integer)) and not isinstance(key, bool)


def _add_operators() -> None:
    """Give `TracedArray` NumPy's operators, each a call of its ufunc."""
    both = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "floordiv": np.floor_divide,
        "mod": np.remainder, "pow": np.power, "matmul": np.matmul, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift, "divmod": np.divmod,
    }  # fmt: skip
    for name, function in both.items():

        def forward(self: Any, other: Any, function: Any = function) -> Any:
            return function(self, other)

        def reflected(self: Any, other: Any, function: Any = function) -> Any:
            return function(other, self)

        def in_place(self: Any, other: Any, function: Any = function) -> Any:
            function(self, other, out=self)
            return self

        setattr(TracedArray, f"__{name}__", forward)
        setattr(TracedArray, f"__r{name}__", reflected)
        if name != "divmod":
            setattr(TracedArray, f"__i{name}__", in_place)
    compared = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    compared |= {"eq": np.equal, "ne": np.not_equal}
    for name, function in compared.items():
        setattr(TracedArray, f"__{name}__", lambda self, other, function=function: function(self, other))
    for name, function in {"neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert}.items():
        setattr(TracedArray, f"__{name}__", lambda self, function=function: function(self))
    names = "all any argmax argmin argsort clip cumprod cumsum max mean min prod repeat round std sum take trace var"
    for name in names.split():
        setattr(TracedArray, name, partial_method(name))


def partial_method(name: str) -> Any:
    """Return the method that is the NumPy function of that name."""

    def method(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(np, name)(self, *args, **options)

    method.__name__ = name
    return method


_add_operators()

__all__ = ["TracedArray", "deep_plain", "partial", "plain"]
