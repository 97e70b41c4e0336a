"""2-D convolution: columns times weights, and the same two matrices for its gradients.

With X the columns of the image and W the weights as (F, C*KH*KW):

    Y = W X + b        dW = dY X^T        db = sum of dY over columns        dX = W^T dY, then col2im

The image is cut into tiles of output rows: each thread lowers a tile into a buffer that it keeps and multiplies it
while it is in the cache, so the whole column matrix never exists. Where the stride is 1, dX is gathered instead of
scattered: it is the convolution of dY with the weights turned by half a turn. Large 3x3 convolutions go through
`winograd.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import winograd
from xpcnn.functional.columns import add_columns, fill_columns, lower_rows, rows_needed
from xpcnn.functional.layout import batch_first, batch_last, check_floating, check_like, check_ndim
from xpcnn.functional.primitive import primitive
from xpcnn.functional.spans import spans
from xpcnn.functional.windows import Axis, Padding, Size, Windows, integer, windows

Task = Callable[[], None]


class ConvCache(NamedTuple):
    """What `conv2d` keeps for its backward: the batch-last input (C, H, W, N), the weights and the geometry."""

    x: Array
    weight: Array
    has_bias: bool
    over: Windows
    groups: int


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
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
    """
    backend = backend_of(x, weight, bias)
    over = _check(x, weight, bias, stride, padding, dilation, groups)
    images = batch_last(backend, x)  # (C, H, W, N)
    y = backend.empty((weight.shape[0], *over.out, x.shape[0]), x.dtype)  # (F, OH, OW, N)
    tasks = _forward_tasks(backend, images, weight, bias, over, groups, y)
    backend.parallel(_run, tasks, _work(weight, over, x.shape[0]))
    return batch_first(y), ConvCache(images, weight, bias is not None, over, groups)


def conv2d_backward(
    dy: Array, cache: ConvCache, *, input_gradient: bool = True
) -> tuple[Array | None, Array, Array | None]:
    """Return the gradients of `conv2d`.

    Parameters
    ----------
    dy : array (N, F, OH, OW), dtype of the forward's `x`
    cache
        From `conv2d`.
    input_gradient : bool
        False leaves `dx` out (None), as the first layer of a network may.

    Returns
    -------
    dx : array (N, C, H, W) or None
    dweight : array (F, C/groups, KH, KW)
    dbias : array (F,), or None where `bias` was

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `dy` does not fit what the forward returned.
    """
    x, weight, has_bias, over, groups = cache
    backend = backend_of(dy, x)
    n = x.shape[3]
    check_like("dy", dy, (n, weight.shape[0], *over.out), x.dtype)
    dy = batch_last(backend, dy)  # (F, OH, OW, N)
    if winograd.suits(backend, weight, over, groups):
        tasks, collect = winograd.weight_tasks(backend, dy, x, weight, over)
    else:
        tasks, collect = _weight_tasks(backend, dy, x, weight, over, groups)
    dx = None
    if input_gradient:
        dx = backend.empty(x.shape, x.dtype)
        tasks = _input_tasks(backend, dy, weight, over, groups, dx) + tasks
    backend.parallel(_run, tasks, (1 + input_gradient) * _work(weight, over, n))
    dbias = channel_sums(backend, dy) if has_bias else None
    return (None if dx is None else batch_first(dx)), collect(), dbias


@primitive
def add_bias(backend: Backend, y: Array, bias: Array) -> None:
    """Add bias (F,) to y (F, ..., N) in place."""
    backend.xp.add(y, bias.reshape(-1, *(1,) * (y.ndim - 1)), out=y)


@primitive
def channel_sums(backend: Backend, dy: Array) -> Array:
    """Return the sum of dy (F, ..., N) over all but its first axis."""
    return backend.row_sums(dy.reshape(dy.shape[0], -1))


def _run(task: Task) -> None:
    task()


def _work(weight: Array, over: Windows, n: int) -> float:
    """Return the cost in elementary operations; a product does about eight multiply-adds in the time of one."""
    return float(weight.size) * over.h.out * over.w.out * n / 8


def _check(
    x: Array, weight: Array, bias: Array | None, stride: Size, padding: Padding, dilation: Size, groups: int
) -> Windows:
    check_ndim("x", x, "N, C, H, W")
    check_floating("x", x)
    check_ndim("weight", weight, "F, C/groups, KH, KW")
    if not x.shape[0]:
        raise ShapeError(f"x: expected at least one image, got shape {tuple(x.shape)}")
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
    return windows(x.shape[2:], weight.shape[2:], stride=stride, padding=padding, dilation=dilation)


# --- Y = W X + b ------------------------------------------------------------------------------------------------------


def _forward_tasks(
    backend: Backend, x: Array, weight: Array, bias: Array | None, over: Windows, groups: int, y: Array
) -> list[Task]:
    """Return the tasks that fill y (F, OH, OW, N), one per tile of output rows."""
    if winograd.suits(backend, weight, over, groups):
        return winograd.forward_tasks(backend, x, weight, bias, over, y)
    tiles = Tiles(backend, x, over, groups)
    matrix = tiles.weight_matrix(weight)

    def tile(rows: range) -> None:
        tiles.multiply(matrix, tiles.lower(rows), tiles.result(y, rows))
        if bias is not None:
            add_bias(backend, y[:, rows.start : rows.stop], bias)

    return [lambda rows=rows: tile(rows) for rows in tiles]  # type: ignore[misc]


class Tiles:
    """Tiles of output rows of one convolution, and the matrices that belong to each.

    Columns are (G, K, R*OW*N), one matrix a group; or, where neighbouring rows overlap and the backend multiplies
    stacks (`stacks_rows`), the stack (G, R, K, OW*N) whose matrices share their rows in memory.
    """

    def __init__(self, backend: Backend, x: Array, over: Windows, groups: int) -> None:
        self.backend, self.x, self.over, self.groups = backend, x, over, groups
        self.channels, self.n = x.shape[0] // groups, x.shape[3]
        h = over.h
        self.stacked = backend.stacks_rows and h.out > 1 and h.stride < h.kernel and h.dilation == 1
        taps = over.w.kernel * (min(h.stride, h.kernel) if self.stacked else h.kernel)
        row_bytes = x.shape[0] * taps * over.w.out * self.n * x.dtype.itemsize
        self.rows = max(1, min(h.out, backend.column_bytes // max(1, row_bytes)))
        threads = backend.get_num_threads()
        self.rows = min(self.rows, -(-h.out // threads))

    def __iter__(self) -> Iterator[range]:
        return iter(spans(self.over.h.out, -(-self.over.h.out // self.rows)))

    def weight_matrix(self, weight: Array) -> Array:
        """Return the weights (F, C/G, KH, KW) as (G, F/G, K) in the order of the columns' rows."""
        if self.stacked:  # rows of the input come first: (F, KH, C/G, KW)
            matrix = self.backend.contiguous(weight.transpose(0, 2, 1, 3))
            return matrix.reshape(self.groups, 1, weight.shape[0] // self.groups, -1)  # (G, 1, F/G, KH*C/G*KW)
        return self.backend.contiguous(weight).reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight_gradient(self, total: Array) -> Array:
        """Return the gradient (G, K, F/G) of the transposed weight matrix as (F, C/G, KH, KW)."""
        kh, kw = self.over.kernel
        if self.stacked:
            order = total.reshape(self.groups, kh, self.channels, kw, -1).transpose(0, 4, 2, 1, 3)
        else:
            order = total.reshape(self.groups, self.channels, kh, kw, -1).transpose(0, 4, 1, 2, 3)
        return self.backend.contiguous(order).reshape(-1, self.channels, kh, kw)  # (F, C/G, KH, KW)

    def lower(self, rows: range) -> Array:
        """Return the columns of a tile; good until this thread lowers the next."""
        over, backend, x = self.over, self.backend, self.x
        if over.is_pointwise:
            tile = x[:, rows.start : rows.stop]  # (C, R, W, N)
            return tile.reshape(self.groups, self.channels, -1)  # (G, C/G, R*W*N)
        if not self.stacked:
            shape = (x.shape[0], *over.kernel, len(rows), over.w.out, self.n)
            cols = backend.scratch("columns", shape, x.dtype)
            fill_columns(backend, x, over, rows, cols)
            return cols.reshape(self.groups, -1, len(rows) * over.w.out * self.n)  # (G, K, R*OW*N)
        needed = rows_needed(over.h, len(rows))
        per_row = (self.channels, over.w.kernel, over.w.out, self.n)
        lowered = backend.scratch("columns", (self.groups, needed, *per_row), x.dtype)
        for group in range(self.groups):
            block = x[group * self.channels : (group + 1) * self.channels]
            lower_rows(backend, block, over, rows, lowered[group])
        flat = lowered.reshape(self.groups, needed, -1, over.w.out * self.n)  # (G, M, C/G*KW, OW*N)
        return backend.overlapping_rows(flat, len(rows), over.h.stride, over.h.kernel)  # (G, R, KH*C/G*KW, OW*N)

    def result(self, y: Array, rows: range) -> Array:
        """Return the view of y (F, OH, OW, N) that a tile's product fills, shaped like its columns."""
        tile = y[:, rows.start : rows.stop].reshape(self.groups, -1, len(rows), self.over.w.out * self.n)
        return tile.transpose(0, 2, 1, 3) if self.stacked else tile.reshape(*tile.shape[:2], -1)

    def multiply(self, a: Array, b: Array, out: Array) -> None:
        """Write a @ b to `out`, as one product of two matrices where there is but one."""
        if self.groups == 1:
            a, b, out = a[0], b[0], out[0]
        self.backend.matmul(a, b, out=out)


# --- dW = dY X^T ------------------------------------------------------------------------------------------------------


def _weight_tasks(
    backend: Backend, dy: Array, x: Array, weight: Array, over: Windows, groups: int
) -> tuple[list[Task], Callable[[], Array]]:
    """Return one task per tile, and what adds the tiles' shares up in their order."""
    tiles = Tiles(backend, x, over, groups)
    steps = list(tiles)
    shares: list[Array] = [None] * len(steps)

    def tile(index: int) -> None:
        rows = steps[index]
        cols = tiles.lower(rows)
        grad = tiles.result(dy, rows)
        f = weight.shape[0] // groups
        lead = (groups, len(rows)) if tiles.stacked else (groups,)
        # X dY^T, the transpose of the formula: OpenBLAS is up to 1.7 times faster at many rows and few columns.
        share = backend.scratch("shares", (*lead, cols.shape[-2], f), x.dtype)
        tiles.multiply(cols, grad.swapaxes(-1, -2), share)
        shares[index] = backend.xp.sum(share, axis=1) if tiles.stacked else backend.copy(share)  # (G, K, F/G)

    def collect() -> Array:
        total = shares[0]
        for share in shares[1:]:
            backend.xp.add(total, share, out=total)
        return tiles.weight_gradient(total)

    return [lambda i=i: tile(i) for i in range(len(steps))], collect  # type: ignore[misc]


# --- dX ---------------------------------------------------------------------------------------------------------------


def _input_tasks(backend: Backend, dy: Array, weight: Array, over: Windows, groups: int, dx: Array) -> list[Task]:
    """Return the tasks that fill dx (C, H, W, N), the way that multiplies and copies least."""
    turned = Windows(*axes) if all(axes := [_turned(axis) for axis in (over.h, over.w)]) else None  # type: ignore[arg-type]
    # Gathers multiply for every pixel, the scatter for every window: with many more pixels than windows they lose.
    crowded = 2 * over.h.size * over.w.size < 3 * over.h.out * over.w.out
    if turned is not None and crowded:
        f, c, kh, kw = weight.shape
        if over.is_pointwise or not backend.stacks_rows or winograd.suits(backend, weight, over, groups):
            flipped = weight.reshape(groups, f // groups, c, kh, kw)[..., ::-1, ::-1].transpose(0, 2, 1, 3, 4)
            flipped = backend.contiguous(flipped).reshape(groups * c, f // groups, kh, kw)  # (C, F/G, KH, KW)
            return _forward_tasks(backend, dy, flipped, None, turned, groups, dx)
    h = over.h
    if backend.stacks_rows and h.kernel > 1 and h.stride == h.dilation == 1 and h.size < 2 * h.out:
        return _spread_tasks(backend, dy, weight, over, groups, dx)
    return _scatter_tasks(backend, dy, weight, over, groups, dx)


def _turned(axis: Axis) -> Axis | None:
    """Return the windows over dY of one direction, whose taps are those of dX; None where they do not line up."""
    before, after = axis.extent - 1 - axis.before, axis.extent - 1 - axis.after
    if axis.stride != 1 or before < 0 or after < 0:
        return None
    return Axis(axis.out, axis.kernel, 1, axis.dilation, before, after, axis.size)


def _spread_tasks(backend: Backend, dy: Array, weight: Array, over: Windows, groups: int, dx: Array) -> list[Task]:
    """Return one task per tile of rows of dx: gathered along the height, spread along the width.

    The adjoint of `lower_rows`: the KH rows of dY that an image row meets are contiguous, so that one product with a
    stack of overlapping matrices sums over them, and KW copies, not KH*KW, remain to be added.
    """
    f, c, kh, kw = weight.shape
    n, h, w = dy.shape[3], over.h, over.w
    matrix = weight.reshape(groups, f // groups, c, kh, kw)[:, :, :, ::-1].transpose(0, 2, 4, 3, 1)
    matrix = backend.contiguous(matrix).reshape(groups, 1, c * kw, kh * (f // groups))  # (G, 1, C/G*KW, KH*F/G)
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
