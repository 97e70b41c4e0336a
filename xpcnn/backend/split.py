"""Cutting work into parts of nearly equal size."""

from __future__ import annotations

from itertools import pairwise


def split_evenly(size: int, parts: int) -> list[range]:
    """Cut 0 to `size` into at most `parts` ranges that differ by one at most."""
    parts = max(1, min(size, parts))
    return [range(first, last) for first, last in pairwise(size * i // parts for i in range(parts + 1))]
