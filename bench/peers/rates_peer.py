"""What NumPy itself reaches here, for the floors: the rate of its matrix product and of copies on all cores."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from peers import normal

CUBES = (1024, 2048)
COPY_SIZES = (64 * 1024, 1024 * 1024, 16 * 1024 * 1024, 128 * 1024 * 1024)  # bytes


def versions() -> dict[str, str]:
    return {"numpy": np.__version__}


def _best(call: Callable[[], Any], budget: float = 0.15, least: int = 3) -> float:
    """Median of the faster half of the calls made within `budget` seconds: a floor must not carry noise."""
    call()
    times: list[float] = []
    while len(times) < least or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(sorted(times)[: (len(times) + 1) // 2])


def gemm_rate(rows: int, inner: int, columns: int) -> float:
    """Operations per second of one float32 product on NumPy's own threads."""
    a, b = normal(0, rows, inner), normal(1, inner, columns)
    out = np.empty((rows, columns), np.float32)
    return 2 * rows * inner * columns / _best(lambda: np.matmul(a, b, out=out))


def copy_rate(size: int, threads: int) -> float:
    """Bytes read plus written per second; each thread copies its part of `size` bytes over and over."""
    repeats = max(1, 4 * 1024 * 1024 // size)
    source = normal(0, size // 4)
    target = source.copy()
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))

    def work(part: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(repeats):
            np.copyto(part[1], part[0])

    with ThreadPoolExecutor(threads) as pool:
        return 2 * size * repeats / _best(lambda: list(pool.map(work, parts)))


def rates(threads: int, products: list[list[int]]) -> dict[str, Any]:
    """The product's rate is the best of two cubes and of the workload's own largest product (columns cut at 16,384)."""
    own = [(rows, inner, min(columns, 16384)) for rows, inner, columns in products]
    gemm = {f"{m}x{k}x{n}": gemm_rate(m, k, n) for m, k, n in [(c, c, c) for c in CUBES] + own}
    return {"gemm": gemm, "copy": {str(size): copy_rate(size, threads) for size in COPY_SIZES}}
