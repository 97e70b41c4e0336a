"""Connected components of a mask, by runs of its rows: what hangs together, corners included, is one component."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Components(NamedTuple):
    """What hangs together in a mask of shape (H, W).

    Attributes
    ----------
    labels : numpy.ndarray
        (H, W) int32: the number of each pixel's component from 1 upwards, 0 outside the mask.
    boxes : numpy.ndarray
        (count, 4) int64: top, left, bottom and right of each component, the last two exclusive.
    """

    labels: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of `values` (H, W) over each component, float64 (count,)."""
        return np.bincount(self.labels.ravel(), values.ravel(), len(self) + 1)[1:]


def connected_components(mask: np.ndarray) -> Components:
    """Return the components of a mask (H, W) under 8-connectivity."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8).ravel()  # H * (W + 2): no run goes on in the next row
    steps = np.diff(padded, prepend=0)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    # The runs of the row above that a run touches, corners included, are a slice of all runs.
    first = np.searchsorted(ends, starts - (width + 2), side="left")
    last = np.searchsorted(starts, ends - (width + 2), side="right")
    parents = list(range(len(starts)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = run = parents[parents[run]]
        return run

    for run in range(len(starts)):
        for above in range(first[run], min(last[run], run)):
            one, other = root(run), root(above)
            parents[max(one, other)] = min(one, other)
    roots = np.array([root(run) for run in range(len(starts))], np.int64)
    numbers: np.ndarray = np.unique(roots, return_inverse=True)[1] + 1
    labels = np.zeros(padded.size, np.int32)
    labels[padded == 1] = np.repeat(numbers, ends - starts)
    count = int(numbers.max(initial=0))
    rows, lefts = np.divmod(starts, width + 2)
    lows, highs = np.full((2, count), max(height, width)), np.zeros((2, count), np.int64)
    for low, high, first_ones, last_ones in zip(
        lows, highs, (rows, lefts - 1), (rows + 1, lefts - 1 + ends - starts), strict=True
    ):
        np.minimum.at(low, numbers - 1, first_ones)
        np.maximum.at(high, numbers - 1, last_ones)
    boxes = np.concatenate([lows, highs]).T  # (count, 4)
    return Components(labels.reshape(height, width + 2)[:, 1:-1], boxes)
