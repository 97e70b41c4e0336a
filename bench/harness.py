"""Shared by the benchmark commands: peers as child processes, facts about the machine, statistics, results files."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"

PATH = re.compile(r"(?:/[\w.+@-]+){2,}")  # results are published: no folder of this machine in an error's text
LEAST_WATCHED = 0.2  # seconds of all cores: below, the clock of /proc, a hundredth of a second, says too little
DISTURBED = 0.1  # share of the machine above which other programs make a figure doubtful
HUGE = str(1 << 30)
WRITTEN, TRAINER, FREE, COMPILED = "xpcnn-written", "xpcnn-trainer", "xpcnn-free-threaded", "torch-compile"
OURS = ("xpcnn", WRITTEN, TRAINER, FREE)
WHOLE_NETS = ("train", "inference")
EVERY_KIND = (*WHOLE_NETS, "evaluation", "conv", "pool")
BEST_WAYS = ("compiled", "folded and recorded", "default")
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "BENCH_TRACEBACK")


@dataclass(frozen=True)
class Peer:
    """A library as it is run here: a column of the table.

    `module` names its file in peers/, `home` its environment where that differs; of the ways in which it does a
    workload those that match one of `ways` compete, and the best one runs.
    """

    name: str
    module: str
    environment: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    kinds: tuple[str, ...] = ("train", "inference", "conv", "pool")  # of workloads that it can do
    home: str = ""
    ways: tuple[str, ...] = ("*",)  # shell patterns

    def has(self, way: str) -> bool:
        """Whether a way to do a workload is one of this column's."""
        return any(fnmatchcase(way, pattern) for pattern in self.ways)

    def python(self, interpreters: Mapping[str, str]) -> str:
        """The interpreter that runs it."""
        return interpreters[self.home or self.module]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "xpcnn",
            "xpcnn",
            about="this library, a loop of one's own under xpcnn.compile",
            kinds=EVERY_KIND,
            ways=BEST_WAYS,
        ),
        Peer(
            WRITTEN,
            "xpcnn",
            about="the same loop as written",
            kinds=(*WHOLE_NETS, "evaluation"),
            ways=("written out", "plain"),
        ),
        Peer(TRAINER, "xpcnn", about="this library's Trainer", kinds=("train",), ways=("trainer",)),
        Peer(FREE, "xpcnn", {"PYTHON_GIL": "0"}, "this library on a free-threaded Python", home=FREE, ways=BEST_WAYS),
        Peer("torch", "torch", about="PyTorch eager, best of its variants", kinds=EVERY_KIND, ways=("*/eager",)),
        Peer(
            COMPILED, "torch", about="PyTorch under torch.compile", kinds=("train", "inference"), ways=("*/compiled",)
        ),
        Peer(
            "torch-malloc",
            "torch",
            {"MALLOC_MMAP_THRESHOLD_": HUGE, "MALLOC_TRIM_THRESHOLD_": HUGE},
            "PyTorch with glibc's malloc thresholds raised",
            ways=("*/eager",),
        ),
        Peer("jax", "jax", {"JAX_PLATFORMS": "cpu"}, "JAX, the whole step jitted"),
        Peer("chainer", "chainer", {"CHAINER_WARN_VERSION_MISMATCH": "0"}, "Chainer 7.8.1 on NumPy 1.23"),
        Peer("onnxruntime", "onnxruntime", about="ONNX Runtime", kinds=("inference",)),
    )
}


class PeerError(Exception):
    """A peer cannot do what it was asked."""


def clean_environment(threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a measured process: nothing inherited that steers BLAS, threads or malloc; threads said aloud.

    OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE in particular are left out: some environments hold OpenBLAS to an old kernel.
    """
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XPCNN_NUM_THREADS")
    return kept | dict.fromkeys(counts, str(threads)) | {"PYTHONPATH": str(ROOT)} | dict(extra or {})


class Worker:
    """One child process of one peer (see worker.py). Only one worker is asked at a time; the others sleep."""

    def __init__(self, peer: Peer | str, python: str, threads: int, extra: Mapping[str, str] | None = None) -> None:
        self.name = peer if isinstance(peer, str) else peer.name
        module = peer if isinstance(peer, str) else peer.module
        environment = clean_environment(threads, {} if isinstance(peer, str) else peer.environment)
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_TRACEBACK") else subprocess.DEVNULL,
            env=environment | dict(extra or {}),
            cwd=ROOT,
            text=True,
        )

    def ask(self, do: str, timeout: float = 900.0, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(f"the process of {self.name} has ended") from error
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            raise PeerError(f"{self.name} {'ended' if ready else 'gave no answer'} while asked to {do}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(PATH.sub("<path>", reply["error"]))
        return reply

    def cpu_seconds(self) -> float:
        """Processor time that the process has used; 0 where /proc is not there."""
        return process_cpu_seconds(self.process.pid)

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def process_cpu_seconds(pid: int) -> float:
    """User plus system time of a process and its children in seconds; 0 where /proc is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child for each in Path(f"/proc/{pid}/task").glob("*/children") for child in each.read_text().split()
        ]
    except OSError:
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(process_cpu_seconds(int(child)) for child in children)


def machine_cpu_seconds() -> float:
    """Processor time that the whole machine has used, stolen time included; 0 where /proc is not there."""
    try:
        counts = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0.0
    return (sum(counts[:8]) - counts[3] - counts[4]) / os.sysconf("SC_CLK_TCK")  # less idle and iowait


@dataclass(frozen=True)
class Noise:
    """What of the machine others took while something was measured, as shares of all cores."""

    others: float = 0.0  # programs that are not ours
    peers: float = 0.0  # workers that should sleep


def watch(worker: Worker, sleepers: list[Worker], call: Callable[[], Any]) -> tuple[Any, Noise]:
    """Run `call` and account for the processor time that neither the worker nor this process used meanwhile."""
    start = time.perf_counter()
    before = machine_cpu_seconds(), worker.cpu_seconds() + time.process_time()
    asleep = sum(sleeper.cpu_seconds() for sleeper in sleepers)
    result = call()
    asleep = sum(sleeper.cpu_seconds() for sleeper in sleepers) - asleep
    wall = (time.perf_counter() - start) * (os.cpu_count() or 1)
    if wall < LEAST_WATCHED:
        return result, Noise()
    foreign = machine_cpu_seconds() - before[0] - (worker.cpu_seconds() + time.process_time() - before[1]) - asleep
    return result, Noise(max(0.0, foreign / wall), asleep / wall)


@dataclass
class Patience:
    """Seconds that may still go into waiting for other programs to rest, shared by the turns of one workload."""

    left: float

    def wait(self, settle: float, limit: float) -> None:
        """Wait until nothing, threads of a peer that still spin included, takes more than `limit` of the machine."""
        while True:
            before, start = machine_cpu_seconds() - time.process_time(), time.perf_counter()
            time.sleep(settle)
            used = machine_cpu_seconds() - time.process_time() - before
            wall = time.perf_counter() - start
            if self.left <= 0 or used <= limit * wall * (os.cpu_count() or 1):
                return
            self.left -= wall


def processor() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def processor_details() -> dict[str, Any]:
    """Family, model and caches tell processors apart that share a name on virtual machines."""
    details: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "machine": platform.machine()}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("cpu family", "model", "cache size"):
                details.setdefault(key.strip().replace(" ", "_"), value.strip())
            if key.strip() == "flags":
                wanted = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
                details.setdefault("features", [flag for flag in wanted if flag in value.split()])
    except OSError:
        pass
    return details


def commit() -> str:
    """The git commit that is measured, with "+changes" where files of the package differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    try:
        head = git("rev-parse", "--short=12", "HEAD").strip()
        changed = [
            line for line in git("status", "--porcelain", "--", "xpcnn", "bench").splitlines() if ".json" not in line
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def facts() -> dict[str, Any]:
    """What a results file says about its origin. No host name, no user, no path."""
    return {
        **processor_details(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Write a results file whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def median(values: list[float]) -> float:
    return statistics.median(values)


def table(rows: list[list[str]]) -> str:
    """Plain aligned columns; the first row is the heading, the first column is text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * n for n in widths))
    return "\n".join(line.rstrip() for line in lines)


def milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def interpreters(given: list[str], environments: Path | None) -> dict[str, str]:
    """The Python of each environment: `NAME=PATH` as given, else the environment's, else the one that runs this."""
    found = dict.fromkeys((peer.home or peer.module for peer in PEERS.values()), sys.executable)
    if environments is not None:
        for home in found:
            candidate = environments / home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
            if candidate.exists():
                found[home] = str(candidate)
    for item in given:
        name, separator, path = item.partition("=")
        if not separator or name not in found:
            raise SystemExit(f"--python takes NAME=PATH with NAME one of {', '.join(found)}, got {item!r}")
        found[name] = path
    return found
