"""Convolution as products over tiles: each thread lowers some output rows and multiplies them while they are hot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from xpcnn.backend.numpy import products
from xpcnn.backend.numpy.convolution.lowering import fill_columns, lower_rows, overlapping_rows, rows_needed
from xpcnn.backend.split import split_evenly
from xpcnn.windows import Windows

Array = Any
Task = Callable[[], None]

# Share of a tile's columns that all of a convolution may take to be one matrix: a call then takes longer than its work.
FEW = 32


def forward_tasks(
    backend: Any,
    x: Array,
    weight: Array,
    bias: Array | None,
    windows: Windows,
    groups: int,
    y: Array,
    factor: Array | None = None,
) -> list[Task]:
    """Return the tasks that fill y (F, OH, OW, N), one per tile of output rows; `factor` is the `weight_matrix`."""
    tiles = Tiles(backend, x, windows, groups)
    matrix = tiles.weight_matrix(weight) if factor is None else factor

    def tile(rows: range) -> None:
        tiles.multiply(matrix, tiles.lower(rows), tiles.result(y, rows))
        if bias is not None:
            part = y.reshape(*y.shape[:2], -1)[:, rows.start : rows.stop]  # (F, R, OW*N)
            backend.xp.add(part, bias.reshape(-1, 1, 1), out=part)

    return [lambda rows=rows: tile(rows) for rows in tiles]  # type: ignore[misc]


def stacks(backend: Any, windows: Windows, pixel_bytes: int) -> bool:
    """Say whether the product is a stack of matrices that share their rows in memory.

    `pixel_bytes` are those of a pixel in all channels and images.
    """
    overlap = windows.h.out > 1 and windows.h.stride < windows.h.kernel and windows.h.dilation == 1
    return overlap and not are_few(backend, windows, pixel_bytes)


def are_few(backend: Any, windows: Windows, pixel_bytes: int) -> bool:
    """Say whether all columns are one small matrix."""
    h, w = windows.h, windows.w
    return bool(FEW * h.kernel * w.kernel * h.out * w.out * pixel_bytes <= backend.column_bytes)


def weight_matrix(backend: Any, weight: Array, groups: int, stacked: bool) -> Array:
    """Return the weights (F, C/G, KH, KW) as (G, F/G, K) in the order of the rows of the columns."""
    if stacked:  # rows of the input come first: (F, KH, C/G, KW)
        matrix = backend.contiguous(weight.transpose(0, 2, 1, 3))
        matrix = matrix.reshape(groups, 1, weight.shape[0] // groups, -1)  # (G, 1, F/G, KH*C/G*KW)
    else:
        matrix = backend.contiguous(weight).reshape(groups, weight.shape[0] // groups, -1)
    # What is packed anyhow would be copied twice, and a transposed copy of a large matrix is slow.
    return matrix if products.is_packed_by_blas(*matrix.shape[-2:]) else products.pack_lhs(backend, matrix)


class Tiles:
    """Tiles of output rows of one convolution, and the matrices that belong to each.

    Columns are (G, K, R*OW*N), one matrix a group; or, where neighbouring rows overlap, the stack
    (G, R, K, OW*N) whose matrices share their rows in memory.
    """

    def __init__(self, backend: Any, x: Array, windows: Windows, groups: int) -> None:
        self.backend, self.x, self.windows, self.groups = backend, x, windows, groups
        self.channels, self.n = x.shape[0] // groups, x.shape[3]
        h, pixel_bytes = windows.h, x.shape[0] * self.n * x.dtype.itemsize
        self.stacked = stacks(backend, windows, pixel_bytes)
        taps = windows.w.kernel * (min(h.stride, h.kernel) if self.stacked else h.kernel)
        row_bytes = taps * windows.w.out * pixel_bytes
        self.rows = max(1, min(h.out, backend.column_bytes // max(1, row_bytes)))
        if not are_few(backend, windows, pixel_bytes):
            self.rows = min(self.rows, -(-h.out // backend.get_num_threads()))

    def __iter__(self) -> Iterator[range]:
        return iter(split_evenly(self.windows.h.out, -(-self.windows.h.out // self.rows)))

    def weight_matrix(self, weight: Array) -> Array:
        """Return the weights (F, C/G, KH, KW) as (G, F/G, K) in the order of the columns' rows."""
        return weight_matrix(self.backend, weight, self.groups, self.stacked)

    def weight_gradient(self, total: Array) -> Array:
        """Return the gradient (G, K, F/G) of the transposed weight matrix as (F, C/G, KH, KW)."""
        kh, kw = self.windows.kernel
        if self.stacked:
            order = total.reshape(self.groups, kh, self.channels, kw, -1).transpose(0, 4, 2, 1, 3)
        else:
            order = total.reshape(self.groups, self.channels, kh, kw, -1).transpose(0, 4, 1, 2, 3)
        return self.backend.contiguous(order).reshape(-1, self.channels, kh, kw)  # (F, C/G, KH, KW)

    def lower(self, rows: range) -> Array:
        """Return the columns of a tile; good until this thread lowers the next."""
        windows, backend, x = self.windows, self.backend, self.x
        if windows.is_pointwise:
            tile = x[:, rows.start : rows.stop]  # (C, R, W, N)
            return tile.reshape(self.groups, self.channels, -1)  # (G, C/G, R*W*N)
        if windows.is_whole:
            return x.reshape(self.groups, -1, self.n)  # (G, C/G*H*W, N)
        if not self.stacked:
            shape = (x.shape[0], *windows.kernel, len(rows), windows.w.out, self.n)
            cols = backend.scratch("columns", shape, x.dtype)
            fill_columns(backend, x, windows, rows, cols)
            return cols.reshape(self.groups, -1, len(rows) * windows.w.out * self.n)  # (G, K, R*OW*N)
        needed = rows_needed(windows.h, len(rows))
        per_row = (self.channels, windows.w.kernel, windows.w.out, self.n)
        lowered = backend.scratch("columns", (self.groups, needed, *per_row), x.dtype)
        for group in range(self.groups):
            block = x[group * self.channels : (group + 1) * self.channels]
            lower_rows(backend, block, windows, rows, lowered[group])
        flat = lowered.reshape(self.groups, needed, -1, windows.w.out * self.n)  # (G, M, C/G*KW, OW*N)
        return overlapping_rows(backend, flat, len(rows), windows.h.stride, windows.h.kernel)  # (G, R, KH*C/G*KW, OW*N)

    def result(self, y: Array, rows: range) -> Array:
        """Return the view of y (F, OH, OW, N) that a tile's product fills, shaped like its columns."""
        tile = y[:, rows.start : rows.stop].reshape(self.groups, -1, len(rows), self.windows.w.out * self.n)
        return tile.transpose(0, 2, 1, 3) if self.stacked else tile.reshape(*tile.shape[:2], -1)

    def multiply(self, a: Array, b: Array, out: Array) -> None:
        """Write a @ b to `out`, as one product of two matrices where there is but one."""
        if self.groups == 1:
            a, b, out = a[0], b[0], out[0]
        self.backend.matmul(a, b, out=out)


def weight_tasks(
    backend: Any, dy: Array, x: Array, weight: Array, windows: Windows, groups: int
) -> tuple[list[Task], Callable[[], Array]]:
    """Return one task per tile for its share of dW = dY X^T, and what adds the shares up in their order."""
    if windows.is_whole and groups == 1:
        return _whole_weight_tasks(backend, dy, x, weight)
    tiles = Tiles(backend, x, windows, groups)
    steps = list(tiles)
    shares: list[Any] = [None] * len(steps)
    direct = windows.is_pointwise and groups == 1 and products.is_packed_by_blas(*weight.shape[:2])

    def tile(index: int) -> None:
        rows = steps[index]
        cols = tiles.lower(rows)
        grad = tiles.result(dy, rows)
        if direct:  # as it is wanted: a large matrix is slow to transpose
            shares[index] = backend.matmul(grad[0], cols[0].swapaxes(0, 1))  # (F, C)
            return
        if not tiles.stacked:
            cols, grad = cols[:, None], grad[:, None]  # (G, 1, K, R*OW*N), (G, 1, F/G, R*OW*N)
        shares[index] = products.outer_sum(backend, cols, grad)  # (G, K, F/G)

    def collect() -> Array:
        total = shares[0]
        for share in shares[1:]:
            backend.xp.add(total, share, out=total)
        if direct:
            return total.reshape(weight.shape)
        return tiles.weight_gradient(total)

    return [lambda i=i: tile(i) for i in range(len(steps))], collect  # type: ignore[misc]


def _whole_weight_tasks(backend: Any, dy: Array, x: Array, weight: Array) -> tuple[list[Task], Callable[[], Array]]:
    """Return one task per thread for its filters of dW = dY X^T, of windows that hold the whole image."""
    n, filters = x.shape[3], weight.shape[0]
    dweight = backend.empty(weight.shape, x.dtype)

    def block(part: range) -> None:
        grad = dy[part.start : part.stop].reshape(-1, n)  # (F_block, N)
        backend.matmul(grad, x.reshape(-1, n).T, out=dweight[part.start : part.stop].reshape(len(part), -1))

    parts = split_evenly(filters, min(filters, backend.get_num_threads()))
    return [lambda part=part: block(part) for part in parts], lambda: dweight  # type: ignore[misc]
