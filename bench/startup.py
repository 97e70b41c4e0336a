"""How long the imports take, in fresh processes, and what is installed: `python bench/startup.py`.

Every round starts each interpreter once, order turned, and takes the wall time of the whole process; a figure is the
median over the rounds less the median of a process that imports nothing. Sizes are of the files as pip leaves them,
compiled code included, with everything a distribution requires. Writes bench/results/cpu-startup.json.
"""

from __future__ import annotations

import argparse
import compileall
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from environments import default_folder
from harness import median

MB = 1e6
LIMIT_SECONDS, LIMIT_BYTES = 0.1, 15 * MB
MODULES = {"nothing": "xpcnn", "numpy": "xpcnn", "xpcnn": "xpcnn", "torch": "torch", "jax": "jax", "chainer": "chainer"}
SLOW = ("torch", "jax", "chainer")
BASE = ("threadpoolctl", "safetensors")  # what `pip install xpcnn` brings beside NumPy


def process_seconds(python: str, module: str) -> float:
    """Wall time of a whole process that imports one module."""
    code = "pass" if module == "nothing" else f"import {module}"
    start = time.perf_counter()
    subprocess.run(
        [python, "-c", code], check=True, cwd=harness.ROOT, env=harness.clean_environment(2), stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def imports(pythons: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Seconds of every process, by what it imports; what is not installed is left out."""
    times: dict[str, list[float]] = {}
    for module, owner in MODULES.items():
        try:
            process_seconds(pythons[owner], module)  # writes compiled files, warms the page cache
            times[module] = []
        except subprocess.CalledProcessError:
            print(f"{module} skipped: it cannot be imported", flush=True)
    for number in range(rounds):
        for module in times if number % 2 else reversed(times):
            if module not in SLOW or number < max(5, rounds // 4):
                times[module].append(process_seconds(pythons[MODULES[module]], module))
    return times


SIZES = """
import importlib.metadata as m, json, re, sys
todo, sizes = [sys.argv[1]], {}
while todo:
    name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
    try:
        found = m.distribution(name)
    except m.PackageNotFoundError:
        continue
    if name in sizes:
        continue
    paths = [f.locate() for f in found.files or ()]
    sizes[name] = sum(p.stat().st_size for p in paths if p.is_file())
    todo += [re.match(r"[\\w.-]+", r)[0] for r in found.requires or () if "extra ==" not in r]
print(json.dumps(sizes))
"""


def installed(python: str, distribution: str) -> dict[str, int]:
    """Bytes of a distribution and of everything it requires, by name; empty where it is not installed."""
    found = subprocess.run([python, "-c", SIZES, distribution], capture_output=True, text=True)
    sizes: dict[str, int] = json.loads(found.stdout) if found.returncode == 0 else {}
    return sizes


def own_size() -> int:
    """Bytes of the package as pip leaves it: its files, MNIST included, and their compiled forms."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "xpcnn"
        shutil.copytree(harness.ROOT / "xpcnn", target, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(target, quiet=2)
        return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a peer")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="folder made by environments.py")
    options = parser.parse_args()
    pythons = harness.interpreters(options.python, options.envs)
    times = imports(pythons, options.rounds)
    middle = {module: median(values) for module, values in times.items()}
    over = {m: middle[m] - middle["nothing"] for m in middle}
    base = {name: installed(pythons["xpcnn"], name).get(name, 0) for name in BASE}
    sizes: dict[str, Any] = {"xpcnn": own_size(), **base}
    total = sum(sizes.values())
    others = {name: sum(installed(pythons[name], name).values()) for name in SLOW}
    rows = [["what", "import s", "installed MB"]]
    rows += [[m, f"{over[m]:.3f}", f"{others[m] / MB:.0f}" if others.get(m) else "-"] for m in over if m != "xpcnn"]
    if "xpcnn" in over:
        rows.append(["xpcnn", f"{over['xpcnn']:.3f}", f"{total / MB:.1f}"])
    print(harness.table(rows))
    content = {**harness.facts(), "seconds": times, "medians": middle, "bytes": sizes, "bytes_of_others": others}
    if "xpcnn" in over:
        extra = [ours - numpys for ours, numpys in zip(times["xpcnn"], times["numpy"], strict=True)]
        content["over_numpy"] = {"median": median(extra), "least": min(extra), "most": max(extra)}
        met = median(extra) <= LIMIT_SECONDS and total <= LIMIT_BYTES
        print(
            f"\nimport xpcnn takes {median(extra):.3f} s over NumPy's own (limit {LIMIT_SECONDS} s), "
            f"{total / MB:.1f} MB are installed without NumPy (limit {LIMIT_BYTES / MB:.0f} MB), "
            f"{sizes['xpcnn'] / MB:.1f} MB of them its own: {'met' if met else 'NOT met'}"
        )
    harness.write("cpu-startup.json", content)
    print("written: bench/results/cpu-startup.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
