"""Which images of a batch this process computes, where a batch is shared out to several processes.

What depends on an image's place in the batch (masks of dropout) or on all of its images (batch statistics that are
synchronised) asks here. A graph that is recorded for one part is not replayed for another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

from xpcnn.backend import Array
from xpcnn.backend.graph import compiled
from xpcnn.backend.split import split_evenly


class Part(NamedTuple):
    """Images `start` to `stop` of a batch of `total`; where there are none, an image stands in that counts for nothing.

    Attributes
    ----------
    reduce : callable or None
        Adds up an array over all processes, in place; set where batch statistics are of the whole batch.
    """

    start: int
    stop: int
    total: int
    reduce: Callable[[Array], Any] | None = None

    @property
    def size(self) -> int:
        """How many images of the batch are here."""
        return self.stop - self.start

    @property
    def images(self) -> slice:
        """What is computed: the part, or the image that stands in for an empty one."""
        return slice(self.start, self.stop) if self.size else slice(0, 1)


def part_of(total: int, rank: int, size: int, reduce: Callable[[Array], Any] | None = None) -> Part:
    """Return the part of a batch of `total` images that process `rank` of `size` computes: an even one, in order."""
    parts = split_evenly(total, size)  # without empty ones
    if rank >= len(parts):
        return Part(total, total, total, reduce)
    return Part(parts[rank].start, parts[rank].stop, total, reduce)


_parts: ContextVar[tuple[Part, ...]] = ContextVar("xpcnn_parts", default=())
compiled.contexts.append(_parts.get)


def present_parts() -> tuple[Part, ...]:
    """Return the parts that are being computed, of each batch of a step; none where batches are computed as wholes."""
    return _parts.get()


def present_part() -> Part | None:
    """Return the part that is being computed; None where a batch is computed here as a whole."""
    parts = _parts.get()
    return parts[0] if parts else None


@contextlib.contextmanager
def computing(parts: tuple[Part, ...]) -> Iterator[None]:
    """Let this thread compute parts of batches for the length of a `with` block."""
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)
