"""A tape in plain values: functions of NumPy by name, arrays by their place in shared memory.

The vocabulary is closed, so that what a worker process reads can do nothing but compute; `worker.Decoder`
is the reader. What cannot be said in it raises `Cannot`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from xpcnn.backend.numpy.arena import Arena


class Cannot(Exception):
    """A tape cannot be played elsewhere."""


def refill(function: Callable[..., Any], options: dict[str, Any], result: Any, *args: Any) -> None:
    """Call a function that takes no `out`, and copy what it returns to `result`."""
    np.copyto(result, function(*args, **options))


class Encoder:
    """Writes tapes over an arena.

    Attributes
    ----------
    arrays, functions : list
        What the calls refer to by number.
    constants : dict
        Copies in the arena of read-only arrays outside of it; they must live as long as the tapes.
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

    def tape(self, tape: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
        """Return the calls of a tape: pairs (function, arguments)."""
        return [[self._function(function), [self._value(each) for each in values]] for function, values in tape]

    def _function(self, function: Any) -> int:
        options: dict[str, Any] = {}
        refills = False
        if isinstance(function, partial):
            options, positional, function = function.keywords, function.args, function.func
            if function is refill:
                (function, options), refills = positional, True
            elif positional:
                raise Cannot(f"{function} with arguments")
        name = getattr(function, "__name__", "")
        if getattr(np, name, None) is not function:
            raise Cannot(f"{function}, which is no function of NumPy's")
        said = [name, refills, [[key, self._value(value)] for key, value in options.items()]]
        return _number(self._known_functions, self.functions, said)

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
        raise Cannot(f"a {type(value).__name__}")

    def _array(self, array: Any) -> int:
        if array.dtype.kind not in "biuf":
            raise Cannot(f"an array of {array.dtype}")
        offset = self._arena.offset(array)
        if offset is None and _is_constant(array):
            array = self._copy(array)
            offset = self._arena.offset(array)
        if offset is None:
            raise Cannot("an array of the caller's own")
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
