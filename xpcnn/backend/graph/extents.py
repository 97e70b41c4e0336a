"""Pieces of memory by their addresses, and whether an array meets one of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

Extent = tuple[int, int]  # the address of the first byte and that of the one behind the last


class Extents:
    """Pieces of memory."""

    __slots__ = ("_starts", "_stops")

    def __init__(self, pieces: Iterable[Extent]) -> None:
        merged: list[list[int]] = []
        for start, stop in sorted(pieces):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(stop, merged[-1][1])
            else:
                merged.append([start, stop])
        self._starts = [start for start, _ in merged]
        self._stops = [stop for _, stop in merged]

    def meets(self, start: int, stop: int) -> bool:
        """Whether a piece has one of the bytes from `start` to before `stop`."""
        index = bisect_right(self._stops, start)
        return index < len(self._stops) and self._starts[index] < stop
