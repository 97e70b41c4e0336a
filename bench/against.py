"""Time rows of the table in two checkouts of xpcnn, interleaved: `python bench/against.py FOLDER [ROW ...]`.

FOLDER holds another commit (`git worktree add FOLDER COMMIT`). Each way to do a row runs in processes of its own, of
which one works at a time; printed are the median time there and the median of the rounds' ratios, here over there. A
way that only this checkout has ("compiled") is held against the other's first. Training is written as one wrote it at
either commit; all else is the same calls on the same arrays.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
# Where a process lies in memory is worth some percent, so each way has several.
PROCESSES, ROUNDS, SECONDS = 4, 4, 0.3
CHILD = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[4]]
import workloads
from peers import xpcnn_peer
workload = workloads.WORKLOADS[sys.argv[2]]
step = xpcnn_peer.build(workload, sys.argv[3])
for _ in range(12):
    step.call()
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        step.call()
        times.append(time.perf_counter() - start)
    print(sorted(times)[len(times) // 2], flush=True)
"""


class Way:
    """One way to do a row, in one checkout."""

    def __init__(self, root: Path, row: str, variant: str, bench: Path) -> None:
        command = [sys.executable, "-c", CHILD, str(root), row, variant, str(bench)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, steps: int) -> float:
        """Return the median time of so many steps."""
        assert self._process.stdin
        assert self._process.stdout
        print(steps, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()


def compare(there: Path, row: str, variant: str, other: str, bench: Path) -> None:
    """Print a line of the comparison."""
    rounds = []
    for _ in range(PROCESSES):
        ways = [Way(there, row, other, bench), Way(HERE, row, variant, HERE / "bench")]
        try:
            steps = max(5, int(SECONDS / ways[0].seconds(3)))
            ways[1].seconds(3)
            rounds += [[way.seconds(steps) for way in ways] for _ in range(ROUNDS)]
        finally:
            for way in ways:
                way.end()
    ratio = statistics.median(here / before for before, here in rounds)
    before = statistics.median(each[0] for each in rounds)
    print(f"{row:14} {variant:20} there ({other}) {before * 1e3:9.3f} ms   here / there {ratio:.3f}", flush=True)


def main() -> None:
    """Compare."""
    sys.path[:0] = [str(HERE), str(HERE / "bench")]
    import workloads as w
    from peers import xpcnn_peer

    there, rows = Path(sys.argv[1]).resolve(), sys.argv[2:] or list(w.WORKLOADS)
    for row in rows:
        ways = xpcnn_peer.variants(w.WORKLOADS[row], [])
        for variant in ways:
            bench = (there if w.WORKLOADS[row].kind == "train" else HERE) / "bench"
            compare(there, row, variant, ways[0] if variant == "compiled" else variant, bench)


if __name__ == "__main__":
    main()
