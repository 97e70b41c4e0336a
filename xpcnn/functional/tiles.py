"""Convolution as products over tiles: each thread lowers some output rows and multiplies them while they are hot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xpcnn.backend import Array, Backend
from xpcnn.backend.split import split_evenly
from xpcnn.functional import winograd
from xpcnn.functional.bias import add_bias
from xpcnn.functional.columns import fill_columns, lower_rows, rows_needed
from xpcnn.windows import Windows

Task = Callable[[], None]


def forward_tasks(
    backend: Backend,
    x: Array,
    weight: Array,
    bias: Array | None,
    over: Windows,
    groups: int,
    y: Array,
    factor: Array | None = None,
) -> list[Task]:
    """Return the tasks that fill y (F, OH, OW, N), one per tile of output rows; `factor` is from `weight_factor`."""
    if winograd.suits(backend, weight, over, groups, x.shape[3]):
        return winograd.forward_tasks(backend, x, weight, bias, over, y, factor)
    tiles = Tiles(backend, x, over, groups)
    matrix = tiles.weight_matrix(weight) if factor is None else factor

    def tile(rows: range) -> None:
        tiles.multiply(matrix, tiles.lower(rows), tiles.result(y, rows))
        if bias is not None:
            add_bias(backend, y[:, rows.start : rows.stop], bias)

    return [lambda rows=rows: tile(rows) for rows in tiles]  # type: ignore[misc]


def weight_factor(
    backend: Backend, weight: Array, over: Windows, groups: int, n: int
) -> tuple[str, Callable[[], Array]]:
    """Return the name of the form in which the product of `n` images takes the weights, and what makes it.

    Weights that stay the same need be brought to it but once.
    """
    if winograd.suits(backend, weight, over, groups, n):
        return "winograd", lambda: winograd.filters(backend, weight)
    stacked = stacks(backend, over)
    return "stacked" if stacked else "plain", lambda: weight_matrix(backend, weight, groups, stacked)


def stacks(backend: Backend, over: Windows) -> bool:
    """Say whether the product is a stack of matrices that share their rows in memory."""
    return backend.stacks_rows and over.h.out > 1 and over.h.stride < over.h.kernel and over.h.dilation == 1


def weight_matrix(backend: Backend, weight: Array, groups: int, stacked: bool) -> Array:
    """Return the weights (F, C/G, KH, KW) as (G, F/G, K) in the order of the columns' rows."""
    if stacked:  # rows of the input come first: (F, KH, C/G, KW)
        matrix = backend.contiguous(weight.transpose(0, 2, 1, 3))
        matrix = matrix.reshape(groups, 1, weight.shape[0] // groups, -1)  # (G, 1, F/G, KH*C/G*KW)
    else:
        matrix = backend.contiguous(weight).reshape(groups, weight.shape[0] // groups, -1)
    return backend.left_factor(matrix)


class Tiles:
    """Tiles of output rows of one convolution, and the matrices that belong to each.

    Columns are (G, K, R*OW*N), one matrix a group; or, where neighbouring rows overlap and the backend multiplies
    stacks (`stacks_rows`), the stack (G, R, K, OW*N) whose matrices share their rows in memory.
    """

    def __init__(self, backend: Backend, x: Array, over: Windows, groups: int) -> None:
        self.backend, self.x, self.over, self.groups = backend, x, over, groups
        self.channels, self.n = x.shape[0] // groups, x.shape[3]
        h = over.h
        self.stacked = stacks(backend, over)
        taps = over.w.kernel * (min(h.stride, h.kernel) if self.stacked else h.kernel)
        row_bytes = x.shape[0] * taps * over.w.out * self.n * x.dtype.itemsize
        self.rows = max(1, min(h.out, backend.column_bytes // max(1, row_bytes)))
        threads = backend.get_num_threads()
        self.rows = min(self.rows, -(-h.out // threads))

    def __iter__(self) -> Iterator[range]:
        return iter(split_evenly(self.over.h.out, -(-self.over.h.out // self.rows)))

    def weight_matrix(self, weight: Array) -> Array:
        """Return the weights (F, C/G, KH, KW) as (G, F/G, K) in the order of the columns' rows."""
        return weight_matrix(self.backend, weight, self.groups, self.stacked)

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
        if over.is_whole:
            return x.reshape(self.groups, -1, self.n)  # (G, C/G*H*W, N)
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
