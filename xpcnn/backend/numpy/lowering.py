"""NumPy's own way to lower windows: one copy from a strided view instead of one copy per tap.

Inside a thread every NumPy call takes Python's lock, and two threads that meet there wait some 50 microseconds: what
runs in the pool should be few calls and long ones. `functional/columns.py` has the portable bodies, tap by tap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def padded_rows(backend: Any, x: Array, over: Any, first: int, count: int) -> Array:
    """Return rows `first` to `first + count` of x (C, H, W, N) with zeros around as `over` pads it.

    Rows are counted in the image and may lie outside of it. The result is x's own memory where nothing is padded,
    else a buffer of this thread whose border was zeroed when it was made.
    """
    h, w = over.h, over.w
    top, bottom = min(count, max(0, -first)), min(count, max(0, first + count - h.size))  # all of it may lie outside
    width = max(w.size + w.before, (w.out - 1) * w.stride + w.extent)
    if not (top or bottom or w.before or width > w.size):
        return x[:, first : first + count]
    shape = (x.shape[0], count, width, x.shape[3])
    padded: Array = backend.bordered((shape, top, bottom, w.before, w.size), shape, x.dtype)
    inside = padded[:, top : count - bottom, w.before : w.before + w.size]
    backend.xp.copyto(inside, x[:, first + top : first + count - bottom])
    return padded


def fill_columns(backend: Any, x: Array, over: Any, rows: range, cols: Array) -> None:
    """Copy the taps of the output rows `rows`: x (C, H, W, N) to cols (C, KH, KW, len(rows), OW, N)."""
    h, w = over.h, over.w
    needed = (len(rows) - 1) * h.stride + h.extent
    image = padded_rows(backend, x, over, rows.start * h.stride - h.before, needed)
    c, y, z, n = image.strides
    taps = backend.strided_view(image, cols.shape, (c, y * h.dilation, z * w.dilation, y * h.stride, z * w.stride, n))
    backend.xp.copyto(cols, taps)


def lower_rows(backend: Any, x: Array, over: Any, rows: range, lowered: Array) -> None:
    """Copy the taps along the width: x (C, H, W, N) to lowered (M, C, KW, OW, N)."""
    h, w = over.h, over.w
    image = padded_rows(backend, x, over, rows.start * h.stride - h.before, lowered.shape[0])
    c, y, z, n = image.strides
    backend.xp.copyto(lowered, backend.strided_view(image, lowered.shape, (y, c, z * w.dilation, z * w.stride, n)))
