"""`xpcnn train --backend cupy` as a whole process: time and accuracy of each recipe, from a cold and a warm cache."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_device import Device, check, stage
from harness import ROOT

TOTAL_GOAL, LIMIT = 3.0, 240.0
SLACK = 0.01  # of accuracy: one seed beside the mean of five


def recipes() -> list[str]:
    from xpcnn import recipes as own

    return list(own.names())


def expected(recipe: str) -> float:
    from xpcnn import recipes as own

    return float(own.find(recipe).accuracy)


def train(device: Device, recipe: str, cache: Path, *options: str) -> dict[str, Any]:
    """Train once; return seconds of the process, its exit status and the accuracy that it printed."""
    backend = "cupy" if device.name == "cupy" else "numpy"
    # Behind ours what the round was given: the packages themselves, where nothing could be installed.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "CUPY_CACHE_DIR": str(cache)}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "xpcnn",
            "train",
            recipe,
            "--backend",
            backend,
            "--out",
            f"{folder}/run",
            *options,
        ]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
        seconds = time.perf_counter() - start
    found = re.search(r"^test accuracy: (\S+)$", done.stdout, re.M)
    return {
        "recipe": recipe, "options": list(options), "seconds": seconds, "status": done.returncode,
        "accuracy": float(found[1]) if found else None, "output": (done.stdout + done.stderr)[-600:],
    }  # fmt: skip


def run(device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    rows, checks = [], []
    try:
        names = recipes()
    except (ImportError, AttributeError) as error:
        return {"not run": f"no recipes: {error}"}
    first = "tiny" if device.rehearse else names[0]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for turn in ("cold cache", "warm cache", "warm cache again"):
            rows.append({"turn": turn, **train(device, first, cache, "--epochs", "1")})
            if device.rehearse:
                break
        if not device.rehearse:
            checks.append(
                check("one epoch, whole process, warm cache (s)", min(r["seconds"] for r in rows[1:]), TOTAL_GOAL)
            )
        if "convergence" in arguments.only or not arguments.only:
            some = names[: device.scaled(len(names), 0)]
            rows += [{"turn": "recipe", **train(device, name, cache)} for name in some]
    checks += [
        check(
            f"{row['recipe']}: test accuracy below the recipe's",
            expected(row["recipe"]) - (row["accuracy"] or 0),
            SLACK,
        )
        for row in rows
        if row["turn"] == "recipe"
    ]
    checks += [check(f"{row['turn']} {row['recipe']}: exit status", row["status"], 0) for row in rows]
    return {"checks": checks, "rows": rows}


if __name__ == "__main__":
    stage(run, __doc__)
