"""Copies of images: turned batch-last past the cache's sets, and windows row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

# Images whose length is a multiple of this lie in few sets of the cache, and a column of them pushes itself out.
ALIASED_BYTES = 512
LINE = 64  # bytes, by which images are set apart
LEAST, MOST = 16, 64  # images that are turned at once
TILE_BYTES = 1 << 20  # of these, and as much again of what becomes of them: a core's own cache
OPERATIONS = 2  # elementary ones, in whose time a number is copied twice


def turn(backend: Any, out: Any, a: Any) -> bool:
    """Copy `a` to `out` where one lies (N, ...) and the other (..., N) and a plain copy would be slow; else say False.

    Images of 32x32 floats follow each other by 4 KB, so that a column of them lies in one set of the cache: they are
    set apart first. 128x3x32x32 take one thread 0.2 ms, NumPy's transposition alone 1.1.
    """
    if not a.flags.c_contiguous:
        first = a.ndim - 1, *range(a.ndim - 1)
        out, a = out.transpose(first), a.transpose(first)  # (N, ...)
    count = a.shape[0]
    row = a.nbytes // count if count else 0
    if (
        count < LEAST
        or row % ALIASED_BYTES
        or not row
        or row * LEAST > 4 * TILE_BYTES
        or out.strides[0] != out.itemsize
        or out.dtype != a.dtype
        or not a.flags.c_contiguous
    ):
        return False
    rows = a.reshape(count, -1)  # (N, numbers)
    most = MOST if row * MOST <= TILE_BYTES else max(LEAST, TILE_BYTES // row)
    numbers = rows.shape[1]

    def turn_part(start: int) -> None:
        part = rows[start : start + most]
        shape = part.shape[0], numbers + LINE // a.itemsize
        tile = backend.scratch("turned", shape, a.dtype)[:, :numbers]
        backend.xp.copyto(tile, part)
        backend.xp.copyto(out[start : start + most], tile.reshape(shape[0], *a.shape[1:]))

    if count <= most:
        turn_part(0)
    else:
        backend.parallel(turn_part, range(0, count, most), OPERATIONS * a.size, products=False)
    return True


def cut_windows(backend: Any, x: Any, tops: Any, lefts: Any, rows: int, columns: int) -> Any:
    """Return (N, C, rows, columns) of a contiguous (N, C, H, W), as rows of a view of all windows that there are."""
    if type(x) is not np.ndarray:
        return NotImplemented
    count, channels, height, width = x.shape
    places = height - rows + 1, width - columns + 1
    image, plane, row, pixel = x.strides
    windows = as_strided(x, (count, *places, channels, rows, columns), (image, row, pixel, plane, row, pixel))
    return windows[np.arange(count), tops, lefts]


FUSED: dict[str, Callable[..., Any]] = {"cut_windows": cut_windows}
