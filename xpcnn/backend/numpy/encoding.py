"""Calls in plain values: functions of NumPy by name, arrays by their place in shared memory.

The vocabulary is closed, so that what a worker process reads can do nothing but compute; `worker.Decoder`
is the reader. What cannot be said in it raises `NotEncodable`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from xpcnn.backend.numpy.arena import Arena
from xpcnn.backend.numpy.calls import Call, refill


class NotEncodable(Exception):
    """A call cannot be made elsewhere."""


class Encoder:
    """Writes calls over an arena.

    Attributes
    ----------
    arrays, functions : list
        What the calls refer to by number.
    constants : dict
        Copies in the arena of read-only arrays outside of it; they must live as long as the calls.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._known_arrays: dict[str, int] = {}
        self._known_functions: dict[str, int] = {}
        self.arrays: list[Any] = []
        self.functions: list[Any] = []
        self.constants: dict[tuple[Any, ...], Any] = {}

    def forget(self) -> None:
        """Keep the constants alone."""
        for table in (self._known_arrays, self._known_functions, self.arrays, self.functions):
            table.clear()

    def calls(self, calls: Iterable[Call]) -> list[Any]:
        """Return calls as pairs (function, arguments)."""
        return [self._call(*call) for call in calls]

    def _call(self, function: Any, args: tuple[Any, ...], options: Any) -> list[Any]:
        refills = function is refill
        if refills:
            function, options = options["function"], options["options"]
        name = getattr(function, "__name__", "")
        if getattr(np, name, None) is not function:
            raise NotEncodable(f"{function}, which is no function of NumPy's")
        if isinstance(function, np.ufunc) and "out" in options and name not in ("maximum", "minimum"):
            args, options = (*args, options["out"]), {key: each for key, each in options.items() if key != "out"}
        said = [name, refills, [[key, self._value(value)] for key, value in options.items()]]
        return [_number(self._known_functions, self.functions, said), [self._value(each) for each in args]]

    def _value(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
            return value
        if isinstance(value, np.ndarray):
            return ["array", self._array(value)]
        if isinstance(value, tuple):
            return ["tuple", [self._value(each) for each in value]]
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return [value.dtype.str, value.tobytes().hex()]
        if isinstance(value, (np.dtype, type)):
            with contextlib.suppress(TypeError):
                if np.dtype(value).kind in "biuf":
                    return ["dtype", np.dtype(value).str]
        raise NotEncodable(f"a {type(value).__name__}")

    def _array(self, array: Any) -> int:
        if array.dtype.kind not in "biuf":
            raise NotEncodable(f"an array of {array.dtype}")
        offset = self._arena.offset(array)
        if offset is None and _is_constant(array):
            array = self._copy(array)
            offset = self._arena.offset(array)
        if offset is None:
            raise NotEncodable("an array of the caller's own")
        said = [offset, list(array.shape), list(array.strides), array.dtype.str]
        return _number(self._known_arrays, self.arrays, said)

    def _copy(self, array: Any) -> Any:
        key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str)
        if key not in self.constants:
            self.constants[key] = self._arena.copy(array)
        return self.constants[key]


def _number(known: dict[str, int], said: list[Any], new: Any) -> int:
    """Return the place of `new` in the list `said`, at whose end it is put unless it is there."""
    number = known.setdefault(repr(new), len(said))
    if number == len(said):
        said.append(new)
    return number


def _is_constant(array: Any) -> bool:
    """Whether nobody can write the memory of `array` through an array."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None
