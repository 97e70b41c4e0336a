"""Which calls of a graph somebody reads the results of: the others are left out.

Backwards over the calls, as compilers do it: what is read later is live; a call that writes to nothing live is dead;
one that fills a piece of memory ends what was live of it. Memory is counted in extents, so that a strided array counts
as all that it spans when it is read, and ends nothing when it is written.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from xpcnn.backend.numpy.calls import Call, arrays_of, reads_and_writes
from xpcnn.backend.numpy.places import extent_of
from xpcnn.backend.numpy.regions import Region


class Extents:
    """A set of addresses, as extents that keep apart."""

    def __init__(self, extents: Sequence[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in extents:
            self.add(start, stop)

    def __iter__(self) -> Any:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def copy(self) -> Extents:
        """Return a set of the same addresses."""
        other = Extents()
        other._starts, other._stops = list(self._starts), list(self._stops)
        return other

    def meets(self, start: int, stop: int) -> bool:
        """Whether some address from `start` on and before `stop` is in it."""
        index = bisect_right(self._stops, start)
        return index < len(self._starts) and self._starts[index] < stop

    def add(self, start: int, stop: int) -> None:
        """Put addresses in."""
        if start >= stop:
            return
        low, high = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if low < high:
            start, stop = min(start, self._starts[low]), max(stop, self._stops[high - 1])
        self._starts[low:high], self._stops[low:high] = [start], [stop]

    def remove(self, start: int, stop: int) -> None:
        """Take addresses out."""
        low, high = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        if low >= high:
            return
        pieces = [(self._starts[low], start), (stop, self._stops[high - 1])]
        pieces = [piece for piece in pieces if piece[0] < piece[1]]
        self._starts[low:high] = [first for first, _ in pieces]
        self._stops[low:high] = [last for _, last in pieces]


def without_dead(calls: Sequence[Call], own: Any, read: Sequence[Any]) -> list[Call]:
    """Return the calls whose results come to light: outside of the memory `own`, or in the arrays `read`."""
    live = Extents([extent_of(array) for array in read])
    return _walk(calls, own, live)[0]


def _walk(calls: Sequence[Call], own: Any, live: Extents) -> tuple[list[Call], Extents, Extents]:
    """Return the live calls, what they read of what was there before, and what they fill; `live` moves to the front."""
    kept: list[Call] = []
    needed, filled = Extents(), Extents()
    for call in reversed(calls):
        if isinstance(call.function, Region):
            region, reads, fills = _walk_region(call.function, own, live)
            if region is None:
                continue
            for start, stop in fills:
                live.remove(start, stop)
                needed.remove(start, stop)
                filled.add(start, stop)
            for start, stop in reads:
                live.add(start, stop)
                needed.add(start, stop)
            kept.append(Call(region))
            continue
        known = reads_and_writes(call)
        if known is not None:
            reads_, writes = known
            extents = [extent_of(array) for array in writes]
            if all(own.holds(array) and not live.meets(*extent) for array, extent in zip(writes, extents, strict=True)):
                continue
            if "where" not in (call.options or {}):
                for array, (start, stop) in zip(writes, extents, strict=True):
                    if stop - start == array.nbytes:
                        live.remove(start, stop)
                        needed.remove(start, stop)
                        filled.add(start, stop)
        else:  # of no known kind: it reads and writes what it was given, and may object to it
            given = arrays_of((call.args, call.options))
            is_hidden = all(own.holds(array) and not live.meets(*extent_of(array)) for array in given)
            if given and is_hidden and getattr(call.function, "__name__", "") != "demand":
                continue
            reads_ = arrays_of((call.args, call.options))
        for array in reads_:
            extent = extent_of(array)
            live.add(*extent)
            needed.add(*extent)
        kept.append(call)
    kept.reverse()
    return kept, needed, filled


def _walk_region(region: Region, own: Any, live: Extents) -> tuple[Region | None, Extents, Extents]:
    parts: list[list[Call]] = []
    reads, fills = Extents(), Extents()
    for part in region.parts:
        kept, needed, filled = _walk(part, own, live.copy())
        parts.append(kept)
        for extent in needed:
            reads.add(*extent)
        for extent in filled:
            fills.add(*extent)
    if not any(parts):
        return None, reads, fills
    before, after = (sum(map(len, each)) for each in (region.parts, parts))
    return Region(region.pool, parts, region.work * after / max(1, before)), reads, fills
