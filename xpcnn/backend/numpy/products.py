"""Matrix products cut into pieces that OpenBLAS multiplies as they lie in memory.

A product of more than a million multiply-adds is packed first: OpenBLAS copies both factors into panels, which takes
longer than the multiplying where one of them is as thin as the filters of a small network. On processors with
AVX-512 it has kernels for small matrices that do without. `pytest bench/test_products.py` measures what pieces for
those gain: 1.2 to 1.9 times (Xeon with AVX-512). They read memory as it lies, so arrays begin with a cache line
(`memory.aligned`): 16 bytes off, half of that gain is gone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

SMALL = 1_000_000  # multiply-adds: sgemm_small_kernel_permit of OpenBLAS 0.3.17 and later
SMALL_OUTER = 1200  # elements of a result a @ b.T, for the same kernels
KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")  # OpenBLAS builds that have them
WIDTH = 16  # floats of an AVX-512 register
FEWEST_ROWS = 64  # of a, from which on it pays to turn b first, so that its columns lie in pieces


def _divisor(n: int, most: int, multiple: int = 1) -> int:
    """Return the largest divisor of `n` up to `most` that is a multiple of `multiple`, or 0."""
    return next((d for d in range(min(n, most) // multiple * multiple, 0, -multiple) if n % d == 0), 0)


@lru_cache(maxsize=1024)
def column_piece(m: int, k: int, n: int) -> int:
    """Return how many columns of b to multiply at once in a (m, k) @ b (k, n); 0 for all."""
    if m * k * n <= SMALL or m * k * 48 > SMALL or m < 4:
        return 0
    piece = _divisor(n, min(512, SMALL // (m * k)), WIDTH)
    return piece if piece >= 48 else 0


def column_pieces(a: Any, b: Any, out: Any, piece: int) -> tuple[Any, Any, Any]:
    """Return views of a (..., M, K), b (..., K, N) and out (..., M, N) that are stacks of pieces of `piece` columns."""
    pieces = b.shape[-1] // piece
    b = b.reshape(*b.shape[:-1], pieces, piece).swapaxes(-2, -3)  # (..., P, K, piece)
    out = out.reshape(*out.shape[:-1], pieces, piece).swapaxes(-2, -3)  # (..., P, M, piece)
    return a[..., None, :, :], b, out


@lru_cache(maxsize=1024)
def row_piece(m: int, k: int, n: int) -> int:
    """Return how many rows of a to multiply at once in a (m, k) @ b (k, n), which has few columns; 0 for all."""
    if m * k * n <= SMALL or n > 64 or WIDTH * k * n > SMALL:
        return 0
    return _divisor(m, min(64, SMALL // (k * n)), WIDTH)


def row_pieces(a: Any, b: Any, out: Any, piece: int) -> tuple[Any, Any, Any]:
    """Return views of a (..., M, K), b (..., K, N) and out (..., M, N) that are stacks of pieces of `piece` rows."""
    pieces = a.shape[-2] // piece
    a = a.reshape(*a.shape[:-2], pieces, piece, a.shape[-1])  # (..., P, piece, K)
    out = out.reshape(*out.shape[:-2], pieces, piece, out.shape[-1])  # (..., P, piece, N)
    return a, b[..., None, :, :], out


@lru_cache(maxsize=1024)
def outer_piece(k: int, f: int, n: int) -> tuple[int, int, int] | None:
    """Return (rows of a, rows of b, columns) to multiply at once in a (k, n) @ b (f, n)^T; None for all."""
    if (k * f <= SMALL_OUTER and k * f * n <= SMALL) or k * f >= 128 * 256:
        return None
    rows = _divisor(k, 16)
    if rows < 8:
        rows = next((d for d in range(17, 37) if k % d == 0), 0)
    filters = _divisor(f, min(64, SMALL_OUTER // max(1, rows)))
    columns = _divisor(n, min(1024, SMALL // max(1, rows * filters)), WIDTH)
    return (rows, filters, columns) if rows and filters >= 4 and columns >= 128 else None


def outer_pieces(a: Any, b: Any, piece: tuple[int, int, int]) -> tuple[Any, Any]:
    """Return views of a (G, R, K, N) and b (G, R, F, N) whose stacked product is (G, R, P, K', F', k, f)."""
    rows, filters, columns = piece
    g, r, k, n = a.shape
    f = b.shape[2]
    a = a.reshape(g, r, k // rows, rows, n // columns, columns)
    b = b.reshape(g, r, f // filters, filters, n // columns, columns)
    return a.transpose(0, 1, 4, 2, 3, 5)[:, :, :, :, None], b.transpose(0, 1, 4, 2, 5, 3)[:, :, :, None]


def outer_place(out: Any, piece: tuple[int, int, int]) -> Any:
    """Return out (G, K, F) as a view (G, K', F', k, f) of what the pieces give."""
    rows, filters, _ = piece
    g, k, f = out.shape
    return out.reshape(g, k // rows, rows, f // filters, filters).transpose(0, 1, 3, 2, 4)


def outer_sum(backend: Any, a: Any, b: Any, out: Any = None) -> Any:
    """Return the sum over R of a (G, R, K, N) times the transpose of b (G, R, F, N): (G, K, F).

    `out`, where given, is C-contiguous and takes it.
    """
    piece = outer_piece(a.shape[2], b.shape[2], a.shape[3]) if backend.multiplies_pieces(a.dtype) else None
    if piece is None:
        return _whole_outer_sum(backend, a, b, out)
    left, right = outer_pieces(a, b, piece)
    shape = (*left.shape[:4], right.shape[4], left.shape[-2], right.shape[-1])  # (G, R, P, K', F', k, f)
    if out is None:
        out = backend.empty((a.shape[0], a.shape[2], b.shape[2]), a.dtype)
    place = outer_place(out, piece)  # (G, K', F', k, f)
    with backend.blas.single():
        if shape[1] * shape[2] == 1:  # nothing to add up
            backend.xp.matmul(left[:, 0, 0], right[:, 0, 0], out=place)
            return out
        parts = backend.scratch("parts", shape, a.dtype)
        backend.xp.matmul(left, right, out=parts)
    backend.xp.sum(parts.reshape(shape[0], -1, *shape[3:]), axis=1, out=place)
    return out


def _whole_outer_sum(backend: Any, a: Any, b: Any, out: Any) -> Any:
    if a.shape[:2] == (1, 1):  # two matrices: BLAS takes them as they lie
        total = backend.matmul(a[0, 0], b[0, 0].swapaxes(0, 1), out=None if out is None else out[0])
        return total[None] if out is None else out
    if a.shape[1] == 1:
        return backend.matmul(a[:, 0], b[:, 0].swapaxes(-1, -2), out=out)
    return backend.xp.sum(backend.matmul(a, b.swapaxes(-1, -2)), axis=1, out=out)


def is_packed_by_blas(m: int, k: int) -> bool:
    """Say whether OpenBLAS packs a factor (m, k) of any product with 16 columns or more."""
    return m * k * WIDTH > SMALL


def pack_lhs(backend: Any, a: Any) -> Any:
    """Return `a` (..., M, K) as a left factor should lie: with contiguous columns.

    OpenBLAS's kernels for small matrices are 1.1 times faster on it.
    """
    return backend.contiguous(a.swapaxes(-1, -2)).swapaxes(-1, -2)
