"""The device of a GPU round: CuPy's, or the fake device in a rehearsal; its clock, its versions, its results files."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import PATH, ROOT, facts

sys.path.insert(0, str(ROOT))
NOT_RUN = 3  # the exit status of a stage that this machine cannot do
LIBRARIES = (
    "numpy",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "torch",
    "triton",
    "pytest",
    "hypothesis",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
)


class Device:
    """Where a stage runs. A rehearsal has small sizes, and the fake device where no other answers."""

    def __init__(self, rehearse: bool, with_kernels: bool = False) -> None:
        from xpcnn.backend import register_backend, set_backend

        self.rehearse = rehearse
        self.name = "fake" if rehearse and not has_device() else "cupy"
        if self.name == "fake":
            register_backend(stand_in(with_kernels))
        set_backend(self.name)  # raises where there is no device, and says what is missing

    def scaled(self, full: int, small: int) -> int:
        """`full` on a GPU, `small` in a rehearsal."""
        return small if self.rehearse else full

    def synchronize(self) -> None:
        from xpcnn.backend import get_backend

        get_backend().synchronize()
        with contextlib.suppress(ImportError):
            import torch

            if torch.cuda.is_available():
                torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], calls: int) -> float:
        """Seconds per call of the device's queue, by two events around `calls` of them."""
        self.synchronize()
        if self.name == "fake":
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) / calls
        import cupy

        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record(cupy.cuda.Stream.null)
        for _ in range(calls):
            call()
        last.record(cupy.cuda.Stream.null)
        last.synchronize()
        return float(cupy.cuda.get_elapsed_time(first, last)) / 1000 / calls

    def medians(self, calls: dict[str, Callable[[], Any]], rounds: int, target: float) -> dict[str, float]:
        """Median seconds of each, measured in turns of about `target` seconds; the first turn warms up."""
        counts = {
            name: max(1, min(2000, int(target / max(1e-6, self.seconds(call, 3))))) for name, call in calls.items()
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(self.seconds(call, counts[name]))
        return {name: statistics.median(values) for name, values in times.items()}

    def facts(self) -> dict[str, Any]:
        """What the results say about their origin: device, driver, versions, date, commit; no host name."""
        from xpcnn.backend import get_backend

        versions = {}
        for library in LIBRARIES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[library] = importlib.metadata.version(library)
        found = facts()
        if os.environ.get("XPCNN_COMMIT"):  # the GPU machine has the files but not the history
            found["commit"] = os.environ["XPCNN_COMMIT"]
        own = {key: value for key, value in get_backend().info().items() if isinstance(value, str | int | float | bool)}
        return {
            **found,
            "rehearsal": self.rehearse,
            "python": sys.version.split()[0],
            "versions": versions,
            "backend": own,
        }


def has_device() -> bool:
    """Whether a CUDA device answers, a GPU or an emulated one."""
    from xpcnn.backend import available_backends

    return "cupy" in available_backends()


def stand_in(with_kernels: bool) -> Any:
    """The fake device; with the CUDA kernels run on the CPU, slowly, where asked and there is a compiler for them."""
    if with_kernels and shutil.which("g++"):
        from tests.gpu_static.shim import ShimBackend

        return ShimBackend()
    from tests.fake_device import FakeBackend

    return FakeBackend()


def array(value: Any, dtype: Any = None) -> Any:
    """Bring a host array to the active backend."""
    from xpcnn.backend import get_backend

    return get_backend().asarray(value, dtype)


def host(value: Any) -> np.ndarray:
    from xpcnn.backend import backend_of

    return np.asarray(backend_of(value).to_numpy(value))


def relative(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The norm of the difference as a share of the norm of what is expected, over all arrays together."""
    difference = sum(
        float(((a.astype(float) - b.astype(float)) ** 2).sum()) for a, b in zip(got, expected, strict=True)
    )
    return float(np.sqrt(difference / max(1e-300, sum(float((b.astype(float) ** 2).sum()) for b in expected))))


def stage(
    run: Callable[[Device, argparse.Namespace], dict[str, Any]], description: str, with_kernels: bool = False
) -> None:
    """The command line of a stage: run it, write its results to --out, exit 1 where a check failed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="names to leave the rest out")
    arguments = parser.parse_args()
    device = Device(arguments.rehearse, with_kernels)
    result = run(device, arguments)
    write(arguments.out, {"facts": device.facts(), **result})
    if "not run" in result:
        print(f"not run: {result['not run']}", flush=True)
        sys.exit(NOT_RUN)
    failed = [check["name"] for check in result.get("checks", []) if not check["ok"]]
    for check in result.get("checks", []):
        print(
            f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['got']} (bound {check['bound']})", flush=True
        )
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def check(name: str, got: float, bound: float) -> dict[str, Any]:
    """One measured number that must not pass its bound."""
    return {"name": name, "got": got, "bound": bound, "ok": bool(got <= bound)}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write results whole or not at all, without paths of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(PATH.sub("PATH", json.dumps(content, indent=1)) + "\n", encoding="utf-8")
    os.replace(temporary, path)
