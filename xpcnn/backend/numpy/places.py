"""Where the arrays of a plan lie: places in arrays that change from call to call, by address.

`numpy/plans.py` makes plans of recorded calls and plays them; here is what turns arrays into places and back.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend.numpy.memory import ALIGNMENT, Block

Array = np.ndarray[Any, Any]


class Part(NamedTuple):
    """A place in one of the arrays that change from call to call."""

    slot: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    kind: str

    def of(self, addresses: Sequence[int], owner: Any = None) -> Array:
        """Return the array that lies there; it does not keep the memory where no owner is given."""
        return self.at(addresses[self.slot], owner)

    def at(self, address: int, owner: Any = None) -> Array:
        """Return the array in what lies at this address."""
        return np.asarray(_Address(self, address + self.offset, owner))


class _Address:
    __slots__ = ("__array_interface__", "base")

    def __init__(self, part: Part, address: int, owner: Any) -> None:
        self.base = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": part.shape,
            "strides": part.strides,
            "typestr": part.kind,
            "version": 3,
        }


class Nested:
    """Nested results of a plan, kept as the few arrays that they are parts of."""

    __slots__ = ("addresses", "arrays", "kind", "template")

    def __init__(self, kind: object, template: Any, arrays: list[Array], addresses: list[int]) -> None:
        self.kind, self.template, self.arrays, self.addresses = kind, template, arrays, addresses

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.value(),)  # a copy has arrays of its own, which lie elsewhere

    def value(self) -> Any:
        """Return them as the function of the plan did."""
        return mapped(self.template, Part, lambda part: part.of(self.addresses, self.arrays[part.slot]))


def _same(value: Any) -> Any:
    return value


class Places:
    """Where the memory in slots lies, while a plan is made."""

    def __init__(self) -> None:
        self.count = 0
        self.outside: set[tuple[int, int]] = set()  # what arguments of calls lie elsewhere
        self._known: list[tuple[int, int, int, int]] = []  # first address, the one behind the last, slot, offset in it

    def add_argument(self, array: Array) -> None:
        """Put an array into a slot of its own; its address is that of its first element, which may not lie first."""
        start, stop = extent_of(array)
        insort(self._known, (start, stop, self.count, start - array.__array_interface__["data"][0]))
        self.count += 1

    def add(self, extents: Iterable[tuple[int, int]]) -> int:
        """Put pieces of memory, except those that have one, into a slot one behind the other.

        Return the size of the slot, 0 where no piece was left for one.
        """
        size = 0
        for start, stop in extents:
            if self._find(start) is None:
                insort(self._known, (start, stop, self.count, size))
                size += -(-(stop - start) // ALIGNMENT) * ALIGNMENT
        self.count += size > 0
        return size

    def part(self, array: Array) -> Part | None:
        """Return where an array lies, if it is in a slot."""
        found = self._find(extent_of(array)[0])
        if found is None:
            return None
        start, _, slot, offset = found
        first: int = array.__array_interface__["data"][0]
        return Part(slot, offset + first - start, array.shape, array.strides, array.dtype.str)

    def _find(self, address: int) -> tuple[int, int, int, int] | None:
        index = bisect_right(self._known, address, key=lambda piece: piece[0]) - 1
        return self._known[index] if index >= 0 and address < self._known[index][1] else None


def layouts_of(arguments: Iterable[Any], found: list[Array]) -> list[Any]:
    """Append the arrays of nested arguments to `found`; return what there is to know of them but the numbers."""
    layouts: list[Any] = []
    for each in arguments:
        if isinstance(each, np.ndarray):
            found.append(each)
            layouts.append((each.shape, each.strides, each.dtype, each.flags.writeable))
        elif each.__class__ is Nested:
            found += each.arrays
            layouts.append(each.kind)
            layouts += [(a.shape, a.strides, a.dtype) for a in each.arrays]
        elif each.__class__ in (tuple, list):
            layouts.append(len(each))
            layouts += layouts_of(each, found)
        else:
            layouts.append(None)
    return layouts


def arrays_of(tree: Any, found: list[Array]) -> list[Array]:
    """Append the arrays of nested tuples and lists."""
    layouts_of(tree, found)
    return found


def mapped(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return nested tuples and lists with everything of a kind changed."""
    if isinstance(tree, kind):
        return change(tree)
    if tree.__class__ in (tuple, list):
        return tree.__class__([mapped(each, kind, change) for each in tree])
    return tree


def memory_of(array: Array) -> tuple[int, int]:
    """Return the extent of all that an array is a part of."""
    whole, base = array, array.base
    while base is not None and not isinstance(base, Block):
        whole = base if isinstance(base, np.ndarray) else whole
        base = getattr(base, "base", None)  # of an array, or of what NumPy makes a view of
    return extent_of(whole) if base is None else (base.store.address, base.store.address + base.store.nbytes)


def extent_of(array: Array) -> tuple[int, int]:
    """Return the addresses of an array's first byte and of the one behind its last."""
    start = stop = array.__array_interface__["data"][0]
    for extent, stride in zip(array.shape, array.strides, strict=True):
        if not extent:
            return start, start
        if stride < 0:
            start += (extent - 1) * stride
        else:
            stop += (extent - 1) * stride
    return start, stop + array.itemsize


def are_apart(arrays: list[Array]) -> bool:
    """Whether none is empty or shares memory with another, so that an address tells which it is."""
    extents = sorted(map(extent_of, arrays))
    if any(start == stop for start, stop in extents):
        return False
    return all(before[1] <= after[0] for before, after in pairwise(extents))
