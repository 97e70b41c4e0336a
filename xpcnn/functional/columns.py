"""im2col and col2im: the one lowering of windows to matrices under every convolution.

`im2col` copies each tap of every window: (C, KH, KW, OH, OW, N), a matrix of C*KH*KW rows. `lower_rows` copies taps
along the width alone: (rows, C, KW, OW, N). A window of KH input rows is then KH*C*KW contiguous rows of a matrix,
and the next window begins one stride further: KH times fewer copies, for a backend that multiplies stacks of
overlapping matrices well (NumPy's `matmul` does). The idea is MEC's (Cho and Brand 2017, arXiv:1706.06873).
Arrays here are batch-last, with groups of channels in front.
"""

from __future__ import annotations

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ShapeError
from xpcnn.functional.layout import batch_first, batch_last, check_floating, check_like, check_ndim
from xpcnn.functional.primitive import primitive
from xpcnn.windows import Axis, Padding, Size, Windows, windows


@primitive
def fill_columns(backend: Backend, x: Array, over: Windows, rows: range, cols: Array) -> None:
    """Copy the taps of the output rows `rows`: x (C, H, W, N) to cols (C, KH, KW, len(rows), OW, N)."""
    for i, j in over.taps():
        ro, ri = over.h.overlap(i, rows.start, rows.stop)
        wo, wi = over.w.overlap(j, 0, over.w.out)
        tap = cols[:, i, j]  # (C, R, OW, N)
        backend.xp.copyto(tap[:, ro, wo], x[:, ri, wi])
        _clear_outside(backend, tap, ro, wo)


@primitive
def add_columns(backend: Backend, cols: Array, over: Windows, rows: range, dx: Array) -> None:
    """Add every tap of cols (C, KH, KW, len(rows), OW, N) to its pixel of dx (C, H, W, N): the adjoint of im2col."""
    for i, j in over.taps():
        ro, ri = over.h.overlap(i, rows.start, rows.stop)
        wo, wi = over.w.overlap(j, 0, over.w.out)
        target = dx[:, ri, wi]  # (C, R, OW, N)
        backend.xp.add(target, cols[:, i, j, ro, wo], out=target)


@primitive
def lower_rows(backend: Backend, x: Array, over: Windows, rows: range, lowered: Array) -> None:
    """Copy the taps along the width of the input rows that `rows` of the output need.

    x (C, H, W, N) to lowered (M, C, KW, OW, N), M = (len(rows) - 1) * stride + KH rows.
    """
    first = rows.start * over.h.stride - over.h.before
    top, bottom = max(first, 0), min(first + lowered.shape[0], over.h.size)
    inside = slice(top - first, max(bottom, top) - first)
    for j in range(over.w.kernel):
        wo, wi = over.w.overlap(j, 0, over.w.out)
        tap = lowered[:, :, j].transpose(1, 0, 2, 3)  # (C, M, OW, N)
        backend.xp.copyto(tap[:, inside, wo], x[:, top : max(bottom, top), wi])
        _clear_outside(backend, tap, inside, wo)


def _clear_outside(backend: Backend, tap: Array, rows: slice, columns: slice) -> None:
    """Zero what lies outside of `rows` x `columns` in tap (C, R, OW, N): the padding."""
    if rows.start:
        backend.xp.copyto(tap[:, : rows.start], 0)
    if rows.stop < tap.shape[1]:
        backend.xp.copyto(tap[:, rows.stop :], 0)
    if columns.start:
        backend.xp.copyto(tap[:, rows, : columns.start], 0)
    if columns.stop < tap.shape[2]:
        backend.xp.copyto(tap[:, rows, columns.stop :], 0)


def im2col(x: Array, kernel_size: Size, *, stride: Size = 1, padding: Padding = 0, dilation: Size = 1) -> Array:
    """Lay every window of `x` out as a column.

    Parameters
    ----------
    x : array (N, C, H, W), floating
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"

    Returns
    -------
    array (C*KH*KW, OH*OW*N), dtype of `x`
        Row (c, kh, kw), column (oh, ow, n).

    Raises
    ------
    ShapeError, DTypeError
        `x` is not (N, C, H, W), not floating, or smaller than the window.
    """
    backend = backend_of(x)
    check_ndim("x", x, "N, C, H, W")
    check_floating("x", x)
    n, c, h, w = x.shape
    over = windows((h, w), kernel_size, stride=stride, padding=padding, dilation=dilation)
    cols = backend.empty((c, *over.kernel, *over.out, n), x.dtype)
    fill_columns(backend, batch_last(backend, x), over, range(over.h.out), cols)
    return cols.reshape(c * over.h.kernel * over.w.kernel, -1)  # (C*KH*KW, OH*OW*N)


def col2im(
    cols: Array,
    x_shape: tuple[int, int, int, int],
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Array:
    """Add every column back to the pixels it came from: the adjoint of `im2col`.

    Parameters
    ----------
    cols : array (C*KH*KW, OH*OW*N), floating
    x_shape : (N, C, H, W)
        Shape of the image.
    kernel_size, stride, padding, dilation
        As for `im2col`.

    Returns
    -------
    array (N, C, H, W), dtype of `cols`

    Raises
    ------
    ShapeError, DTypeError
        `cols` does not fit `x_shape`, or is not floating.
    """
    backend = backend_of(cols)
    if len(x_shape) != 4:
        raise ShapeError(f"x_shape: expected (N, C, H, W), got {tuple(x_shape)}")
    n, c, h, w = x_shape
    over = windows((h, w), kernel_size, stride=stride, padding=padding, dilation=dilation)
    check_floating("cols", cols)
    shape = (c, *over.kernel, *over.out, n)
    check_like("cols", cols, (c * over.h.kernel * over.w.kernel, over.h.out * over.w.out * n), cols.dtype)
    dx = backend.zeros((c, h, w, n), cols.dtype)
    add_columns(backend, backend.contiguous(cols).reshape(shape), over, range(over.h.out), dx)
    return batch_first(dx)


def rows_needed(axis: Axis, rows: int) -> int:
    """Return how many input rows `rows` neighbouring windows span."""
    return (rows - 1) * axis.stride + axis.extent
