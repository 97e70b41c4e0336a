"""Winograd's F(4x4, 3x3): a 3x3 convolution of stride 1 with a quarter of the multiplications, as matrix products.

A tile of 6x6 pixels d gives 4x4 outputs. With B, G and A of Lavin and Gray (arXiv:1509.09308, section 4.3) and
(x) the Kronecker product, rows counting the positions in a tile:

    V = (B^T (x) B^T) D      36 rows; D are the tiles, windows of 6 by a stride of 4
    U = (G (x) G) W          36 matrices (F, C)
    M_i = U_i V_i            36 products
    Y = (A^T (x) A^T) M      16 rows, 4x4 outputs each

The adjoints give both gradients from M' = (A (x) A) dY: dU_i = M'_i V_i^T and dV_i = U_i^T M'_i. The price is a
rounding error of some 2e-6 relative in float32, ten times that of the direct product;
`xpcnn.functional.winograd.enabled` set to False keeps every convolution direct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.functional.spans import spans
from xpcnn.functional.windows import Windows

Task = Callable[[], None]
Block = tuple[range, range]  # rows of tiles, tiles of each

enabled = True
TILE, WINDOW = 4, 6
FEWEST_IMAGES = 12  # a tile is a product with as many columns; with fewer than this the direct way is faster
LINE = 16  # floats of a cache line
# Columns that a block has at least: below, products are slower, dW's more so, which sum over them.
FORWARD_COLUMNS, GRADIENT_COLUMNS = 256, 512

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


def suits(backend: Backend, weight: Array, over: Windows, groups: int, n: int) -> bool:
    """Say whether a convolution of `n` images goes this way: 3x3, stride 1, and enough channels for this backend."""
    least = backend.winograd_channels
    return (
        enabled
        and least is not None
        and min(weight.shape[:2]) >= least
        and groups == 1
        and n >= FEWEST_IMAGES
        and over.kernel == (3, 3)
        and over.stride == (1, 1)
        and over.h.dilation == over.w.dilation == 1
    )


@lru_cache(maxsize=16)
def _matrices(backend: Backend, dtype: Any) -> tuple[Array, Array, Array]:
    """Return B^T (x) B^T (36, 36), G (x) G (36, 9) and A^T (x) A^T (16, 36) on the backend."""

    def squared(m: list[list[float]]) -> Array:
        matrix = backend.asarray([[a * b for a in row for b in other] for row in m for other in m], dtype)
        return backend.constant(backend.left_factor(matrix))

    return squared(_B_T), squared(_G), squared(_A_T)


class _Plan:
    """The tiles of one convolution, cut into blocks that stay in a core's cache, and their work arrays.

    Tiles lie as (C, R, S, side, side, N): R rows of S tiles, each one contiguous piece. What is multiplied lies as
    (36, C, R*S*N), one matrix a position.
    """

    def __init__(self, backend: Backend, over: Windows, channels: int, filters: int, n: int, dtype: Any) -> None:
        self.backend, self.n, self.dtype = backend, n, dtype
        axes = over.h, over.w
        self.inputs = [_Tiles(axis.size, axis.before, WINDOW, -(-axis.out // TILE)) for axis in axes]
        self.outputs = [_Tiles(axis.out, 0, TILE, -(-axis.out // TILE)) for axis in axes]
        self.tile_bytes = WINDOW * WINDOW * max(channels, filters) * n * dtype.itemsize

    def blocks(self, least_columns: int) -> list[Block]:
        """Cut the tiles into blocks of about `column_bytes` a work array, but not below `least_columns` columns."""
        high, wide = self.inputs[0].count, self.inputs[1].count
        tiles = max(-(-least_columns // self.n), self.backend.column_bytes // self.tile_bytes)
        rows = max(1, min(tiles // wide, -(-high // self.backend.get_num_threads())))
        across = spans(wide, -(-wide // tiles))
        return [(r, s) for r in spans(high, -(-high // rows)) for s in across]

    def gather(self, image: Array, tiles: list[_Tiles], block: Block) -> Array:
        """Return the tiles of a block of image (C, H, W, N) as (C, T, 36 or 16, N), zeros beyond its edges."""
        side = tiles[0].side
        shape = (image.shape[0], len(block[0]), len(block[1]), side, side, self.n)
        out = self.backend.scratch("tiles", shape, self.dtype)
        xp = self.backend.xp
        for tiling, part, places in zip(tiles, block, (out, out.swapaxes(1, 2).swapaxes(3, 4)), strict=True):
            for index, taps, _ in tiling.pieces(part):
                for outside in (slice(0, taps.start), slice(taps.stop, side)):
                    if outside.stop > outside.start:
                        xp.copyto(places[:, index, :, outside], 0)
        for place, pixels in self._pairs(out, image, tiles, block):
            xp.copyto(place, pixels)
        return out.reshape(image.shape[0], -1, side * side, self.n)  # (C, T, side*side, N)

    def put(self, out: Array, image: Array, block: Block) -> None:
        """Write the output tiles of a block, out (F, T, 16, N), to their places in image (F, OH, OW, N)."""
        shape = (image.shape[0], len(block[0]), len(block[1]), TILE, TILE, self.n)
        for place, pixels in self._pairs(out.reshape(shape), image, self.outputs, block):
            self.backend.xp.copyto(pixels, place)

    def _pairs(self, out: Array, image: Array, tiles: list[_Tiles], block: Block) -> Iterator[tuple[Array, Array]]:
        """Yield parts of the tiles (C, R, S, side, side, N) with the view of the image that they cover."""
        for rows, down, top in tiles[0].pieces(block[0]):
            for columns, along, left in tiles[1].pieces(block[1]):
                if not down.stop or not along.stop:  # wholly outside
                    continue
                place = out[:, rows, columns, down, along]
                yield place, self.backend.tiles_view(image, top, left, place.shape[1:5], TILE)

    def scratch(self, slot: str, rows: int, channels: int, block: Block) -> Array:
        """Return a work array (rows, channels, R*S*N) whose strides are no multiples of a page.

        Rows that lie whole pages apart would share a few sets of the cache and push each other out.
        """
        columns = len(block[0]) * len(block[1]) * self.n
        padded = columns + LINE
        whole = self.backend.scratch(slot, (rows, channels * padded + LINE), self.dtype)
        return whole[:, : channels * padded].reshape(rows, channels, padded)[..., :columns]

    def by_tile(self, matrices: Array) -> Array:
        """Return work arrays (rows, C, T*N) as a view (C, T, rows, N)."""
        rows, channels, _ = matrices.shape
        return matrices.reshape(rows, channels, -1, self.n).transpose(1, 2, 0, 3)


@dataclass(frozen=True)
class _Tiles:
    """Tiles of `side` pixels along one axis of an image, one every four pixels, the first `before` outside of it."""

    size: int
    before: int
    side: int
    count: int

    def pieces(self, part: range) -> list[tuple[slice, slice, int]]:
        """Return which neighbouring tiles of `part` meet the image with the same taps, perhaps none, and where."""
        found: list[tuple[int, int, int]] = []  # first tile, first tap, last tap
        for tile in part:
            first = TILE * tile - self.before
            taps = max(0, -first), min(self.side, self.size - first)
            if taps[0] >= taps[1]:
                taps = 0, 0
            if not found or found[-1][1:] != taps:
                found.append((tile, *taps))
        ends = [tile for tile, _, _ in found[1:]] + [part.stop]
        return [
            (slice(tile - part.start, end - part.start), slice(low, high), TILE * tile - self.before + low)
            for (tile, low, high), end in zip(found, ends, strict=True)
        ]


def filters(backend: Backend, weight: Array) -> Array:
    """Return U = (G (x) G) W as (36, F, C)."""
    f, c = weight.shape[:2]
    g = _matrices(backend.home, weight.dtype)[1]
    taps = backend.contiguous(weight.transpose(2, 3, 1, 0)).reshape(9, -1)  # (9, C*F)
    return backend.matmul(g, taps).reshape(WINDOW * WINDOW, c, f).swapaxes(1, 2)  # as `left_factor`


def forward_tasks(
    backend: Backend,
    x: Array,
    weight: Array,
    bias: Array | None,
    over: Windows,
    y: Array,
    factor: Array | None = None,
) -> list[Task]:
    """Return the tasks that fill y (F, OH, OW, N) from x (C, H, W, N); `factor` is `filters(weight)`."""
    f, c = weight.shape[:2]
    plan = _Plan(backend, over, c, f, x.shape[3], x.dtype)
    b, _, a = _matrices(backend.home, x.dtype)
    u = filters(backend, weight) if factor is None else factor

    def task(block: Block) -> None:
        d = plan.gather(x, plan.inputs, block)  # (C, T, 36, N)
        v = plan.scratch("v", 36, c, block)
        backend.matmul(b, d, out=plan.by_tile(v))
        m = backend.matmul(u, v, out=plan.scratch("m", 36, f, block))
        by_tile = plan.by_tile(m)  # (F, T, 36, N)
        tiles = backend.scratch("tiles", (*by_tile.shape[:2], 16, plan.n), x.dtype)
        backend.matmul(a, by_tile, out=tiles)
        if bias is not None:
            backend.xp.add(tiles, bias.reshape(-1, 1, 1, 1), out=tiles)
        plan.put(tiles, y, block)

    return [lambda block=block: task(block) for block in plan.blocks(FORWARD_COLUMNS)]  # type: ignore[misc]


def weight_tasks(
    backend: Backend, dy: Array, x: Array, weight: Array, over: Windows
) -> tuple[list[Task], Callable[[], Array]]:
    """Return the tasks that share the work on dW out, and what adds their shares up in order: (F, C, 3, 3)."""
    f, c = weight.shape[:2]
    plan = _Plan(backend, over, c, f, x.shape[3], x.dtype)
    b, g, a = _matrices(backend.home, x.dtype)
    spread = backend.left_factor(a.T)
    blocks = plan.blocks(GRADIENT_COLUMNS)
    shares: list[Array] = [None] * len(blocks)

    def task(index: int) -> None:
        block = blocks[index]
        d = plan.gather(x, plan.inputs, block)  # (C, T, 36, N)
        v = plan.scratch("v", 36, c, block)
        backend.matmul(b, d, out=plan.by_tile(v))
        e = plan.gather(dy, plan.outputs, block)  # (F, T, 16, N)
        m = plan.scratch("m", 36, f, block)
        backend.matmul(spread, e, out=plan.by_tile(m))
        shares[index] = backend.outer_sum(m[:, None], v[:, None])  # (36, F, C)

    def collect() -> Array:
        total = shares[0]
        for share in shares[1:]:
            backend.xp.add(total, share, out=total)
        dw = backend.matmul(g.T, total.reshape(36, -1)).reshape(3, 3, f, c)
        return backend.contiguous(dw.transpose(2, 3, 0, 1))  # (F, C, 3, 3)

    return [lambda i=i: task(i) for i in range(len(blocks))], collect  # type: ignore[misc]
