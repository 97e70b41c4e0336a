"""Images side by side, where NumPy's own transposition meets itself in the cache; windows copied row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

# Rows whose length is a multiple of this lie in few sets of the cache, and a column of them pushes itself out.
ALIASED_BYTES = 512
WORDS = {1: np.dtype(np.uint64), 4: np.dtype(np.complex128)}  # moved as one, by the bytes of a number


def batch_last(backend: Any, batch: Any) -> Any:
    """Return contiguous (..., N) of (N, ...): whole words first, then the numbers in each, so that columns are short.

    `python bench/augmentation.py` measures it ("normalise alone").
    """
    if type(batch) is not np.ndarray:  # what a recorded function sees, whose calls are noted one by one
        return NotImplemented
    count, word = len(batch), WORDS.get(batch.dtype.itemsize)
    row = batch[0].nbytes if count else 0
    if word is None or not batch.flags.c_contiguous or row % ALIASED_BYTES or not row:
        return NotImplemented
    inside = word.itemsize // batch.dtype.itemsize
    words = np.ascontiguousarray(batch.reshape(count, -1).view(word).T)  # (numbers / inside, N)
    out = np.empty((*batch.shape[1:], count), batch.dtype)
    numbers = words.view(batch.dtype).reshape(len(words), count, inside)
    out.reshape(len(words), inside, count)[...] = numbers.transpose(0, 2, 1)
    return out


def cut_windows(backend: Any, x: Any, tops: Any, lefts: Any, rows: int, columns: int) -> Any:
    """Return (N, C, rows, columns) of a contiguous (N, C, H, W), as rows of a view of all windows that there are."""
    if type(x) is not np.ndarray:
        return NotImplemented
    count, channels, height, width = x.shape
    places = height - rows + 1, width - columns + 1
    image, plane, row, pixel = x.strides
    windows = as_strided(x, (count, *places, channels, rows, columns), (image, row, pixel, plane, row, pixel))
    return windows[np.arange(count), tops, lefts]


FUSED: dict[str, Callable[..., Any]] = {"batch_last": batch_last, "cut_windows": cut_windows}
