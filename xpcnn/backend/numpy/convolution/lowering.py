"""NumPy's own way to lower windows: one copy from a strided view instead of one copy per tap.

Inside a thread every NumPy call takes Python's lock, and two threads that meet there wait some 50 microseconds: what
runs in the pool should be few calls and long ones. `functional/convolution.py` has the portable body, tap by tap.

`fill_columns` copies each tap of every window: (C, KH, KW, R, OW, N). `lower_rows` copies taps along the width alone:
(M, C, KW, OW, N). A window of KH input rows is then KH*C*KW contiguous rows of a matrix, and the next window begins one
stride further: KH times fewer copies, for products with stacks of overlapping matrices (NumPy's `matmul`). The idea is
MEC's (Cho and Brand 2017, arXiv:1706.06873).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.windows import Axis, Windows

Array = np.ndarray[Any, Any]

SHORT = 128  # numbers of a run, up to which taps are copied along the width first, then in runs of all output rows


def padded_rows(backend: Any, x: Array, windows: Windows, first: int, count: int) -> Array:
    """Return rows `first` to `first + count` of x (C, H, W, N) with zeros around as `windows` pads it.

    Rows are counted in the image and may lie outside of it. The result is x's own memory where nothing is padded,
    else a buffer of this thread whose border was zeroed when it was made.
    """
    h, w = windows.h, windows.w
    top, bottom = min(count, max(0, -first)), min(count, max(0, first + count - h.size))  # all of it may lie outside
    width = max(w.size + w.before, (w.out - 1) * w.stride + w.extent)
    if not (top or bottom or w.before or width > w.size):
        return x[:, first : first + count]
    shape = (x.shape[0], count, width, x.shape[3])
    padded: Array = backend.bordered((shape, top, bottom, w.before, w.size), shape, x.dtype)
    inside = padded[:, top : count - bottom, w.before : w.before + w.size]
    backend.xp.copyto(inside, x[:, first + top : first + count - bottom])
    return padded


def fill_columns(backend: Any, x: Array, windows: Windows, rows: range, cols: Array) -> None:
    """Copy the taps of the output rows `rows`: x (C, H, W, N) to cols (C, KH, KW, len(rows), OW, N)."""
    h, w = windows.h, windows.w
    needed = (len(rows) - 1) * h.stride + h.extent
    image = padded_rows(backend, x, windows, rows.start * h.stride - h.before, needed)
    c, y, z, n = image.strides
    _, kh, kw, _, ow, count = cols.shape
    if kh > 1 and h.stride == h.dilation == 1 and ow * count <= SHORT:  # a copy begins anew with each run
        lowered = backend.scratch("lowered", (x.shape[0], kw, needed, ow, count), x.dtype)
        along = backend.strided_view(image, lowered.shape, (c, z * w.dilation, y, z * w.stride, n))
        backend.xp.copyto(lowered, along)
        c, z, y, w_, n = lowered.strides
        backend.xp.copyto(cols, backend.strided_view(lowered, cols.shape, (c, y, z, y, w_, n)))
        return
    taps = backend.strided_view(image, cols.shape, (c, y * h.dilation, z * w.dilation, y * h.stride, z * w.stride, n))
    backend.xp.copyto(cols, taps)


def lower_rows(backend: Any, x: Array, windows: Windows, rows: range, lowered: Array) -> None:
    """Copy the taps along the width of the input rows that `rows` of the output need.

    x (C, H, W, N) to lowered (M, C, KW, OW, N), M as `rows_needed` says.
    """
    h, w = windows.h, windows.w
    image = padded_rows(backend, x, windows, rows.start * h.stride - h.before, lowered.shape[0])
    c, y, z, n = image.strides
    backend.xp.copyto(lowered, backend.strided_view(image, lowered.shape, (y, c, z * w.dilation, z * w.stride, n)))


def rows_needed(axis: Axis, rows: int) -> int:
    """Return how many input rows `rows` neighbouring windows span."""
    return (rows - 1) * axis.stride + axis.extent


def overlapping_rows(backend: Any, lowered: Array, count: int, stride: int, kernel: int) -> Array:
    """Return `count` windows of `kernel` rows each over lowered (G, M, K, P) as a view (G, count, kernel*K, P).

    The rows lie one behind the other.
    """
    groups, _, k, columns = lowered.shape
    across_groups, across_rows, down, along = lowered.strides
    strides = across_groups, stride * across_rows, down, along
    view: Array = backend.strided_view(lowered, (groups, count, kernel * k, columns), strides)
    return view


def windows_view(backend: Any, a: Array, axis: int, count: int, size: int, step: int) -> Array:
    """Return `a` as a view whose `axis` is (count, size): windows that begin every `step` along it."""
    shape = (*a.shape[:axis], count, size, *a.shape[axis + 1 :])
    strides = (*a.strides[:axis], step * a.strides[axis], *a.strides[axis:])
    view: Array = backend.strided_view(a, shape, strides)
    return view
