"""Winograd's F(4x4, 3x3): a 3x3 convolution of stride 1 with a quarter of the multiplications, as matrix products.

A tile d of 6x6 pixels and a filter w give 4x4 outputs. With B, G and A of Lavin and Gray (arXiv:1509.09308, section
4.3), and i for one of the 36 positions in a tile:

    V = B^T d B        U = G w G^T        M_i = U_i V_i, matrices over channels and tiles        Y = A^T M A

The gradient by the image is such a convolution of dY with turned filters. Its V, of windows of dY, gives that by the
filters too: F(3x3, 4x4), the correlation of those windows with tiles x of the image: X = A x A^T, dU_i = X_i V_i^T.

B^T d is a product for whole strips of six image rows, which neighbouring tiles share. The price is a rounding error ten
times that of the direct product: in float32 up to 3e-5 of a usual output, and at most 5e-4 of one from a pixel that it
does not see, however large that is (`mending.py`). `xpcnn.set_winograd(False)` keeps every convolution direct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from xpcnn.backend.numpy import products
from xpcnn.backend.numpy.convolution.lowering import windows_view
from xpcnn.backend.numpy.convolution.mending import Probe, mend_outputs, mend_weight_gradient
from xpcnn.backend.split import split_evenly
from xpcnn.windows import Windows

Array = Any
Task = Callable[[], None]
Block = tuple[range, range]  # rows of tiles, tiles of each

TILE, WINDOW = 4, 6
# From this many input and output channels on, fewer multiplications outweigh the transforms (measured:
# `python bench/run.py conv-64x14 densenet40`).
FEWEST_CHANNELS = 12
FEWEST_IMAGES = 12  # a tile is a product with as many columns; with fewer than this the direct way is faster
LINE = 16  # floats of a cache line
COLUMNS = 512  # that a block has at least: with fewer, products are slower, dW's more so, which sum over them

# Where tiles are probed: the corners see a quarter each of a window, the position next to one a whole tile.
CORNERS: tuple[tuple[int, ...], slice] = (0, 5), slice(0, 6, 5)
CENTRE: tuple[tuple[int, ...], slice] = (1,), slice(1, 2)

_B_T: list[list[float]] = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G: list[list[float]] = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_A_T: list[list[float]] = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def suits(backend: Any, weight: Array, windows: Windows, groups: int, n: int) -> bool:
    """Say whether a convolution of `n` images goes this way: 3x3, stride 1, and enough channels and images."""
    return (
        weight.shape[0] >= FEWEST_CHANNELS
        and weight.shape[1] >= FEWEST_CHANNELS
        and backend.winograd
        and groups == 1
        and n >= FEWEST_IMAGES
        and windows.kernel == (3, 3)
        and windows.stride == (1, 1)
        and windows.h.dilation == windows.w.dilation == 1
    )


@lru_cache(maxsize=16)
def _matrices(backend: Any, dtype: Any) -> tuple[Array, Array, Array, Array]:
    """Return B^T (6, 6), A (6, 4), A^T (4, 6) and G (x) G (36, 9) on the backend."""

    def matrix(rows: list[list[float]]) -> Array:
        return backend.constant(products.pack_lhs(backend, backend.asarray(rows, dtype)))

    a = [list(column) for column in zip(*_A_T, strict=True)]
    g = [[p * q for p in row for q in other] for row in _G for other in _G]
    return matrix(_B_T), matrix(a), matrix(_A_T), matrix(g)


class _Tiling:
    """The tiles of one convolution, cut into blocks of R rows of S tiles that stay in a core's cache.

    What is multiplied lies as (36, C, R*S*N), one matrix a position.
    """

    def __init__(self, backend: Any, windows: Windows, channels: int, filters: int, n: int, dtype: Any) -> None:
        self.backend, self.n, self.dtype = backend, n, dtype
        self.inputs = [_Tiles(axis.size, axis.before, WINDOW, -(-axis.out // TILE)) for axis in (windows.h, windows.w)]
        self.outputs = [_Tiles(axis.out, 0, TILE, -(-axis.out // TILE)) for axis in (windows.h, windows.w)]
        self.tile_bytes = WINDOW * WINDOW * (channels + filters) // 2 * n * dtype.itemsize
        # With twice as much, what one step leaves is out of the cache before the next reads it: 32x64x56x56 takes 1.06
        # times as long, a step of `deep3` with 32 images 1.05, others the same.
        self.room = backend.slab_bytes or backend.column_bytes

    def blocks(self) -> list[Block]:
        """Cut the tiles into blocks whose work arrays take about `self.room` each, but not below `COLUMNS` columns."""
        high, wide = self.inputs[0].count, self.inputs[1].count
        tiles = max(-(-COLUMNS // self.n), self.room // self.tile_bytes)
        rows = max(1, min(tiles // wide, -(-high // self.backend.get_num_threads())))
        across = split_evenly(wide, -(-wide // tiles))
        return [(r, s) for r in split_evenly(high, -(-high // rows)) for s in across]

    def first(self, blocks: list[Block], index: int) -> int:
        """Return how many tiles, times N, lie in the blocks before one."""
        return sum(len(rows) * len(columns) for rows, columns in blocks[:index]) * self.n

    def probe(self, positions: tuple[tuple[int, ...], slice], channels: int) -> Probe:
        """Return a probe of all tiles."""
        total = self.inputs[0].count * self.inputs[1].count * self.n
        return Probe(self.backend, *positions, channels, total, self.dtype)

    def parts(self, block: Block) -> list[tuple[slice, slice]]:
        """Cut the six rows of positions where a block is large for the cache; return those rows and their positions."""
        size = self.tile_bytes * len(block[0]) * len(block[1])
        rows = next((rows for rows in (6, 3, 2) if size * rows <= 6 * self.room), 1)
        return [(slice(i, i + rows), slice(6 * i, 6 * (i + rows))) for i in range(0, 6, rows)]

    def strips(self, matrix: Array, image: Array, tiles: list[_Tiles], block: Block, slot: str) -> Array:
        """Return matrix d for all tiles d of a block of image (C, H, W, N), zero beyond its edges: (C, R, P, X, N).

        P is 6, or fewer where `matrix` has fewer rows.
        """
        down, along = tiles
        rows, columns = block
        left, width = TILE * columns.start - along.before, TILE * (len(columns) - 1) + along.side
        low, high = max(0, -left), max(0, min(width, along.size - left))
        shape = image.shape[0], len(rows), matrix.shape[0], width, self.n
        if low or high < width:  # beyond the edges nothing is ever written
            strips = self.backend.bordered((slot, shape, low, high), shape, self.dtype)
        else:
            strips = self.backend.scratch(slot, shape, self.dtype)
        if low < high:
            for index, taps, top in _pieces(down, rows):
                part = strips[:, index, :, low:high]  # (C, R', P, X, N)
                if taps.stop:
                    lines = self._lines(image, top, part.shape[1], taps, left + low, left + high)  # (C, R', taps, X*N)
                    self.backend.matmul(matrix[:, taps], lines, out=_rows(part))
                else:
                    self.backend.xp.copyto(part, 0)
        return strips

    def positions(self, matrix: Array, strips: Array, side: int, block: Block, part: slice, slot: str) -> Array:
        """Return d matrix^T for the tiles d, `side` pixels wide, in `part` of the strips: (6*part, C, R*S*N)."""
        windows = windows_view(self.backend, strips[:, :, part], 3, len(block[1]), side, TILE)  # (C, R, P, S, side, N)
        out = self.scratch(slot, WINDOW * windows.shape[2], strips.shape[0], block)
        self.backend.matmul(matrix, windows, out=self._by_strip(out, block))
        return out

    def collect(self, matrix: Array, m: Array, strips: Array, block: Block, part: slice) -> None:
        """Write m matrix^T for the products m (6*part, F, R*S*N) to `part` of the strips (F, R, 6, 4*S, N)."""
        place = strips[:, :, part]
        place = place.reshape(*place.shape[:3], len(block[1]), TILE, self.n)  # (F, R, P, S, 4, N)
        self.backend.matmul(matrix, self._by_strip(m, block), out=place)

    def write(self, matrix: Array, strips: Array, image: Array, block: Block) -> None:
        """Write matrix s, the outputs of the strips s of a block, to their places in image (F, OH, OW, N)."""
        down, along = self.outputs
        rows, columns = block
        left, right = TILE * columns.start, min(along.size, TILE * columns.stop)
        for index, taps, top in _pieces(down, rows):
            part = _rows(strips[:, index, :, : right - left])  # (F, R', 6, X*N)
            self.backend.matmul(matrix[taps], part, out=self._lines(image, top, part.shape[1], taps, left, right))

    def _lines(self, image: Array, top: int, count: int, taps: slice, left: int, right: int) -> Array:
        """Return the view (C, count, taps, X*N) of image rows, a strip beginning every four from `top` on."""
        lines = image[:, top:, left:right]
        return _rows(windows_view(self.backend, lines, 1, count, taps.stop - taps.start, TILE))

    def _by_strip(self, matrices: Array, block: Block) -> Array:
        """Return (6*P, C, R*S*N) as a view (C, R, P, S, 6, N)."""
        shape = -1, WINDOW, matrices.shape[1], len(block[0]), len(block[1]), self.n
        return matrices.reshape(shape).transpose(2, 3, 0, 4, 1, 5)

    def scratch(self, slot: str, rows: int, channels: int, block: Block) -> Array:
        """Return a work array (rows, channels, R*S*N) whose strides are no multiples of a page.

        Rows that lie whole pages apart would share a few sets of the cache and push each other out.
        """
        columns = len(block[0]) * len(block[1]) * self.n
        padded = columns + LINE
        whole = self.backend.scratch(slot, (rows, channels * padded + LINE), self.dtype)
        return whole[:, : channels * padded].reshape(rows, channels, padded)[..., :columns]


def _rows(lines: Array) -> Array:
    """Return lines (..., X, N) as a view (..., X*N)."""
    return lines.reshape(*lines.shape[:-2], -1)


@dataclass(frozen=True)
class _Tiles:
    """Tiles of `side` pixels along one axis of an image, one every four pixels, the first `before` outside of it."""

    size: int
    before: int
    side: int
    count: int


@lru_cache(maxsize=256)
def _pieces(tiles: _Tiles, part: range) -> Sequence[tuple[slice, slice, int]]:
    """Return which neighbouring tiles of `part` meet the image with the same taps, perhaps none, and where."""
    found: list[tuple[int, int, int]] = []  # first tile, first tap, last tap
    for tile in part:
        first = TILE * tile - tiles.before
        taps = max(0, -first), min(tiles.side, tiles.size - first)
        if taps[0] >= taps[1]:
            taps = 0, 0
        if not found or found[-1][1:] != taps:
            found.append((tile, *taps))
    ends = [tile for tile, _, _ in found[1:]] + [part.stop]
    return [
        (slice(tile - part.start, end - part.start), slice(low, high), TILE * tile - tiles.before + low)
        for (tile, low, high), end in zip(found, ends, strict=True)
    ]


def filters(backend: Any, weight: Array) -> Array:
    """Return U = (G (x) G) W as (36, F, C)."""
    f, c = weight.shape[:2]
    g = _matrices(backend.home, weight.dtype)[3]
    u = backend.empty((WINDOW * WINDOW, c, f), weight.dtype)

    def part(channels: slice) -> None:
        taps = backend.contiguous(weight[:, channels].transpose(2, 3, 1, 0)).reshape(9, -1)  # (9, C'*F)
        backend.matmul(g, taps, out=u[:, channels].reshape(WINDOW * WINDOW, -1))

    _share_channels(backend, part, c, f)
    return u.swapaxes(1, 2)  # as `pack_lhs`


def _filter_gradient(backend: Any, shares: list[Array], dtype: Any) -> Array:
    """Return dW (F, C, 3, 3), turned by half a turn, from the shares (36, C, F) of dU, added up in their order."""
    _, c, f = shares[0].shape
    g = _matrices(backend.home, dtype)[3]
    dw = backend.empty((f, c, 3, 3), dtype)

    def part(channels: slice) -> None:
        total = shares[0][:, channels]
        for share in shares[1:]:
            backend.xp.add(total, share[:, channels], out=total)
        taps = backend.matmul(g.T, total.reshape(WINDOW * WINDOW, -1)).reshape(3, 3, -1, f)  # (3, 3, C', F)
        backend.xp.copyto(dw[:, channels], taps[::-1, ::-1].transpose(3, 2, 0, 1))

    _share_channels(backend, part, c, f)
    return dw


def _share_channels(backend: Any, part: Callable[[slice], None], c: int, f: int) -> None:
    """Share out what is done with (36, 9) and each of C*F filters, by channels."""
    parts = [slice(each.start, each.stop) for each in split_evenly(c, backend.get_num_threads())]
    backend.parallel(part, parts, 50.0 * c * f)


def forward_tasks(
    backend: Any,
    x: Array,
    weight: Array,
    bias: Array | None,
    windows: Windows,
    y: Array,
    factor: Array | None = None,
    turned: bool = False,
) -> tuple[list[Task], Task]:
    """Return the tasks that fill y (F, OH, OW, N) from x (C, H, W, N), and what is to be done after them.

    `factor` is `filters(weight)`. A `turned` weight is that of a convolution whose dX is y.
    """
    taps = weight.swapaxes(0, 1)[..., ::-1, ::-1] if turned else weight
    f, c = taps.shape[:2]
    tiling = _Tiling(backend, windows, c, f, x.shape[3], x.dtype)
    b, _, a, _ = _matrices(backend.home, x.dtype)
    u = filters(backend, taps) if factor is None else factor
    probe = tiling.probe(CORNERS, c)
    blocks = tiling.blocks()

    def task(index: int) -> None:
        block = blocks[index]
        strips = tiling.strips(b, x, tiling.inputs, block, "strips")
        shape = f, len(block[0]), WINDOW, TILE * len(block[1]), tiling.n
        results = backend.scratch("results", shape, x.dtype)
        for part, rows in tiling.parts(block):
            v = tiling.positions(b, strips, WINDOW, block, part, "v")
            probe.look(v, part, tiling.first(blocks, index))
            m = backend.matmul(u[rows], v, out=tiling.scratch("m", v.shape[0], f, block))
            tiling.collect(a, m, results, block, part)
        tiling.write(a, results, y, block)
        if bias is not None:
            rows, columns = (slice(TILE * part.start, TILE * part.stop) for part in block)
            place = y[:, rows, columns]
            backend.xp.add(place, bias.reshape(-1, 1, 1, 1), out=place)

    def mend() -> None:
        backend.call(mend_outputs, probe.values, x, weight, bias, y, windows, turned)

    return [lambda i=i: _quietly(task, i) for i in range(len(blocks))], mend  # type: ignore[misc]


def quiet() -> Any:
    """Return a context for what computes with an inf times the transforms' zeros; what comes of it is mended."""
    return np.errstate(over="ignore", invalid="ignore")


def _quietly(task: Callable[[int], None], index: int) -> None:
    with quiet():  # in each thread of the pool
        task(index)


def gradient_tasks(
    backend: Any, dy: Array, x: Array, weight: Array, windows: Windows, turned: Windows, dx: Array | None
) -> tuple[list[Task], Callable[[], Array]]:
    """Return the tasks that fill dx (C, H, W, N), where it is given, and share the work on dW out.

    `turned` are the transposed windows. The second result adds the shares of dW (F, C, 3, 3) up in their order.
    """
    f, c = weight.shape[:2]
    tiling = _Tiling(backend, turned, f, c, x.shape[3], x.dtype)
    b, a, a_t, _ = _matrices(backend.home, x.dtype)
    u = filters(backend, weight.swapaxes(0, 1)[..., ::-1, ::-1]) if dx is not None else None  # (36, C, F)
    blocks = tiling.blocks()
    shares: list[Array] = [None] * len(blocks)
    probe, x_probe = tiling.probe(CORNERS, f), tiling.probe(CENTRE, c)

    def task(index: int) -> None:
        block, first = blocks[index], tiling.first(blocks, index)
        strips = tiling.strips(b, dy, tiling.inputs, block, "strips")  # (F, R, 6, 4*S+2, N)
        shape = c, len(block[0]), WINDOW, TILE * len(block[1]), tiling.n
        results = backend.scratch("results", shape, x.dtype) if u is not None else None
        share = backend.empty((WINDOW * WINDOW, c, f), x.dtype)
        for part, rows in tiling.parts(block):
            v = tiling.positions(b, strips, WINDOW, block, part, "v")  # (6*P, F, R*S*N)
            probe.look(v, part, first)
            if u is not None:
                m = backend.matmul(u[rows], v, out=tiling.scratch("m", v.shape[0], c, block))
                tiling.collect(a_t, m, results, block, part)
            tiles = tiling.strips(a[part], x, tiling.outputs, block, "tiles")  # (C, R, P, 4*S, N)
            m = tiling.positions(a, tiles, TILE, block, slice(None), "m")  # (6*P, C, R*S*N)
            x_probe.look(m, part, first)
            products.outer_sum(backend, m[:, None], v[:, None], out=share[rows])
        if u is not None:
            tiling.write(a_t, results, dx, block)
        shares[index] = share

    def collect() -> Array:
        if dx is not None:
            backend.call(mend_outputs, probe.values, dy, weight, None, dx, turned, True)
        dweight = _filter_gradient(backend, shares, x.dtype)
        backend.call(mend_weight_gradient, probe.values, x_probe.values, dy, x, dweight, windows)
        return dweight

    return [lambda i=i: _quietly(task, i) for i in range(len(blocks))], collect  # type: ignore[misc]
