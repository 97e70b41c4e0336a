"""What every recipe reaches over five seeds, as the command line trains it: `python -m bench.seeds [RECIPE ...]`.

Each line is trained by `xpcnn train` in processes of its own, one after the other; the wall time is the whole
process's, imports and pictures included. Writes bench/results/seeds-BACKEND.json after every line, and keeps the lines
of recipes that were not asked for. The status is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness


@dataclass(frozen=True)
class Line:
    """A recipe, how it is trained, and what it must reach: the mean over the seeds, and the worst of them."""

    name: str
    recipe: str
    options: tuple[str, ...] = ()
    mean: float = 0.0
    worst: float = 0.0
    document: str = "-"  # what the document reports


LINES = (
    Line("lenet5", "lenet5", mean=0.984, worst=0.9815, document="0.9815"),
    Line("lenet5-fast", "lenet5-fast", mean=0.988),
    Line("lenet5-fast-3", "lenet5-fast", ("--epochs", "3"), mean=0.992),
    Line("tiny", "tiny", mean=0.87, worst=0.83, document="0.8279"),
    Line("tiny-as-written", "tiny", ("--as-written",)),
    Line("conv8", "conv8", mean=0.855),
    Line("three-layer", "three-layer", mean=0.985),
    Line("deep3", "deep3", mean=0.990, document="loss inf"),
    Line("mnist-best", "mnist-best", mean=0.9965),
    Line("deep3-as-written", "deep3", ("--as-written",), document="loss inf"),
)
HEADING = ["recipe", "seeds", "mean", "worst", "best", "goal (mean)", "goal (worst)", "document", "seconds"]


def train(line: Line, seed: int, backend: str, threads: int) -> dict[str, float]:
    """Accuracy, wall time of the process, and seconds of all epochs, of one training."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "xpcnn", "train", line.recipe, *line.options, "--seed", str(seed)]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--backend", backend, "--out", str(out)],
            cwd=harness.ROOT,
            env=harness.clean_environment(threads),
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit((done.stderr.strip().splitlines() or ["no output"])[-1])
        epochs = json.loads((out / "run.json").read_text())["epochs"]
    accuracy = float(done.stdout.strip().splitlines()[-1].removeprefix("test accuracy:"))
    return {"seed": seed, "accuracy": accuracy, "seconds": seconds, "epochs": sum(each["seconds"] for each in epochs)}


def summary(line: Line, runs: list[dict[str, float]]) -> dict[str, Any]:
    """What is written for one line."""
    accuracies = [run["accuracy"] for run in runs]
    mean = sum(accuracies) / len(accuracies)
    return {
        "name": line.name,
        "recipe": line.recipe,
        "options": list(line.options),
        "mean": mean,
        "worst": min(accuracies),
        "best": max(accuracies),
        "goal_mean": line.mean,
        "goal_worst": line.worst,
        "document": line.document,
        "met": mean >= line.mean and min(accuracies) >= line.worst,
        "seconds": harness.median([run["seconds"] for run in runs]),
        "runs": runs,
    }


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table that is printed."""
    goals = [f"{row[goal]:.4f}" if row[goal] else "-" for goal in ("goal_mean", "goal_worst")]
    numbers = [f"{row[key]:.4f}" for key in ("mean", "worst", "best")]
    missed = "" if row["met"] else " MISSED"
    return [row["name"], str(len(row["runs"])), *numbers, *goals, row["document"], f"{row['seconds']:.1f}{missed}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="RECIPE", help=f"of {', '.join(line.name for line in LINES)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    unknown = set(options.names) - {line.name for line in LINES}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    path = harness.RESULTS / f"seeds-{options.backend.replace(':', '')}.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["name"]: row for row in old}
    order = [line.name for line in LINES]
    for line in LINES:
        if options.names and line.name not in options.names:
            continue
        row = summary(line, [train(line, seed, options.backend, options.threads) for seed in range(options.seeds)])
        rows[line.name] = {**row, **harness.facts(), "threads": options.threads}
        print("  ".join(cells(row)), flush=True)
        harness.write(path.name, {"rows": sorted(rows.values(), key=lambda each: order.index(each["name"]))})
    chosen = [rows[name] for name in order if name in rows]
    print(harness.table([HEADING, *map(cells, chosen)]))
    print(f"written: bench/results/{path.name}")
    return 0 if all(row["met"] for row in chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
