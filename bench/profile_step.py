"""Where the time of a step or an operation goes, call by call on one thread: `python bench/profile_step.py lenet5`.

Calls of one function over arrays of one shape make a line: milliseconds, calls, microseconds a call, GFLOP/s of a
product or GB/s of anything else (bytes of all arrays of a call). Work for several threads is counted as if one did it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import numpy as np
import workloads as w
from peers import xpcnn_peer

import xpcnn
from xpcnn.backend import get_backend
from xpcnn.backend.numpy import trace
from xpcnn.backend.numpy.calls import Bound
from xpcnn.backend.numpy.regions import Region

PRODUCTS = "matmul", "dot"


def record(workload: w.Workload) -> tuple[Bound, Any]:
    """The calls of a whole step, or of an operation both ways, and what keeps their arrays alive."""
    if workload.kind != "train":
        operation = xpcnn_peer.build(workload, "default")
        recorded: Any = get_backend().capture(operation.call)  # type: ignore[arg-type]
        return list(flat(recorded._bound)), (operation, recorded)
    step = xpcnn_peer.build(workload, "trainer")
    kept: list[trace.Graph] = []
    while not kept:
        step.call()
        kept = [each for each in gc.get_objects() if isinstance(each, trace.Graph)]
    return [call for each in kept for call in flat(each._bound)], (step, kept)


def flat(calls: Bound) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The calls of a graph and of its regions."""
    for function, arguments in calls:
        if isinstance(function, Region):
            for part in function.bound:
                yield from flat(part)
        else:
            yield function, arguments


def describe(function: Any, arguments: tuple[Any, ...]) -> tuple[str, tuple[Any, ...], float]:
    """Name, shape, and operations of a product or bytes of anything else."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    if name in PRODUCTS:
        left, right = (a if a.ndim > 1 else np.atleast_2d(a) for a in arrays[:2])
        rows, inner = left.shape[-2:]
        columns = right.shape[-1] if arrays[1].ndim > 1 else 1
        stack = int(np.prod(np.broadcast_shapes(left.shape[:-2], right.shape[:-2])))
        return name, (stack, rows, inner, columns), 2.0 * stack * rows * inner * columns
    return name, arrays[-1].shape if arrays else (), float(sum(a.nbytes for a in arrays))


def measure(calls: Bound, rounds: int) -> np.ndarray[Any, Any]:
    """Median seconds of each call."""
    times = np.zeros((rounds, len(calls)))
    with get_backend().blas.single(), np.errstate(all="ignore"):  # type: ignore[attr-defined]
        for line in times:
            for i, (function, arguments) in enumerate(calls):
                start = time.perf_counter()
                function(*arguments)
                line[i] = time.perf_counter() - start
    return np.median(times, axis=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workload", choices=[name for name, each in w.WORKLOADS.items() if each.kind != "inference"])
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    xpcnn.set_num_threads(1)
    calls, kept = record(w.WORKLOADS[options.workload])
    seconds = measure(calls, options.rounds)
    del kept
    kinds: dict[str, float] = {}
    groups: dict[tuple[str, tuple[Any, ...]], list[float]] = {}
    for call, taken in zip(calls, seconds, strict=True):
        name, shape, work = describe(*call)
        kinds[name] = kinds.get(name, 0.0) + taken
        group = groups.setdefault((name, shape), [0.0, 0.0, 0.0])
        group[0] += taken
        group[1] += 1
        group[2] += work
    print(f"{options.workload}: {seconds.sum() * 1e3:.2f} ms in {len(calls)} calls on one thread")
    print(", ".join(f"{name} {taken * 1e3:.2f}" for name, taken in sorted(kinds.items(), key=lambda k: -k[1])[:10]))
    rows = [["ms", "calls", "us a call", "rate", "function", "shape (a product: stack, rows, inner, columns)"]]
    for (name, shape), (taken, count, work) in sorted(groups.items(), key=lambda g: -g[1][0])[: options.lines]:
        rate = f"{work / taken / 1e9:.0f} {'GFLOP/s' if name in PRODUCTS else 'GB/s'}"
        rows.append([f"{taken * 1e3:.3f}", f"{count:.0f}", f"{taken / count * 1e6:.1f}", rate, name, str(shape)])
    print(harness.table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
