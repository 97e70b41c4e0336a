"""Random transforms of 128 images at 32x32, beside torchvision.transforms.v2: `python bench/augmentation.py`.

Each side goes from bytes to normalised float32, with two threads. torchvision draws once for a whole batch, or, called
on image after image, once for each; ours draws for each image, in one call. Both of torchvision's ways are timed. The
sides take turns, and the smallest of all times counts. Writes bench/results/cpu-augmentation.json.

torchvision runs in an environment of its own: `python bench/environments.py torchvision` makes it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from environments import default_folder

PEERS = harness.HERE / "peers"
THEIRS = "torchvision"
HEADING = ["transform", "xpcnn ms", "torchvision, each image ms", "one draw a batch ms", "factor", "factor, one draw"]


def measured(python: str, script: str, options: argparse.Namespace) -> dict[str, Any]:
    """What one side's program prints: milliseconds by transform and way."""
    done = subprocess.run(
        [python, str(PEERS / script), "--threads", str(options.threads), "--rounds", str(options.rounds)],
        cwd=harness.ROOT,
        env=harness.clean_environment(options.threads),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit((done.stderr.strip().splitlines() or ["no output"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def smallest(turns: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The smallest time of all turns, by transform and way."""
    return {
        name: {way: min(turn["ms"][name][way] for turn in turns) for way in ways}
        for name, ways in turns[0]["ms"].items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--envs", type=Path, default=default_folder(), help="where the environments are kept")
    parser.add_argument("--python", help="the interpreter that has torchvision (of the environment)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "cpu-augmentation.json")
    options = parser.parse_args()
    python = options.python or str(options.envs / THEIRS / "bin" / "python")
    turns: dict[str, list[dict[str, Any]]] = {"xpcnn": [], THEIRS: []}
    for _ in range(options.turns):
        turns["xpcnn"].append(measured(sys.executable, "xpcnn_transforms.py", options))
        turns[THEIRS].append(measured(python, "torchvision_transforms.py", options))
    ours, theirs = smallest(turns["xpcnn"]), smallest(turns[THEIRS])
    rows = [HEADING]
    for name, ways in ours.items():
        mine, each, once = ways["each"], theirs[name].get("each"), theirs[name]["once"]
        factors = ["-" if time is None else f"{time / mine:.2f}" for time in (each, once)]
        rows.append([name, f"{mine:.2f}", "-" if each is None else f"{each:.2f}", f"{once:.2f}", *factors])
    print(harness.table(rows))
    content = {
        "machine": harness.facts(),
        "threads": options.threads,
        "versions": {side: found[0]["versions"] for side, found in turns.items()},
        "xpcnn_ms": ours,
        "torchvision_ms": theirs,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
