"""The gradient of a convolution by its input: three ways to bring dY back to the pixels, and which one to take.

A gather is a convolution of dY with the weights turned by half a turn. A scatter is W^T dY and col2im. Between the
two, rows are gathered and columns spread: KH rows of dY in one product, KW additions.
"""

from __future__ import annotations

from xpcnn.backend import Array, Backend
from xpcnn.functional.columns import add_columns
from xpcnn.functional.spans import spans
from xpcnn.functional.tiles import Task, forward_tasks
from xpcnn.functional.windows import Windows


def input_tasks(backend: Backend, dy: Array, weight: Array, over: Windows, groups: int, dx: Array) -> list[Task]:
    """Return the tasks that fill dx (C, H, W, N), the way that multiplies and copies least."""
    turned = over.turned
    # Gathers multiply for every pixel, the scatter for every window.
    if turned is not None and over.is_crowded and (over.is_pointwise or not backend.stacks_rows):
        f, c, kh, kw = weight.shape
        flipped = weight.reshape(groups, f // groups, c, kh, kw)[..., ::-1, ::-1].transpose(0, 2, 1, 3, 4)
        flipped = backend.contiguous(flipped).reshape(groups * c, f // groups, kh, kw)  # (C, F/G, KH, KW)
        return forward_tasks(backend, dy, flipped, None, turned, groups, dx)
    h = over.h
    if backend.stacks_rows and h.kernel > 1 and h.stride == h.dilation == 1 and h.size < 2 * h.out:
        return _spread_tasks(backend, dy, weight, over, groups, dx)
    return _scatter_tasks(backend, dy, weight, over, groups, dx)


def _spread_tasks(backend: Backend, dy: Array, weight: Array, over: Windows, groups: int, dx: Array) -> list[Task]:
    """Return one task per tile of rows of dx: gathered along the height, spread along the width.

    The adjoint of `lower_rows`: the KH rows of dY that an image row meets are contiguous, so that one product with a
    stack of overlapping matrices sums over them, and KW copies, not KH*KW, remain to be added.
    """
    f, c, kh, kw = weight.shape
    n, h, w = dy.shape[3], over.h, over.w
    matrix = weight.reshape(groups, f // groups, c, kh, kw)[:, :, :, ::-1].transpose(0, 2, 4, 3, 1)
    matrix = backend.contiguous(matrix).reshape(groups, 1, c * kw, kh * (f // groups))  # (G, 1, C/G*KW, KH*F/G)
    matrix = backend.left_factor(matrix)
    row_bytes = (f + groups * c * kw) * w.out * n * dy.dtype.itemsize
    step = max(1, min(backend.column_bytes // row_bytes, -(-h.size // backend.get_num_threads())))
    grad = dy.reshape(groups, f // groups, h.out, w.out, n)
    target = dx.reshape(groups, c, h.size, w.size, n)
    taps = [w.overlap(j, 0, w.out) for j in range(kw)]

    def tile(rows: range) -> None:
        first, needed = rows.start + h.before - (kh - 1), len(rows) + kh - 1
        top, bottom = max(0, -first), max(0, first + needed - h.out)
        shape = (groups, needed, f // groups, w.out, n)
        meets = backend.bordered((shape, top, bottom), shape, dy.dtype)
        inside = grad[:, :, first + top : first + needed - bottom].transpose(0, 2, 1, 3, 4)  # (G, M, F/G, OW, N)
        backend.xp.copyto(meets[:, top : needed - bottom], inside)
        flat = meets.reshape(groups, needed, f // groups, w.out * n)
        stack = backend.overlapping_rows(flat, len(rows), 1, kh)  # (G, R, KH*F/G, OW*N)
        product = backend.scratch("columns", (groups, len(rows), c * kw, w.out * n), dy.dtype)
        backend.matmul(matrix, stack, out=product)
        spread = product.reshape(groups, len(rows), c, kw, w.out, n)
        spread = spread.transpose(0, 2, 3, 1, 4, 5)  # (G, C/G, KW, R, OW, N)
        place = target[:, :, rows.start : rows.stop]
        backend.xp.copyto(place, 0)
        for j, (there, pixels) in enumerate(taps):
            pixel = place[:, :, :, pixels]
            backend.xp.add(pixel, spread[:, :, j, :, there], out=pixel)

    return [lambda rows=rows: tile(rows) for rows in spans(h.size, -(-h.size // step))]  # type: ignore[misc]


def _scatter_tasks(backend: Backend, dy: Array, weight: Array, over: Windows, groups: int, dx: Array) -> list[Task]:
    """Return one task per block of channels: W^T dY tile by tile, each added to its pixels."""
    f, c, kh, kw = weight.shape
    n, out = dy.shape[3], over.h.out
    per_group = min(c, -(-backend.get_num_threads() // groups))
    row_bytes = -(-c // per_group) * kh * kw * over.w.out * n * dy.dtype.itemsize
    step = max(1, min(out, backend.column_bytes // max(1, row_bytes)))

    def block(group: int, channels: range) -> None:
        first, last = channels.start, channels.stop
        filters = slice(group * (f // groups), (group + 1) * (f // groups))
        matrix = backend.contiguous(weight[filters, first:last]).reshape(f // groups, -1).T  # (C_block*KH*KW, F/G)
        target = dx[group * c + first : group * c + last]
        backend.xp.copyto(target, 0)
        for start in range(0, out, step):
            rows = range(start, min(out, start + step))
            grad = dy[filters, rows.start : rows.stop].reshape(f // groups, -1)  # (F/G, R*OW*N)
            shape = (last - first, kh, kw, len(rows), over.w.out, n)
            cols = backend.scratch("columns", shape, dy.dtype)
            backend.matmul(matrix, grad, out=cols.reshape(matrix.shape[0], -1))
            add_columns(backend, cols, over, rows, target)

    return [lambda g=g, part=part: block(g, part) for g in range(groups) for part in spans(c, per_group)]  # type: ignore[misc]
