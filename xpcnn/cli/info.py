"""`xpcnn info`: what runs here, how fast it multiplies matrices, and what would make it faster."""

from __future__ import annotations

import argparse
import contextlib
import time

_SIZE = 1024  # rows and columns: large enough for every BLAS to reach its rate
_SECONDS = 0.5


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each fact and each hint."""
    import xpcnn
    from xpcnn.backend import use_backend

    with use_backend(arguments.backend) if arguments.backend else contextlib.nullcontext():
        facts = xpcnn.info()
        rate = gemm_rate()
    hints = facts.pop("hints")
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        print(f"{name:10}  {text}")
    print(f"{'products':10}  {rate / 1e9:.0f} GFLOP/s (float32, {_SIZE} x {_SIZE})")
    for hint in hints:
        print(f"{'hint':10}  {hint}")
    return 0


def gemm_rate() -> float:
    """Return the operations per second of the active backend's matrix product, the best of half a second."""
    from xpcnn.backend import get_backend

    backend = get_backend()
    a = backend.zeros((_SIZE, _SIZE), "float32") + 1.0
    out = backend.matmul(a, a)
    backend.synchronize()
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        for _ in range(4):
            backend.matmul(a, a, out=out)
        backend.synchronize()
        best = min(best, (time.perf_counter() - start) / 4)
    return 2.0 * _SIZE**3 / best
