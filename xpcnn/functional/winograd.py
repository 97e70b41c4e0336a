"""Winograd's F(4x4, 3x3): a 3x3 convolution of stride 1 with a quarter of the multiplications, as matrix products.

A tile of 6x6 pixels d gives 4x4 outputs. With B, G and A of Lavin and Gray (arXiv:1509.09308, section 4.3) and
(x) the Kronecker product, rows counting the positions in a tile:

    V = (B^T (x) B^T) D      36 rows; D are the tiles, im2col with window 6 and stride 4
    U = (G (x) G) W          36 matrices (F, C)
    M_i = U_i V_i            36 products
    Y = (A^T (x) A^T) M      16 rows, 4x4 outputs each

The adjoints give both gradients from M' = (A (x) A) dY: dU_i = M'_i V_i^T and dV_i = U_i^T M'_i. The price is a
rounding error of some 2e-6 relative in float32, ten times that of the direct product;
`xpcnn.functional.winograd.enabled` set to False keeps every convolution direct.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.functional.columns import fill_columns
from xpcnn.functional.spans import spans
from xpcnn.functional.windows import Axis, Windows

Task = Callable[[], None]

enabled = True
TILE, WINDOW = 4, 6

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


def suits(backend: Backend, weight: Array, over: Windows, groups: int) -> bool:
    """Say whether this convolution goes this way: 3x3, stride 1, and enough channels for this backend."""
    least = backend.winograd_channels
    return (
        enabled
        and least is not None
        and min(weight.shape[:2]) >= least
        and groups == 1
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
    """The tiles of one convolution: which rows of tiles a task takes, and copies between tiles and images."""

    def __init__(self, backend: Backend, over: Windows, channels: int, filters: int, n: int, dtype: Any) -> None:
        self.backend, self.over, self.n, self.dtype = backend, over, n, dtype
        self.channels, self.filters = channels, filters
        self.high, self.wide = -(-over.h.out // TILE), -(-over.w.out // TILE)
        row_bytes = WINDOW * WINDOW * max(channels, filters) * self.wide * n * dtype.itemsize
        # V and M of a task together should stay near the cache, but a product wants some hundreds of columns.
        rows = max(1, backend.column_bytes // row_bytes)
        rows = min(rows, -(-self.high // backend.get_num_threads()))
        self.steps = spans(self.high, -(-self.high // rows))
        self.inputs = Windows(*(_tiles(axis.size, WINDOW, axis.before, axis.out) for axis in (over.h, over.w)))
        self.outputs = Windows(*(_tiles(axis.out, TILE, 0, axis.out) for axis in (over.h, over.w)))

    def gather(self, image: Array, rows: range, tiles: Windows, slot: str) -> Array:
        """Return the tiles of `rows` as (36 or 16, C, R, wide, N), by im2col."""
        kh, kw = tiles.kernel
        shape = (kh, kw, image.shape[0], len(rows), self.wide, self.n)
        cols = self.backend.scratch(slot, shape, self.dtype)
        fill_columns(self.backend, image, tiles, rows, cols.transpose(2, 0, 1, 3, 4, 5))
        return cols.reshape(kh * kw, *shape[2:])

    def put(self, tiles: Array, image: Array, rows: range) -> None:
        """Write output tiles (16, F, R, wide, N) to their places in image (F, OH, OW, N)."""
        f, high, wide = image.shape[0], TILE * len(rows), TILE * self.wide
        whole = image[:, TILE * rows.start : TILE * rows.stop]  # (F, rows of pixels, OW, N)
        exact = whole.shape[1:3] == (high, wide)
        block = whole if exact else self.backend.scratch("block", (f, high, wide, self.n), self.dtype)
        places = block.reshape(f, len(rows), TILE, self.wide, TILE, self.n).transpose(2, 4, 0, 1, 3, 5)
        self.backend.xp.copyto(places, tiles.reshape(places.shape))  # (4, 4, F, R, wide, N)
        if not exact:
            self.backend.xp.copyto(whole, block[:, : whole.shape[1], : whole.shape[2]])

    def scratch(self, slot: str, rows: int, channels: int, tiles: range) -> Array:
        return self.backend.scratch(slot, (rows, channels, len(tiles) * self.wide * self.n), self.dtype)

    def transform(self, matrix: Array, tiles: Array, out: Array) -> Array:
        """Write `matrix` times the tiles' positions to `out` (positions, C, R*wide*N)."""
        rows = tiles.shape[0]
        self.backend.matmul(matrix, tiles.reshape(rows, -1), out=out.reshape(out.shape[0], -1))
        return out


def _tiles(size: int, side: int, before: int, out: int) -> Axis:
    """Return the windows of `side` pixels, one every four outputs."""
    return Axis(size, side, TILE, 1, before, 0, -(-out // TILE))


def _filters(backend: Backend, weight: Array) -> Array:
    """Return U = (G (x) G) W as (36, F, C)."""
    f, c = weight.shape[:2]
    g = _matrices(backend.home, weight.dtype)[1]
    taps = backend.contiguous(weight.transpose(2, 3, 1, 0)).reshape(9, -1)  # (9, C*F)
    return backend.matmul(g, taps).reshape(WINDOW * WINDOW, c, f).swapaxes(1, 2)  # as `left_factor`


def forward_tasks(backend: Backend, x: Array, weight: Array, bias: Array | None, over: Windows, y: Array) -> list[Task]:
    """Return the tasks that fill y (F, OH, OW, N) from x (C, H, W, N)."""
    f, c = weight.shape[:2]
    plan = _Plan(backend, over, c, f, x.shape[3], x.dtype)
    b, _, a = _matrices(backend.home, x.dtype)
    u = _filters(backend, weight)

    def task(rows: range) -> None:
        d = plan.gather(x, rows, plan.inputs, "tiles")
        v = plan.transform(b, d, plan.scratch("v", 36, c, rows))
        m = backend.matmul(u, v, out=plan.scratch("m", 36, f, rows))
        tiles = plan.transform(a, m, plan.scratch("tiles", 16, f, rows))
        if bias is not None:
            backend.xp.add(tiles, bias.reshape(-1, 1), out=tiles)
        plan.put(tiles.reshape(16, f, len(rows), plan.wide, plan.n), y, rows)

    return [lambda rows=rows: task(rows) for rows in plan.steps]  # type: ignore[misc]


def weight_tasks(
    backend: Backend, dy: Array, x: Array, weight: Array, over: Windows
) -> tuple[list[Task], Callable[[], Array]]:
    """Return the tasks that share the work on dW out, and what adds their shares up in order: (F, C, 3, 3)."""
    f, c = weight.shape[:2]
    plan = _Plan(backend, over, c, f, x.shape[3], x.dtype)
    b, g, a = _matrices(backend.home, x.dtype)
    shares: list[Array] = [None] * len(plan.steps)

    def task(index: int) -> None:
        rows = plan.steps[index]
        d = plan.gather(x, rows, plan.inputs, "tiles")
        v = plan.transform(b, d, plan.scratch("v", 36, c, rows))
        e = plan.gather(dy, rows, plan.outputs, "tiles")
        m = plan.transform(backend.left_factor(a.T), e, plan.scratch("m", 36, f, rows))
        shares[index] = backend.outer_sum(m[:, None], v[:, None])  # (36, F, C)

    def collect() -> Array:
        total = shares[0]
        for share in shares[1:]:
            backend.xp.add(total, share, out=total)
        dw = backend.matmul(g.T, total.reshape(36, -1)).reshape(3, 3, f, c)
        return backend.contiguous(dw.transpose(2, 3, 0, 1))  # (F, C, 3, 3)

    return [lambda i=i: task(i) for i in range(len(plan.steps))], collect  # type: ignore[misc]
