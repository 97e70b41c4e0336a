"""Peak memory of xpcnn and its peers, and how time and memory grow with batch and image area: `python bench/memory.py`.

Peak resident memory is the kernel's own count (VmHWM) of a fresh process that imports, builds, draws its data and does
steps for half a second, and what its child processes hold for themselves. Of a peer with several ways to do a workload
the leanest counts. Writes bench/results/cpu-memory.json and cpu-growth.png.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from environments import default_folder
from harness import PEERS, Peer, PeerError, Worker, median, milliseconds

MB = 1e6
STEPS = 5
GROWTH_PEERS = ("xpcnn", "torch")


@dataclass(frozen=True)
class Case:
    """A workload of the table, with another batch or image size where given, and the most memory it may take."""

    name: str
    workload: str
    batch: int = 0
    size: int = 0
    limit: float | None = None  # bytes; None: at most PyTorch's


CASES = (
    Case("lenet5 step, batch 128", "lenet5", limit=90 * MB),
    Case("conv 32x64x56x56, 64@3x3", "conv-64x56"),
    Case("conv 1x64x512x512, 64@3x3", "conv-64x56", batch=1, size=512, limit=2000 * MB),
)
BATCHES = tuple(2**power for power in range(11))
SIZES = (32, 64, 128, 256, 512)


def peak(
    peer: Peer, python: str, threads: int, case: Case, variant: str | None = None, budget: float = 0.5
) -> dict[str, Any]:
    """Peak memory in bytes and median seconds of a step, in a fresh process."""
    worker = Worker(peer, python, threads)
    try:
        if variant is None:
            variant = worker.ask("variants", workload=case.workload, threads=[threads])["variants"][0]
        imported = worker.ask("memory")["peak"]
        worker.ask("build", workload=case.workload, variant=variant, batch=case.batch, size=case.size)
        first = worker.ask("run", variant=variant, warmup=1, steps=STEPS)["times"]
        count = max(3, min(200, int(budget / median(first))))
        worker.ask("run", variant=variant, warmup=1, steps=count)  # a worker process starts after some steps
        held = worker.ask("memory")["peak"]  # before the timing: a leak would show as growth
        seconds = median(worker.ask("run", variant=variant, warmup=1, steps=count)["times"])
        later = worker.ask("memory")["peak"]
        return {"variant": variant, "peak": held, "peak_later": later, "imported": imported, "seconds": seconds}
    finally:
        worker.close()


def every_way(peer: Peer, python: str, threads: int, case: Case) -> list[dict[str, Any]]:
    """The peaks of all variants, a peer's leanest first, ours in its own order: its default counts."""
    worker = Worker(peer, python, threads)
    try:
        names = worker.ask("variants", workload=case.workload, threads=[threads])["variants"]
    finally:
        worker.close()
    found = [peak(peer, python, threads, case, name) for name in names]
    return found if peer.name == "xpcnn" else sorted(found, key=lambda way: way["peak"])


def measure_cases(names: list[str], pythons: dict[str, str], threads: int) -> list[dict[str, Any]]:
    rows = []
    for case in CASES:
        row: dict[str, Any] = {"case": case.name, "limit": case.limit, "peers": {}, "skipped": {}}
        for name in names:
            try:
                ways = every_way(PEERS[name], PEERS[name].python(pythons), threads, case)
            except PeerError as error:
                row["skipped"][name] = str(error)
                continue
            row["peers"][name] = {**ways[0], "ways": {way["variant"]: way["peak"] for way in ways}}
        print(f"{case.name}: " + ", ".join(f"{n} {p['peak'] / MB:.0f} MB" for n, p in row["peers"].items()), flush=True)
        rows.append(row)
    return rows


def measure_growth(pythons: dict[str, str], threads: int) -> dict[str, Any]:
    """Time and peak memory of the `deep3` step over the batch, and of a convolution over the image's area.

    Not of `lenet5`: its last batch norm has one value a channel at batch 1, which is an error.
    """
    sweeps = {
        "batch": [Case(str(n), "deep3", batch=n) for n in BATCHES],
        "area": [Case(str(n * n), "conv-64x56", batch=1, size=n) for n in SIZES],
    }
    growth: dict[str, Any] = {}
    for sweep, cases in sweeps.items():
        growth[sweep] = {}
        for name in GROWTH_PEERS:
            points = []
            for case in cases:
                try:
                    found = peak(PEERS[name], PEERS[name].python(pythons), threads, case)
                except PeerError as error:
                    print(f"{sweep} {case.name}: {name} skipped: {error}", flush=True)
                    break
                points.append({"at": int(case.name), **found})
                print(
                    f"{sweep} {case.name}: {name} {milliseconds(found['seconds'])} ms, {found['peak'] / MB:.0f} MB",
                    flush=True,
                )
            if points:
                growth[sweep][name] = points
    return growth


def linearity(points: list[dict[str, Any]]) -> str:
    """What the last step of a sweep added, against what proportion would have added: 1 is linear."""
    before, last = points[-2:]
    factor = last["at"] / before["at"]
    rise = (last["peak"] - before["peak"]) / max(1, before["peak"] - points[0]["peak"])
    proportion = (last["at"] - before["at"]) / (before["at"] - points[0]["at"])
    return f"time x{last['seconds'] / before['seconds'] / factor:.2f}, memory x{rise / proportion:.2f} of linear"


def draw(growth: dict[str, Any], path: Path) -> None:
    """Four panels over batch and area: time on logarithmic axes beside a line of slope one, memory on linear ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    quantities = (("seconds", 1e3, "ms per step"), ("peak", 1 / MB, "peak memory, MB"))
    titles = {"batch": "deep3 training step", "area": "convolution 64@3x3 of one image with 64 channels"}
    for column, (sweep, peers) in enumerate(growth.items()):
        for row, (key, scale, unit) in enumerate(quantities if peers else ()):
            panel = panels[row][column]
            straight = panel.loglog if key == "seconds" else panel.plot  # memory has a constant part
            for name, points in peers.items():
                straight([p["at"] for p in points], [p[key] * scale for p in points], "o-", label=name)
            if key == "seconds":
                everything = [p for points in peers.values() for p in points]
                most = max(everything, key=lambda p: p["at"])
                ends = [min(p["at"] for p in everything), most["at"]]
                times = [most[key] * scale * at / most["at"] for at in ends]
                panel.loglog(ends, times, ":", color="grey", label="linear")
                panel.set_ylim(bottom=min(p[key] * scale for p in everything) / 2)
            else:
                panel.set_ylim(bottom=0)
            panel.set(xlabel="batch" if sweep == "batch" else "height x width", ylabel=unit)
            panel.set_title(titles[sweep] if row == 0 else "", fontsize="medium")
            panel.grid(alpha=0.3)
            panel.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def verdict(row: dict[str, Any], names: list[str]) -> list[str]:
    """A line of the table."""
    peers = row["peers"]
    ours = peers.get("xpcnn", {}).get("peak")
    limit = row["limit"] or peers.get("torch", {}).get("peak")
    others = [f"{peers[name]['peak'] / MB:.0f}" if name in peers else "-" for name in names if name != "xpcnn"]
    met = "-" if ours is None or limit is None else "yes" if ours <= limit else "no"
    return [row["case"], f"{ours / MB:.0f}" if ours else "-", f"{limit / MB:.0f}" if limit else "-", met, *others]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default="xpcnn,torch,jax,chainer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a peer")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="folder made by environments.py")
    parser.add_argument("--no-growth", action="store_true", help="leave out the sweep over batch and area")
    options = parser.parse_args()
    pythons = harness.interpreters(options.python, options.envs)
    names = options.peers.split(",")
    rows = measure_cases(names, pythons, options.threads)
    growth = {} if options.no_growth else measure_growth(pythons, options.threads)
    heading = ["case", "xpcnn MB", "limit MB", "met", *(f"{name} MB" for name in names if name != "xpcnn")]
    print("\n" + harness.table([heading, *(verdict(row, names) for row in rows)]))
    for sweep, peers in growth.items():
        for name, points in peers.items():
            if len(points) > 2:
                print(f"growth with {sweep}, last step, {name}: {linearity(points)}")
    if growth:
        draw(growth, harness.RESULTS / "cpu-growth.png")
    harness.write("cpu-memory.json", {**harness.facts(), "threads": options.threads, "rows": rows, "growth": growth})
    print("\nwritten: bench/results/cpu-memory.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
