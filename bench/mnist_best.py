"""The recipe mnist-best over five seeds, with the same program in PyTorch beside it: `python bench/mnist_best.py`.

Each training is a process of its own, one after the other, the sides taking turns. Seconds are those of the training
steps, imports and evaluation left out. Writes bench/results/cpu-mnist-best.json.

`--validation` trains on 50,000 images and tests on the 10,000 others of the training set, and writes nothing: settings
are chosen with it (`--set peak=0.2 --set epochs=8`), and the test set is left alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from environments import default_folder

SIDES = {"xpcnn": "xpcnn_best.py", "torch": "torch_best.py"}
HEADING = ["side", "seeds", "mean", "worst", "best", "training s"]
GOAL, MOST_SECONDS = 0.9965, 60.0


def train(side: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy and seconds of one training."""
    python = sys.executable if side == "xpcnn" else options.python or str(options.envs / "torch" / "bin" / "python")
    command = [python, str(harness.HERE / "peers" / SIDES[side]), "--seed", str(seed)]
    command += ["--threads", str(options.threads), *(["--validation"] if options.validation else [])]
    command += [word for pair in options.set for word in ("--set", pair)]
    done = subprocess.run(
        command,
        cwd=harness.ROOT,
        env=harness.clean_environment(options.threads),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit((done.stderr.strip().splitlines() or ["no output"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{side}, seed {seed}: accuracy {found['accuracy']:.4f}, {found['seconds']:.1f} s", flush=True)
    return {"seed": seed, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--validation", action="store_true", help="leave the test set alone")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting; repeat it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--envs", type=Path, default=default_folder(), help="where the environments are kept")
    parser.add_argument("--python", help="the interpreter that has PyTorch (of the environment)")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "cpu-mnist-best.json")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for seed in range(options.seeds):
        for side in options.sides if seed % 2 == 0 else options.sides[::-1]:
            runs[side].append(train(side, seed, options))
    rows = [HEADING]
    for side, each in runs.items():
        accuracies = [run["accuracy"] for run in each]
        numbers = [statistics.mean(accuracies), min(accuracies), max(accuracies)]
        seconds = harness.median([run["seconds"] for run in each])
        rows.append([side, str(len(each)), *(f"{number:.4f}" for number in numbers), f"{seconds:.1f}"])
    print(harness.table(rows))
    if options.validation or options.set:
        return 0
    content = {
        "machine": harness.facts(),
        "threads": options.threads,
        "goal": GOAL,
        "seconds": MOST_SECONDS,
        "runs": runs,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    ours = runs.get("xpcnn", [])
    missed = ours and statistics.mean(run["accuracy"] for run in ours) < GOAL
    return 1 if missed or any(run["seconds"] > MOST_SECONDS for run in ours) else 0


if __name__ == "__main__":
    raise SystemExit(main())
