"""The stages of a GPU round, each a process of its own with a limit, and the table of what they found.

It needs Python 3.11 or newer, CuPy, NumPy and pytest; the packages of `REQUIRED` must be importable, those of
`OPTIONAL` only leave out the stages that are for them. Results go to bench/results/gpu-STAGE.json and, as a table, to
bench/results/gpu-round.md (or to --results FOLDER); where the environment names a folder OUT, all of it goes there
too, in three files. Exit status: 0 where every stage that ran passed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REQUIRED = ("numpy", "threadpoolctl", "safetensors")
OPTIONAL = {
    "cupy": "everything but a rehearsal",
    "pytest": "the suite",
    "hypothesis": "the tests that draw their cases",
    "torch": "the comparison with PyTorch",
    "matplotlib": "the pictures of a run",
}
sys.path.insert(0, str(ROOT))
NOT_RUN = 3  # a stage's exit status, as in gpu_device.py
LIMIT = 540  # seconds of a stage


@dataclass(frozen=True)
class Stage:
    """One command. `needs` are packages without which it is not run; `rehearsal` replaces its arguments."""

    about: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    rehearsal: tuple[str, ...] | None = None
    writes: bool = True  # a json of its own, by --out
    tool: str | None = None  # of compute-sanitizer, under which it runs on a GPU


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail", "40")
ON_GPU = {"XPCNN_REQUIRE_GPU": "1", "XPCNN_TEST_BACKENDS": "cupy", "CI": "1"}

IMPLICIT = {"XPCNN_IMPLICIT_GEMM": "1"}


def suite(*folders: str, rehearsal: str) -> Stage:
    """The tests of some folders on CuPy; a folder that is not there is left out."""
    there = [folder for folder in folders if (ROOT / "tests" / folder).is_dir()]
    return Stage(
        "tests of " + ", ".join(there), (*PYTEST, *(f"tests/{folder}" for folder in there)), ("pytest", "hypothesis"),
        ON_GPU, (*PYTEST, f"tests/{rehearsal}"), writes=False,
    )  # fmt: skip


def sanitized(about: str, tool: str) -> Stage:
    """The kernels under a tool of compute-sanitizer."""
    return Stage(
        f"{about}: the kernels under compute-sanitizer", ("bench/gpu_kernels.py", "--only", "no-portable"), tool=tool
    )


STAGES = {
    "kernels": Stage("every kernel beside its portable expression", ("bench/gpu_kernels.py",)),
    "suite-functional": suite("functional", rehearsal="functional/test_linear.py"),
    "parity": Stage("NumPy, CuPy eager and CuPy captured: gradients and loss curves", ("bench/gpu_parity.py",)),
    "suite-nn": suite("nn", "models", "optim", "data", rehearsal="optim"),
    "suite-rest": suite("backend", "training", "recipes", "cli", "mistakes", "testing", "plot", rehearsal="testing"),
    "steps": Stage("training steps beside PyTorch", ("bench/gpu_speed.py", "--only", "steps", "exact"), ("torch",)),
    "train": Stage("xpcnn train as a whole process", ("bench/gpu_train.py", "--only", "time")),
    "convolutions": Stage("convolutions beside cuDNN", ("bench/gpu_speed.py", "--only", "convolutions"), ("torch",)),
    "steps-implicit": Stage(
        "the same steps without columns in memory",
        ("bench/gpu_speed.py", "--only", "steps", "exact"),
        ("torch",),
        IMPLICIT,
    ),
    "convolutions-implicit": Stage(
        "the same convolutions without columns in memory",
        ("bench/gpu_speed.py", "--only", "convolutions", "exact"),
        ("torch",),
        IMPLICIT,
    ),
    "steps-tf32": Stage("the steps with TF32", ("bench/gpu_speed.py", "--only", "steps", "tf32"), ("torch",)),
    "steps-implicit-tf32": Stage(
        "the steps with TF32 and without columns",
        ("bench/gpu_speed.py", "--only", "steps", "tf32"),
        ("torch",),
        IMPLICIT,
    ),
    "memcheck": sanitized("reads and writes outside of arrays", "memcheck"),
    "racecheck": sanitized("threads of a block that do not wait for each other", "racecheck"),
    "initcheck": sanitized("reads of memory that nobody wrote", "initcheck"),
    "recipes": Stage("the accuracy of every recipe", ("bench/gpu_train.py", "--only", "convergence")),
}


def environment_of(stage: Stage, rehearse: bool) -> dict[str, str]:
    extra = dict(stage.environment)
    if rehearse and "XPCNN_REQUIRE_GPU" in extra and not has_device():
        extra = {"XPCNN_TEST_BACKENDS": "fake", "CI": "1"}
    path = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def run(name: str, stage: Stage, rehearse: bool, folder: Path, limit: float) -> dict[str, Any]:
    """Run one stage; return how it ended, with the end of its output."""
    missing = [package for package in stage.needs if importlib.util.find_spec(package) is None]
    if missing:
        return {"stage": name, "status": "not run", "why": f"{', '.join(missing)} not installed"}
    arguments = list(stage.rehearsal if rehearse and stage.rehearsal else stage.command)
    if stage.writes:
        arguments += ["--out", str(folder / f"gpu-{name}.json"), *(["--rehearse"] if rehearse else [])]
    command = [sys.executable, *arguments]
    if stage.tool and not rehearse:
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if tool is None:
            return {"stage": name, "status": "not run", "why": "compute-sanitizer is not on this machine"}
        command = [tool, "--error-exitcode", "9", "--tool", stage.tool, *command]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment_of(stage, rehearse), text=True, timeout=limit,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = (error.stdout or b"").decode(errors="replace"), None
    status = (
        "passed"
        if code == 0
        else "not run"
        if code == NOT_RUN
        else "ran out of time"
        if code is None
        else f"failed ({code})"
    )
    if stage.tool and "Device not supported" in output:
        status = "not run"
    print(output[-6000:], flush=True)
    tail = output.replace(str(ROOT), ".").splitlines()[-40:]
    why = next((line for line in output.splitlines() if line.startswith("not run: ")), "") if code == NOT_RUN else ""
    return {
        "stage": name,
        "status": status,
        "why": why.removeprefix("not run: "),
        "seconds": round(time.perf_counter() - start, 1),
        "tail": tail,
    }


@functools.cache
def has_device() -> bool:
    """Whether a CUDA device answers, a GPU or an emulated one."""
    from xpcnn.backend import available_backends

    return "cupy" in available_backends()


def number(value: Any, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def table(reports: list[dict[str, Any]], results: Mapping[str, Any]) -> str:
    """Return everything found as Markdown."""
    facts = next((result["facts"] for result in results.values() if "facts" in result), {})
    lines = ["# GPU round" + (" (rehearsal)" if facts.get("rehearsal") else ""), ""]
    shown = {**facts.get("backend", {}), **facts.get("versions", {}), "python": facts.get("python")}
    shown |= {"date": facts.get("date"), "commit": facts.get("commit")}
    lines += [
        ", ".join(f"{key} {value}" for key, value in shown.items()),
        "",
        "| stage | how it ended | s |",
        "|---|---|---|",
    ]
    for report in reports:
        lines.append(
            f"| {report['stage']} | {report['status']} {report.get('why', '')} | {report.get('seconds', '')} |"
        )
    for title, key in (("TF32 off", "exact"), ("TF32 on", "tf32")):
        for name, result in results.items():
            rows = result.get(key, {}).get("steps")
            if rows:
                lines += ["", f"## Training steps, {title} ({name})", ""]
                lines += [
                    "| step | ours ms | bare ms | own eager ms | eager / ours | goal | graph / ours | goal | compiled |"
                ]
                lines += ["|---|---|---|---|---|---|---|---|---|"]
                for row in rows:
                    seconds, goals = row["seconds"], row["goals"]
                    cells = [
                        row["name"], number(1e3 * seconds["ours"], 3), number(1e3 * seconds["ours bare"], 3),
                        number(1e3 * seconds["ours eager"], 3),
                        number(row["against eager"]), number(goals["eager"]), number(row.get("against graph")),
                        number(goals["graph"]), number(row.get("against compile")),
                    ]  # fmt: skip
                    lines.append("| " + " | ".join(cells) + " |")
            rows = result.get(key, {}).get("convolutions")
            if rows:
                lines += [
                    "",
                    f"## Convolutions, {title} ({name})",
                    "",
                    "| convolution | ours ms | cuDNN / ours | share of products |",
                ]
                lines += ["|---|---|---|---|"]
                for row in rows:
                    ratios = number(row["against cuDNN"]), number(row["share of products"])
                    lines.append(
                        f"| {row['name']} | {number(1e3 * row['seconds']['ours'], 3)} | {ratios[0]} | {ratios[1]} |"
                    )
    for name, result in results.items():
        if result.get("checks"):
            lines += ["", f"## Checks of {name}", "", "| check | got | bound | |", "|---|---|---|---|"]
            for found in result["checks"]:
                verdict = "ok" if found["ok"] else "FAILED"
                lines.append(f"| {found['name']} | {found['got']:.3g} | {found['bound']:.3g} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"any of {', '.join(STAGES)}; all by default")
    parser.add_argument(
        "--rehearse", action="store_true", help="small, where no GPU is: on an emulated or the fake device"
    )
    parser.add_argument("--list", action="store_true", help="name the stages and what they do")
    parser.add_argument("--results", type=Path, help="where results go (bench/results)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a stage may take")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name}: {stage.about}" for name, stage in STAGES.items()))
        return 0
    unknown = set(arguments.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    missing = [package for package in REQUIRED if importlib.util.find_spec(package) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; carry their wheels along and put them on PYTHONPATH", file=sys.stderr)
        return 2
    for package, use in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: left out is {use}", flush=True)
    scratch = tempfile.TemporaryDirectory()
    folder = arguments.results or (Path(scratch.name) if arguments.rehearse else HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    for name in arguments.stages or STAGES:
        print(f"=== {name}: {STAGES[name].about}", flush=True)
        report = run(name, STAGES[name], arguments.rehearse, folder, arguments.limit)
        print(f"=== {name}: {report['status']} {report.get('why', '')}", flush=True)
        reports.append(report)
        results = {
            found: json.loads(path.read_text(encoding="utf-8"))
            for found in STAGES
            if (path := folder / f"gpu-{found}.json").exists()
        }
        text = table(reports, results)
        (folder / "gpu-round.md").write_text(text, encoding="utf-8")  # after each stage: the machine may go any moment
        if os.environ.get("OUT"):
            out = Path(os.environ["OUT"])
            (out / "gpu-round.md").write_text(text, encoding="utf-8")
            (out / "gpu-results.json").write_text(json.dumps(results), encoding="utf-8")
            (out / "gpu-reports.json").write_text(json.dumps(reports, indent=1), encoding="utf-8")
    print(text)
    scratch.cleanup()
    return 0 if all(report["status"] in ("passed", "not run") for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
