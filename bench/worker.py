"""The child process of one peer: answers "build this workload" and "run it for K steps" over a pipe, asleep in between.

Run by harness.py with the peer's own interpreter: `python worker.py PEER`. One JSON object a line
each way. A peer's module in peers/ gives `versions()`, `variants(workload, threads)` and `build(workload, variant)`,
which returns a `Step`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from workloads import WORKLOADS


def peak_memory() -> int:
    """Peak resident memory of this process in bytes: VmHWM of /proc, else getrusage."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def helpers_memory() -> int:
    """Bytes that child processes hold for themselves now: what they share with this one is counted here already."""
    total = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    return total


def measure(step: Callable[[], Any], warmup: int, steps: int) -> list[float]:
    """Seconds of each of `steps` calls, after `warmup` calls that are not counted, with the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(warmup):
            step()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return times
    finally:
        gc.enable()


class Server:
    """Holds the steps that were built, by variant name."""

    def __init__(self, peer: str) -> None:
        self.free = not getattr(sys, "_is_gil_enabled", lambda: True)()
        if os.environ.get("PYTHON_GIL") == "0" and not self.free:  # a Python that knows no such variable goes on
            raise RuntimeError("this Python has the lock; environments.py makes one without where it finds python3.14t")
        self.peer = importlib.import_module(f"peers.{peer}_peer")
        self.steps: dict[str, Any] = {}

    def hello(self) -> dict[str, Any]:
        python = ".".join(map(str, sys.version_info[:3])) + "t" * self.free
        return {"python": python, "versions": self.peer.versions()}

    def variants(self, workload: str, threads: list[int]) -> dict[str, Any]:
        """Names of the ways in which this peer can do the workload; the first is its default."""
        return {"variants": self.peer.variants(WORKLOADS[workload], threads)}

    def build(self, workload: str, variant: str, batch: int = 0, size: int = 0) -> dict[str, Any]:
        """`batch` and `size` (height and width) replace those of the table."""
        spec = WORKLOADS[workload]
        if batch:
            spec = replace(spec, batch=batch)
        if size:
            spec = replace(spec, image=(spec.image[0], size, size))
        step = self.steps[variant] = self.peer.build(spec, variant)
        return {"parameters": step.parameters}

    def run(self, variant: str, warmup: int, steps: int) -> dict[str, Any]:
        step = self.steps[variant]
        step.prepare()
        return {"times": measure(step.call, warmup, steps), "loss": step.loss()}

    def keep(self, variant: str) -> dict[str, Any]:
        """Forget every other variant."""
        self.steps = {variant: self.steps[variant]}
        gc.collect()
        return {}

    def rates(self, **sizes: Any) -> dict[str, Any]:
        return dict(self.peer.rates(**sizes))

    def memory(self) -> dict[str, Any]:
        helpers = helpers_memory()
        return {"peak": peak_memory() + helpers, "helpers": helpers}


def main() -> None:
    """Serve until the pipe closes. What a library prints goes to standard error, so that the pipe stays clean."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            server = server or Server(sys.argv[1])
            reply = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # whatever a peer raises is reported, not fatal: the peer is named and skipped
            if os.environ.get("BENCH_TRACEBACK"):
                import traceback

                traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
