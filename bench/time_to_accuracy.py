"""`xpcnn train` as a whole process against the same training program in PyTorch: `python bench/time_to_accuracy.py`.

Both read the same IDX files, prepare the data, train, test and end; everything is counted, imports and our run folder
with its pictures included. One runs at a time, order turned each round, a seed for each round. PyTorch runs the fastest
of its ways, found first. Writes bench/results/cpu-time-to-accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from environments import default_folder
from harness import median

MNIST = harness.ROOT / "xpcnn" / "datasets" / "mnist"
SCRIPT = harness.HERE / "peers" / "torch_train.py"
WAYS = (("--layout", "nchw"), ("--layout", "nchw", "--fused"), ("--layout", "nhwc", "--fused"))


@dataclass(frozen=True)
class Contest:
    """One recipe on each side; `goal` is PyTorch's time over ours, `accuracy` what our mean over seeds must reach."""

    recipe: str
    theirs: str
    epochs: int
    accuracy: float
    goal: float = 2.0


CONTESTS = (
    Contest("lenet5", "lenet5", 1, 0.984, goal=3.0),
    Contest("lenet5-fast", "one-cycle", 1, 0.988),
    Contest("lenet5-fast", "one-cycle", 3, 0.992),
)


@dataclass(frozen=True)
class Process:
    """A process that has ended: its wall time, the last line it printed, what others took of the machine meanwhile."""

    seconds: float
    line: str
    others: float


def run(command: list[str], threads: int, limit: float | None = None) -> Process:
    """Run a whole process, after other programs have come to rest or half a minute has passed."""
    harness.Patience(30).wait(0.5, 0.1)
    before, start = harness.machine_cpu_seconds() - own_cpu_seconds(), time.perf_counter()
    environment = harness.clean_environment(threads)
    try:
        done = subprocess.run(command, cwd=harness.ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise harness.PeerError(f"not done after {limit:.0f} s") from error
    seconds = time.perf_counter() - start
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise harness.PeerError((done.stderr.strip().splitlines() or ["no output"])[-1])
    others = harness.machine_cpu_seconds() - own_cpu_seconds() - before
    return Process(seconds, lines[-1], max(0.0, others / seconds / (os.cpu_count() or 1)))


def own_cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def ours(contest: Contest, seed: int, python: str, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--epochs", str(contest.epochs), "--seed", str(seed), "--out", str(Path(folder) / "run")]
        done = run([python, "-m", "xpcnn", "train", contest.recipe, *options], threads)
    accuracy = float(done.line.removeprefix("test accuracy:"))
    return {"seconds": done.seconds, "accuracy": accuracy, "others": done.others}


def theirs(
    contest: Contest, seed: int, python: str, threads: int, way: tuple[str, ...], limit: float | None = None
) -> dict[str, Any]:
    options = ["--recipe", contest.theirs, "--epochs", str(contest.epochs), "--seed", str(seed)]
    done = run([python, str(SCRIPT), str(MNIST), *options, "--threads", str(threads), *way], threads, limit)
    found = json.loads(done.line)
    return {
        "seconds": done.seconds,
        "accuracy": found["accuracy"],
        "parts": found["seconds"],
        "others": done.others,
    }


def time_ways(python: str, threads: int) -> dict[tuple[str, ...], float]:
    """Seconds of PyTorch's `lenet5` in each way; one that takes over twice the best's time is given up."""
    times: dict[tuple[str, ...], float] = {}
    for way in WAYS:
        limit = 2 * min(times.values()) if times else None
        try:
            times[way] = theirs(CONTESTS[0], 0, python, threads, way, limit)["seconds"]
        except harness.PeerError as error:
            print(f"PyTorch {' '.join(way)}: {error}", flush=True)
    return times


def compete(
    contest: Contest, rounds: int, pythons: dict[str, str], threads: int, way: tuple[str, ...]
) -> dict[str, Any]:
    """All rounds of one contest."""
    found: dict[str, list[dict[str, Any]]] = {"xpcnn": [], "torch": []}
    for seed in range(rounds):
        for name in ("xpcnn", "torch") if seed % 2 == 0 else ("torch", "xpcnn"):
            if name == "xpcnn":
                found[name].append(ours(contest, seed, pythons["xpcnn"], threads))
            else:
                found[name].append(theirs(contest, seed, pythons["torch"], threads, way))
    pairs = list(zip(found["torch"], found["xpcnn"], strict=True))
    ratios = [a["seconds"] / b["seconds"] for a, b in pairs]
    strict = [(a["seconds"] - a["parts"]["imports"]) / b["seconds"] for a, b in pairs]
    return {
        "contest": vars(contest),
        "way": " ".join(way),
        "runs": found,
        "ratio": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        "ratio_without_import_of_torch": median(strict),
        "accuracy": {name: sum(r["accuracy"] for r in runs) / rounds for name, runs in found.items()},
        "others": max(r["others"] for runs in found.values() for r in runs),
        "seconds": {name: median([r["seconds"] for r in runs]) for name, runs in found.items()},
    }


def line(row: dict[str, Any]) -> list[str]:
    contest, ratio, accuracy = row["contest"], row["ratio"], row["accuracy"]
    met = ratio["median"] >= contest["goal"] and accuracy["xpcnn"] >= contest["accuracy"]
    return [
        f"{contest['recipe']}, {contest['epochs']} epoch{'s' * (contest['epochs'] > 1)}",
        f"{row['seconds']['xpcnn']:.2f}",
        f"{row['seconds']['torch']:.2f}",
        f"{ratio['median']:.2f}",
        f"{ratio['least']:.2f}-{ratio['most']:.2f}",
        f"{row['ratio_without_import_of_torch']:.2f}",
        f"{accuracy['xpcnn']:.4f}",
        f"{accuracy['torch']:.4f}",
        ("yes" if met else "no") + ("" if row["others"] < 0.1 else "?"),
    ]


HEADING = ["recipe", "xpcnn s", "torch s", "ratio", "range", "less its import", "xpcnn accuracy", "torch's", "met"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="ours to measure; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a peer")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="folder made by environments.py")
    options = parser.parse_args()
    pythons = harness.interpreters(options.python, options.envs)
    chosen = [c for c in CONTESTS if not options.recipes or c.recipe in options.recipes]
    ways = time_ways(pythons["torch"], options.threads)
    if not ways:
        raise SystemExit("PyTorch cannot run here, and without it there is nothing to compare with")
    best = min(ways, key=ways.__getitem__)
    print(f"PyTorch's ways: {', '.join(f'{s:.1f} s ({chr(32).join(way)})' for way, s in ways.items())}", flush=True)
    rows = []
    for contest in chosen:
        try:
            rows.append(compete(contest, options.rounds, pythons, options.threads, best))
            if rows[-1]["others"] > 0.1:
                print(f"warning: other programs took up to {rows[-1]['others']:.0%} of the machine", flush=True)
        except harness.PeerError as error:
            print(f"{contest.recipe} skipped: {error}", flush=True)
    if rows:
        print(harness.table([HEADING, *(line(row) for row in rows)]))
        content = {**harness.facts(), "threads": options.threads, "ways": {" ".join(w): s for w, s in ways.items()}}
        print(f"written: bench/results/{harness.write('cpu-time-to-accuracy.json', {**content, 'rows': rows}).name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
