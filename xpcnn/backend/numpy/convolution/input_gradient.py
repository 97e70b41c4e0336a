"""The gradient of a convolution by its input: ways to bring dY back to the pixels, and which one to take.

A scatter is W^T dY and col2im. Where image rows meet few of dY, rows are gathered and columns spread: all rows of dY
that an image row meets in one product, KW additions. A pointwise convolution is a product of its own.
"""

from __future__ import annotations

from typing import Any

from xpcnn.backend.numpy import products
from xpcnn.backend.numpy.convolution.lowering import overlapping_rows
from xpcnn.backend.numpy.convolution.tiles import Task, forward_tasks
from xpcnn.backend.split import split_evenly
from xpcnn.windows import Axis, Windows

Array = Any


def input_tasks(backend: Any, dy: Array, weight: Array, windows: Windows, groups: int, dx: Array) -> list[Task]:
    """Return the tasks that fill dx (C, H, W, N), the way that multiplies and copies least."""
    if windows.is_pointwise:
        f, c = weight.shape[:2]
        matrix = backend.contiguous(weight).reshape(groups, f // groups, c).swapaxes(1, 2)  # (G, C/G, F/G)
        return forward_tasks(backend, dy, weight, None, windows, groups, dx, factor=matrix)
    h = windows.h
    if h.kernel > 1 and h.dilation == 1 and h.size < 2 * h.stride * h.out:
        return _spread_tasks(backend, dy, weight, windows, groups, dx)
    return _scatter_tasks(backend, dy, weight, windows, groups, dx)


def _spread_tasks(backend: Any, dy: Array, weight: Array, windows: Windows, groups: int, dx: Array) -> list[Task]:
    """Return one task per tile of rows of dx: gathered along the height, spread along the width.

    The adjoint of `lower_rows`. Of every `stride` neighbouring image rows, each meets other taps: those that are a
    multiple of the stride apart. The rows of dY that it meets are contiguous, so that one product with a stack of
    overlapping matrices sums over them, and only KW products remain to be added.
    """
    f, c, kh, kw = weight.shape
    n, h, w = dy.shape[3], windows.h, windows.w
    matrices = weight.reshape(groups, f // groups, c, kh, kw).transpose(0, 2, 4, 3, 1)  # (G, C/G, KW, KH, F/G)
    classes = [_RowClass(backend, matrices, h, phase) for phase in range(h.stride)]
    low = min(each.first for each in classes)
    beyond = max(each.first + each.taps for each in classes) - 1 - low  # rows of dY that a tile meets beside its own
    row_bytes = (f + groups * c * kw) * w.out * n * dy.dtype.itemsize
    count = -(-h.size // h.stride)
    step = max(1, min(backend.column_bytes // row_bytes, -(-count // backend.get_num_threads())))
    grad = dy.reshape(groups, f // groups, h.out, w.out, n)
    target = dx.reshape(groups, c, h.size, w.size, n)

    def tile(rows: range) -> None:
        first, needed = rows.start + low, len(rows) + beyond
        top, bottom = min(needed, max(0, -first)), min(needed, max(0, first + needed - h.out))
        shape = (groups, needed, f // groups, w.out, n)
        meets = backend.bordered((shape, top, bottom), shape, dy.dtype)
        inside = grad[:, :, first + top : first + needed - bottom].transpose(0, 2, 1, 3, 4)  # (G, M, F/G, OW, N)
        backend.xp.copyto(meets[:, top : needed - bottom], inside)
        flat = meets.reshape(groups, needed, f // groups, w.out * n)
        for phase, each in enumerate(classes):
            place = target[:, :, h.stride * rows.start + phase : h.stride * rows.stop : h.stride]  # (G, C/G, R, W, N)
            r = place.shape[2]
            if not r or not each.taps:
                backend.xp.copyto(place, 0)
                continue
            stack = overlapping_rows(backend, flat[:, each.first - low :], r, 1, each.taps)  # (G, R, T*F/G, OW*N)
            product = backend.scratch("columns", (groups, r, c * kw, w.out * n), dy.dtype)
            backend.matmul(each.matrix, stack, out=product)
            spread = product.reshape(groups, r, c, kw, w.out, n).transpose(0, 2, 3, 1, 4, 5)  # (G, C/G, KW, R, OW, N)
            _add_taps(backend, spread, w, place)

    return [lambda rows=rows: tile(rows) for rows in split_evenly(count, -(-count // step))]  # type: ignore[misc]


class _RowClass:
    """The image rows stride*u + phase: they meet `taps` rows of dY from u + `first` on, each with its row of taps."""

    def __init__(self, backend: Any, matrices: Array, h: Axis, phase: int) -> None:
        rows = range((phase + h.before) % h.stride, h.kernel, h.stride)
        self.taps = len(rows)
        self.first = (phase + h.before - rows[-1]) // h.stride if rows else 0
        if rows:
            g, c, kw, _, f = matrices.shape
            own = matrices[:, :, :, rows.start :: h.stride][:, :, :, ::-1]  # (G, C/G, KW, T, F/G)
            matrix = backend.contiguous(own).reshape(g, 1, c * kw, self.taps * f)  # (G, 1, C/G*KW, T*F/G)
            self.matrix = products.pack_lhs(backend, matrix)


def _add_taps(backend: Any, spread: Array, w: Axis, place: Array) -> None:
    """Write to place (G, C/G, R, W, N) the sums over the taps KW of spread (G, C/G, KW, R, OW, N), which it changes."""
    xp = backend.xp
    taps = [(j, *w.overlap(j, 0, w.out)) for j in range(w.kernel)]
    for phase in range(w.stride):
        pixels = place[:, :, :, phase :: w.stride]
        own = [tap for tap in taps if (tap[0] * w.dilation - w.before - phase) % w.stride == 0]
        whole = next((tap for tap in own if tap[1].stop - tap[1].start == pixels.shape[3]), None)
        if whole is None:
            xp.copyto(pixels, 0)
            for j, there, where in own:
                xp.add(place[:, :, :, where], spread[:, :, j, :, there], out=place[:, :, :, where])
            continue
        # Added up where they lie side by side: image columns of one phase are apart.
        total = spread[:, :, whole[0], :, whole[1]]
        for j, there, where in own:
            if j != whole[0]:
                start = (where.start - phase) // w.stride
                part = total[:, :, :, start : start + there.stop - there.start]
                xp.add(part, spread[:, :, j, :, there], out=part)
        xp.copyto(pixels, total)


def _scatter_tasks(backend: Any, dy: Array, weight: Array, windows: Windows, groups: int, dx: Array) -> list[Task]:
    """Return one task per channel block: W^T dY tile by tile, each added to its pixels."""
    f, c, kh, kw = weight.shape
    n, out = dy.shape[3], windows.h.out
    per_group = min(c, -(-backend.get_num_threads() // groups))
    row_bytes = -(-c // per_group) * kh * kw * windows.w.out * n * dy.dtype.itemsize
    step = max(1, min(out, backend.column_bytes // max(1, row_bytes)))

    def channel_block(group: int, channels: range) -> None:
        first, last = channels.start, channels.stop
        filters = slice(group * (f // groups), (group + 1) * (f // groups))
        matrix = backend.contiguous(weight[filters, first:last]).reshape(f // groups, -1).T  # (C_block*KH*KW, F/G)
        target = dx[group * c + first : group * c + last]
        if windows.is_whole:  # no two products belong to one pixel
            backend.matmul(matrix, dy[filters].reshape(-1, n), out=target.reshape(-1, n))
            return
        backend.xp.copyto(target, 0)
        for start in range(0, out, step):
            rows = range(start, min(out, start + step))
            grad = dy[filters, rows.start : rows.stop].reshape(f // groups, -1)  # (F/G, R*OW*N)
            shape = (last - first, kh, kw, len(rows), windows.w.out, n)
            cols = backend.scratch("columns", shape, dy.dtype)
            backend.matmul(matrix, grad, out=cols.reshape(matrix.shape[0], -1))
            _add_columns(backend, cols, windows, rows, target)

    return [lambda g=g, part=part: channel_block(g, part) for g in range(groups) for part in split_evenly(c, per_group)]  # type: ignore[misc]


def _add_columns(backend: Any, cols: Array, windows: Windows, rows: range, dx: Array) -> None:
    """Add every tap of cols (C, KH, KW, len(rows), OW, N) to its pixel of dx (C, H, W, N)."""
    for i, j in windows.taps():
        ro, ri = windows.h.overlap(i, rows.start, rows.stop)
        wo, wi = windows.w.overlap(j, 0, windows.w.out)
        target = dx[:, ri, wi]  # (C, R, OW, N)
        backend.xp.add(target, cols[:, i, j, ro, wo], out=target)
