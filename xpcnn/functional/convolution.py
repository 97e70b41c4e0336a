"""2-D convolution: columns times weights, and the same two matrices for its gradients.

    X = im2col(x)                       (C*KH*KW, OH*OW*N), a column for each window
    Y = W X + b                         W is the weights as (F, C*KH*KW)
    dW = dY X^T    db = sum of dY over columns    dx = col2im(W^T dY)

That is the next page of code, in tiles of output rows whose columns take `Backend.column_bytes` at most, and for each
group of channels alike. Arrays are batch-last: x (C, H, W, N), y (F, OH, OW, N). A backend may do each step, or the
whole of it, in its own way (`primitive.py`); with XPCNN_PORTABLE=1 this runs everywhere and a debugger stops here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional.layout import (
    batch_first,
    batch_last,
    check_floating,
    check_images,
    check_like,
    check_ndim,
    take,
    take_gradient,
)
from xpcnn.functional.precision import cast, cast_all, cast_batch
from xpcnn.functional.primitive import primitive
from xpcnn.windows import Padding, Size, Windows, integer
from xpcnn.windows import windows as make_windows


@primitive
def conv2d_forward(
    backend: Backend,
    x: Array,
    weight: Array,
    bias: Array | None,
    windows: Windows,
    groups: int,
    packed: dict[str, Array] | None = None,
) -> Array:
    """Return y (F, OH, OW, N) for x (C, H, W, N).

    A `packed` belongs to weights that never change: a backend may keep them there as its products take them.
    """
    y = backend.empty((weight.shape[0], *windows.out, x.shape[3]), x.dtype)
    w = _weight_matrix(backend, weight, groups)  # (G, F/G, K), K = C/G*KH*KW
    for rows in _row_tiles(backend, x.shape, x.dtype, windows):
        cols = _im2col(backend, x, windows, groups, rows)  # (G, K, R*OW*N)
        _multiply(backend, w, cols, out=_rows_of(y, groups, rows))  # Y = W X
    if bias is not None:
        add_bias(backend, y, bias)
    return y


@primitive
def conv2d_sums(
    backend: Backend, x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int
) -> tuple[Array, Array | None]:
    """Return y as `conv2d_forward` does, and what a backend has summed up of it for `batch_norm_train`: here None."""
    return conv2d_forward(backend, x, weight, bias, windows, groups), None


@primitive
def conv2d_gradients(
    backend: Backend,
    dy: Array,
    x: Array,
    weight: Array,
    windows: Windows,
    groups: int,
    has_bias: bool = False,
    input_gradient: bool = True,
    dweight: Array | None = None,
    dbias: Array | None = None,
) -> tuple[Array | None, Array, Array | None]:
    """Return dx (C, H, W, N) or None, dweight and dbias or None for dy (F, OH, OW, N).

    A `dweight` and `dbias` that are given may be where they are written, and are returned then.
    """
    dx = conv2d_input_gradient(backend, dy, weight, windows, groups) if input_gradient else None
    tiles = _row_tiles(backend, x.shape, x.dtype, windows)
    in_place = dweight is not None and len(tiles) == 1 and dweight.flags.c_contiguous
    target = _weight_matrix(backend, dweight, groups) if in_place else None  # a view
    dw = None
    for rows in tiles:
        cols = _im2col(backend, x, windows, groups, rows)  # (G, K, R*OW*N)
        dy_rows = _rows_of(dy, groups, rows)  # (G, F/G, R*OW*N)
        dw = _add_up(backend, dw, _multiply(backend, dy_rows, cols.swapaxes(-1, -2), out=target))  # dW = dY X^T
    db = backend.row_sums(dy.reshape(dy.shape[0], -1), out=dbias) if has_bias else None
    return dx, dweight if in_place else _stored(backend, dw, weight.dtype).reshape(weight.shape), db


@primitive
def conv2d_input_gradient(backend: Backend, dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """Return dx (C, H, W, N) for dy (F, OH, OW, N)."""
    if windows.is_pointwise or windows.is_whole:
        return _direct_input_gradient(backend, dy, weight, windows, groups)
    n = dy.shape[3]
    channels = groups * weight.shape[1]
    shape = channels, windows.h.size, windows.w.size, n
    tiles = _row_tiles(backend, shape, dy.dtype, windows)
    collects = len(tiles) == 1 and "collect_columns" in backend.fused  # in one launch less than turned filters take
    if windows.transposed is not None and windows.gather_pays and not collects:
        # As many windows as pixels: dx is a convolution itself, of dy with the filters turned by half a turn.
        return conv2d_forward(backend, dy, _turned(backend, weight, groups), None, windows.transposed, groups)
    dx = backend.empty(shape, dy.dtype) if collects else backend.zeros(shape, dy.dtype)
    w = _weight_matrix(backend, weight, groups)  # (G, F/G, K)
    for rows in tiles:
        cols = _columns(backend, dx, windows, rows)  # (C, KH, KW, R, OW, N)
        product = cols.reshape(groups, w.shape[2], -1)  # (G, K, R*OW*N)
        _multiply(backend, w.swapaxes(-1, -2), _rows_of(dy, groups, rows), out=product)  # W^T dY
        if collects:
            collect_columns(backend, cols, windows, dx)
        else:
            add_columns(backend, cols, windows, rows, dx)  # col2im
    return dx


def _direct_input_gradient(backend: Backend, dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """Return dx where the pixels are the columns themselves, pointwise or with one window over the whole image."""
    n = dy.shape[3]
    dx = backend.empty((groups * weight.shape[1], windows.h.size, windows.w.size, n), dy.dtype)
    w = _weight_matrix(backend, weight, groups)  # (G, F/G, K)
    rows = dy.reshape(groups, w.shape[1], -1)  # (G, F/G, OH*OW*N)
    _multiply(backend, w.swapaxes(-1, -2), rows, out=dx.reshape(groups, w.shape[2], -1))  # W^T dY
    return dx


@primitive
def fill_columns(backend: Backend, x: Array, windows: Windows, rows: range, cols: Array) -> None:
    """Copy the taps of the output rows `rows`: x (C, H, W, N) to cols (C, KH, KW, len(rows), OW, N)."""
    for i, j in windows.taps():
        ro, ri = windows.h.overlap(i, rows.start, rows.stop)
        wo, wi = windows.w.overlap(j, 0, windows.w.out)
        tap = cols[:, i, j]  # (C, R, OW, N)
        backend.xp.copyto(tap[:, ro, wo], x[:, ri, wi])
        clear_outside(backend, tap, ro, wo)


@primitive
def add_columns(backend: Backend, cols: Array, windows: Windows, rows: range, dx: Array) -> None:
    """Add every tap of cols (C, KH, KW, len(rows), OW, N) to its pixel of dx (C, H, W, N): the adjoint of im2col."""
    for i, j in windows.taps():
        ro, ri = windows.h.overlap(i, rows.start, rows.stop)
        wo, wi = windows.w.overlap(j, 0, windows.w.out)
        target = dx[:, ri, wi]  # (C, R, OW, N)
        backend.xp.add(target, cols[:, i, j, ro, wo], out=target)


@primitive
def collect_columns(backend: Backend, cols: Array, windows: Windows, dx: Array) -> None:
    """Fill dx (C, H, W, N) with the sums of every tap of cols (C, KH, KW, OH, OW, N) that reads a pixel."""
    backend.xp.copyto(dx, 0)
    add_columns(backend, cols, windows, range(windows.h.out), dx)


@primitive
def add_bias(backend: Backend, y: Array, bias: Array) -> None:
    """Add bias (F,) to y (F, ..., N) in place."""
    backend.xp.add(y, bias.reshape(-1, *(1,) * (y.ndim - 1)), out=y)


# --- what these are made of -------------------------------------------------------------------------------------------


def _row_tiles(backend: Backend, shape: Sequence[int], dtype: Any, windows: Windows) -> list[range]:
    """Cut the output rows so that the columns of a tile take at most `column_bytes`, or are those of one row."""
    taps = windows.h.kernel * windows.w.kernel
    row_bytes = shape[0] * taps * windows.w.out * shape[3] * dtype.itemsize
    step, out = max(1, backend.column_bytes // max(1, row_bytes)), windows.h.out
    return [range(first, min(first + step, out)) for first in range(0, out, step)]


def _im2col(backend: Backend, x: Array, windows: Windows, groups: int, rows: range) -> Array:
    """Return the columns of some output rows, (G, K, R*OW*N), good until the next are asked for."""
    if windows.is_pointwise:
        return x[:, rows.start : rows.stop].reshape(groups, x.shape[0] // groups, -1)  # (G, C/G, R*W*N)
    if windows.is_whole:
        return x.reshape(groups, -1, x.shape[3])  # (G, C/G*H*W, N)
    cols = _columns(backend, x, windows, rows)
    fill_columns(backend, x, windows, rows, cols)
    return cols.reshape(groups, -1, len(rows) * windows.w.out * x.shape[3])  # (G, K, R*OW*N)


def _columns(backend: Backend, x: Array, windows: Windows, rows: range) -> Array:
    """Return room for columns, (C, KH, KW, R, OW, N)."""
    return backend.scratch("columns", (x.shape[0], *windows.kernel, len(rows), windows.w.out, x.shape[3]), x.dtype)


def _rows_of(y: Array, groups: int, rows: range) -> Array:
    """Return some rows of y (F, OH, OW, N) as a view (G, F/G, R*OW*N)."""
    return y[:, rows.start : rows.stop].reshape(groups, y.shape[0] // groups, -1)


def _weight_matrix(backend: Backend, weight: Array, groups: int) -> Array:
    """Return the weights (F, C/G, KH, KW) as (G, F/G, K)."""
    return backend.contiguous(weight).reshape(groups, weight.shape[0] // groups, -1)


def _turned(backend: Backend, weight: Array, groups: int) -> Array:
    """Return the weights (F, C/G, KH, KW) turned by half a turn, outputs for inputs: (C, F/G, KH, KW)."""
    f, c, kh, kw = weight.shape
    turned = weight.reshape(groups, f // groups, c, kh, kw)[..., ::-1, ::-1].transpose(0, 2, 1, 3, 4)
    return backend.contiguous(turned).reshape(groups * c, f // groups, kh, kw)


def _multiply(backend: Backend, a: Array, b: Array, out: Array | None = None) -> Array:
    """Return a @ b (G, ..., ...), as one product of two matrices where there is but one group."""
    if a.shape[0] > 1:
        return backend.matmul(a, b, out=out)
    return backend.matmul(a[0], b[0], out=None if out is None else out[0])[None]


def _add_up(backend: Backend, total: Array | None, share: Array) -> Array:
    """Return total + share, in place, in float32 where they are float16: many small shares would be lost."""
    if total is None:
        return share
    if total.dtype.itemsize < 4:
        total = cast(backend, total, "float32")
    backend.xp.add(total, share, out=total)
    return total


def _stored(backend: Backend, a: Array, dtype: Any) -> Array:
    return a if a.dtype == dtype else cast(backend, a, dtype)


def clear_outside(backend: Backend, tap: Array, rows: slice, columns: slice) -> None:
    """Zero what lies outside of `rows` x `columns` in tap (C, R, OW, N): the padding."""
    if rows.start:
        backend.xp.copyto(tap[:, : rows.start], 0)
    if rows.stop < tap.shape[1]:
        backend.xp.copyto(tap[:, rows.stop :], 0)
    if columns.start:
        backend.xp.copyto(tap[:, rows, : columns.start], 0)
    if columns.stop < tap.shape[2]:
        backend.xp.copyto(tap[:, rows, columns.stop :], 0)


# --- the functions that users call ------------------------------------------------------------------------------------


class ConvCache(NamedTuple):
    """What `conv2d` keeps for its backward: the batch-last input (C, H, W, N), the weights and the geometry.

    Columns that are kept are those of all windows, as an image (K, OH, OW, N).
    """

    x: Array
    weight: Array
    has_bias: bool
    windows: Windows
    groups: int
    columns: Array | None = None


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> tuple[Array, ConvCache]:
    """Correlate images with filters: y[n,f,i,j] = b[f] + sum over c,k,l of w[f,c,k,l] x[n,c,i*s+k*d-p,j*s+l*d-p].

    Parameters
    ----------
    x : array (N, C, H, W), floating
    weight : array (F, C/groups, KH, KW), dtype of `x`
    bias : array (F,), dtype of `x`, optional
    stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)), "same" (output = ceil(input / stride)) or "valid"
    groups : int
        Group g of the filters sees group g of the channels only; it divides C and F.

    Returns
    -------
    y : array (N, F, OH, OW), dtype of `x`
    cache
        For `conv2d_backward`.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        Shapes do not fit, types are not floating or differ, arrays lie on two backends.

    References
    ----------
    LeCun et al. 1998, Gradient-based learning applied to document recognition, section II.

    Examples
    --------
    >>> y, cache = F.conv2d(np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), padding=1)
    >>> y.shape
    (2, 4, 8, 8)
    >>> float(y[0, 0, 4, 4]), float(y[0, 0, 0, 0])  # 27 products inside, 12 in a corner
    (27.0, 12.0)
    """
    y, cache, _ = convolve(x, weight, bias, stride, padding, dilation, groups)
    return y, cache


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    with_sums: bool = False,
) -> tuple[Array, ConvCache, Array | None]:
    """Do what `conv2d` does; return, `with_sums`, those of `conv2d_sums` too, where the backend has them."""
    backend, x, weight, bias = take("x weight bias", x, weight, bias)
    windows = _check(x, weight, bias, stride, padding, dilation, groups)
    images, groups = batch_last(backend, x), int(groups)  # (C, H, W, N)
    cache = ConvCache(images, weight, bias is not None, windows, groups)
    if not x.shape[0]:
        return batch_first(backend.zeros((weight.shape[0], *windows.out, 0), x.dtype)), cache, None
    with backend.errstate():
        if not backend.multiplies(x.dtype):
            images, weight, bias = cast_all(backend, (images, weight, bias), "float32")
            y = conv2d_forward(backend, images, weight, bias, windows, groups)
            return batch_first(cast(backend, y, x.dtype)), cache, None
        if _keeps_columns(backend, images, weight, windows, groups):
            rows = range(windows.h.out)
            columns = backend.empty((weight[0].size, *windows.out, x.shape[0]), x.dtype)
            fill_columns(
                backend, images, windows, rows, columns.reshape(x.shape[1], *windows.kernel, *columns.shape[1:])
            )
            y = conv2d_forward(backend, columns, _of_pixels(weight), bias, _pixels(windows), 1)
            return batch_first(y), cache._replace(columns=columns), None
        if with_sums:
            y, sums = conv2d_sums(backend, images, weight, bias, windows, groups)
            return batch_first(y), cache, sums
        return batch_first(conv2d_forward(backend, images, weight, bias, windows, groups)), cache, None


def _keeps_columns(backend: Backend, x: Array, weight: Array, windows: Windows, groups: int) -> bool:
    """Whether to keep the columns: they are no larger than the result, and the backend would rather have them."""
    if not backend.keeps_columns or groups > 1 or windows.is_pointwise or windows.is_whole:
        return False
    return weight[0].size <= weight.shape[0] and len(_row_tiles(backend, x.shape, x.dtype, windows)) == 1


def _of_pixels(weight: Array) -> Array:
    """Return weights as those of a convolution over columns, pixel by pixel: (F, K, 1, 1)."""
    return weight.reshape(weight.shape[0], -1, 1, 1)


def _pixels(windows: Windows) -> Windows:
    """Return the windows of one pixel each over columns (K, OH, OW, N)."""
    return make_windows(windows.out, (1, 1))


def conv2d_backward(
    dy: Array,
    cache: ConvCache,
    *,
    input_gradient: bool = True,
    weight_gradient: bool = True,
    dweight: Array | None = None,
    dbias: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `conv2d`.

    Parameters
    ----------
    dy : array (N, F, OH, OW), dtype of the forward's `x`
    cache
        From `conv2d`.
    input_gradient : bool
        False leaves `dx` out (None), as the first layer of a network may.
    weight_gradient : bool
        False leaves `dweight` and `dbias` out (None), as a frozen layer may.
    dweight, dbias : array like the weights and the bias, C-contiguous, optional
        Where a backend may write the gradients; what is returned may be these or arrays of its own.

    Returns
    -------
    dx : array (N, C, H, W) or None
    dweight : array (F, C/groups, KH, KW) or None
    dbias : array (F,), or None where `bias` was

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `dy` does not fit what the forward returned.

    Examples
    --------
    >>> y, cache = F.conv2d(np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4))
    >>> dx, dw, db = F.conv2d_backward(np.ones_like(y), cache)
    >>> dx.shape, dw.shape, db.shape
    ((2, 3, 8, 8), (4, 3, 3, 3), (4,))
    """
    x, weight, has_bias, windows, groups, columns = cache
    backend = backend_of(x)
    dy = take_gradient(dy, backend)
    check_like("dy", dy, (x.shape[3], weight.shape[0], *windows.out), x.dtype)
    if not x.shape[3]:
        dbias = backend.zeros(weight.shape[:1], x.dtype) if has_bias and weight_gradient else None
        dweight = backend.zeros(weight.shape, x.dtype) if weight_gradient else None
        return (batch_first(backend.zeros(x.shape, x.dtype)) if input_gradient else None), dweight, dbias
    if not backend.multiplies(x.dtype):
        kept = cache._replace(x=cast(backend, x, "float32"), weight=cast(backend, weight, "float32"))
        dx, *rest = conv2d_backward(
            cast_batch(backend, dy, "float32"), kept, input_gradient=input_gradient, weight_gradient=weight_gradient
        )
        dweight, dbias = cast_all(backend, rest, x.dtype)
        return None if dx is None else cast_batch(backend, dx, x.dtype), dweight, dbias
    if not weight_gradient:
        if not input_gradient:
            return None, None, None
        with backend.errstate():
            dx = conv2d_input_gradient(backend, batch_last(backend, dy), weight, windows, groups)
        return batch_first(dx), None, None
    with backend.errstate():
        if columns is not None:
            rows = batch_last(backend, dy)
            over, filters = _pixels(windows), _of_pixels(weight)
            target = None if dweight is None or not dweight.flags.c_contiguous else _of_pixels(dweight)
            _, found, dbias = conv2d_gradients(backend, rows, columns, filters, over, 1, has_bias, False, target, dbias)
            dx = conv2d_input_gradient(backend, rows, weight, windows, groups) if input_gradient else None
            dweight = dweight if found is target else found.reshape(weight.shape)
            return None if dx is None else batch_first(dx), dweight, dbias
        dx, dweight, dbias = conv2d_gradients(
            backend, batch_last(backend, dy), x, weight, windows, groups, has_bias, input_gradient, dweight, dbias
        )
    return None if dx is None else batch_first(dx), dweight, dbias


class FixedConvolution:
    """`conv2d` with weights that never change: a backend brings them once to the form in which its product takes them.

    Arguments are those of `conv2d`; calling the object with x gives y.
    """

    def __init__(self, weight: Array, bias: Array | None = None, **geometry: Any) -> None:
        self.weight, self.bias = weight, bias
        self.geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | geometry
        self._packed: dict[str, Array] = {}

    def __call__(self, x: Array) -> Array:
        """Return y (N, F, OH, OW) for x (N, C, H, W)."""
        backend, x, _ = take("x weight", x, self.weight)
        windows = _check(x, self.weight, self.bias, **self.geometry)
        images, groups = batch_last(backend, x), int(self.geometry["groups"])
        if not x.shape[0]:
            return batch_first(backend.zeros((self.weight.shape[0], *windows.out, 0), x.dtype))
        return batch_first(conv2d_forward(backend, images, self.weight, self.bias, windows, groups, self._packed))


def _check(
    x: Array, weight: Array, bias: Array | None, stride: Size, padding: Padding, dilation: Size, groups: int
) -> Windows:
    check_images("x", tuple(x.shape))
    check_floating("x", x)
    check_ndim("weight", weight, "F, C/groups, KH, KW")
    c, f = x.shape[1], weight.shape[0]
    if c % integer("groups", groups, 1) or f % groups:
        raise ShapeError(f"groups: expected a divisor of {c} channels and {f} filters, got {groups}")
    if weight.shape[1] * groups != c:
        raise ShapeError(
            f"x: expected {weight.shape[1] * groups} channels for weight {tuple(weight.shape)} and groups={groups}, "
            f"got {c} in shape {tuple(x.shape)}; images are (N, C, H, W)"
        )
    if weight.dtype != x.dtype:
        raise DTypeError(f"weight: expected the dtype of x, {x.dtype}, got {weight.dtype}; convert one of them")
    if bias is not None:
        check_like("bias", bias, (f,), x.dtype)
    return make_windows(x.shape[2:], weight.shape[2:], stride=stride, padding=padding, dilation=dilation)
