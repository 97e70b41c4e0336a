"""What ranks cost and bring: measured here, then computed to 1,024. `python bench/scaling.py`; --draw takes results.

Measured over ranks 1, 2, ... of this machine: forward, backward and update of a part (compute), the sum of all
gradients when all have come (reduce), and what the slower makes the others wait (wait); and the sum of arrays of 8
bytes to 16 MB. The model of a step on p ranks with n bytes of gradients:

    t(p) = compute(part) + min(ring, tree),   ring = 2 (p - 1) alpha + 2 (p - 1) / p n beta
                                              tree = 2 log2(p) (alpha + n beta)

(Hockney's alpha-beta model; Thakur, Rabenseifner, Gropp 2005). `alpha` is what a message costs, `beta` what a byte
does. Where the sum is begun while backward still runs, all but the last tenth may hide behind it (dashed lines).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness

NETS = {"lenet5": (1, 32, 32), "resnet20": (3, 32, 32), "vgg8": (3, 32, 32)}
SIZES = [8, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 24]  # bytes
PARTS = [4, 16, 64, 128]  # images of a rank
# What networks are taken to cost: seconds a message, seconds a byte. Ethernet through the kernel, InfiniBand or RoCE,
# and NVLink with NCCL (a launch apiece; 300 GB/s of a ring).
NETWORKS = {
    "10 Gbit/s": (30e-6, 8 / 10e9),
    "25 Gbit/s": (20e-6, 8 / 25e9),
    "100 Gbit/s": (3e-6, 8 / 100e9),
    "NVLink": (6e-6, 1 / 300e9),
}
HIDDEN = 0.9  # share of a sum that can hide behind backward, which is this share of forward and backward:
BACKWARD = 2 / 3


# --- measured -------------------------------------------------------------------------------------------------------


def rank_of_a_job(options: argparse.Namespace) -> None:
    """Run as one rank: rank 0 prints what was measured as a line of JSON."""
    import numpy as np

    import xpcnn
    from xpcnn import distributed, models, nn, optim
    from xpcnn.training import Trainer

    communicator = distributed.init()
    if options.threads:
        xpcnn.set_num_threads(options.threads)
    sums = {}
    for size in SIZES if not options.net else []:
        array = np.ones(size // 4, "float32")
        times = []
        for _ in range(30):
            communicator.barrier()
            began = time.perf_counter()
            communicator.allreduce(array)
            times.append(time.perf_counter() - began)
            array[...] = 1
        sums[size] = harness.median(times)
    found: dict[str, Any] = {"sums": sums}
    if options.net:
        xpcnn.manual_seed(0)
        model = models.create(options.net)
        optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
        trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), communicator=communicator)
        rng = np.random.default_rng(0)
        batch = options.part * communicator.size
        x, y = rng.normal(size=(batch, *NETS[options.net])).astype("float32"), rng.integers(0, 10, batch)
        parts: dict[str, list[float]] = {"wait": [], "reduce": []}
        allreduce = communicator.allreduce

        def timed(array: Any, op: str = "sum") -> Any:
            began = time.perf_counter()
            communicator.barrier()
            come = time.perf_counter()
            result = allreduce(array, op)
            parts["wait"][-1] += come - began
            parts["reduce"][-1] += time.perf_counter() - come
            return result

        steps = []
        for step in range(options.steps + 8):
            if step == 8:
                communicator.allreduce = timed  # type: ignore[method-assign]
                steps.clear()
                parts = {"wait": [], "reduce": []}
            parts["wait"].append(0.0)
            parts["reduce"].append(0.0)
            began = time.perf_counter()
            trainer.train_batch(x, y)
            steps.append(time.perf_counter() - began)
        communicator.allreduce = allreduce  # type: ignore[method-assign]
        median = {name: harness.median(values) for name, values in parts.items()}
        total = harness.median(steps)
        found |= {"step": total, **median, "compute": total - sum(median.values())}
        found["bytes"] = 4 * sum(parameter.size for parameter in model.parameters())
    found["threads"] = xpcnn.get_num_threads()
    if communicator.rank == 0:
        print(json.dumps(found), flush=True)


def job(ranks: int, *arguments: str) -> dict[str, Any]:
    """Run a job and return what its rank 0 has measured."""
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec") or "mpiexec"
    environment = harness.clean_environment(1) | {"PYTHONWARNINGS": "ignore"}
    for name in ("OMP_NUM_THREADS", "XPCNN_NUM_THREADS"):
        environment.pop(name)
    command = [launcher, "-n", str(ranks), sys.executable, __file__, "--rank", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"facts": harness.facts(), "sums": {}, "steps": [], "threads": []}
    for ranks in options.ranks:
        if ranks > 1:
            results["sums"][str(ranks)] = job(ranks)["sums"]
    for net in options.nets:
        for part in options.parts:
            for ranks in options.ranks:
                found = job(ranks, "--net", net, "--part", str(part), "--steps", str(options.steps))
                results["steps"].append({"net": net, "part": part, "ranks": ranks} | found)
            for threads in range(1, min(4, os.cpu_count() or 1) + 1):
                arguments = "--net", net, "--part", str(part), "--steps", str(options.steps), "--threads", str(threads)
                results["threads"].append({"net": net, "part": part} | job(1, *arguments))
    return results


# --- computed -------------------------------------------------------------------------------------------------------


def ring(ranks: int, size: float, alpha: float, beta: float) -> float:
    return 2 * (ranks - 1) * alpha + 2 * (ranks - 1) / ranks * size * beta


def tree(ranks: int, size: float, alpha: float, beta: float) -> float:
    return 2 * math.ceil(math.log2(ranks)) * (alpha + size * beta) if ranks > 1 else 0.0


def reduction(ranks: int, size: float, alpha: float, beta: float) -> float:
    """Seconds of a sum by the better of both ways."""
    return min(ring(ranks, size, alpha, beta), tree(ranks, size, alpha, beta))


def step(compute: float, ranks: int, size: float, network: tuple[float, float], overlap: bool = False) -> float:
    """Seconds of a step."""
    seconds = reduction(ranks, size, *network)
    hidden = min(HIDDEN * seconds, BACKWARD * compute) if overlap else 0.0
    return compute + seconds - hidden


def fit(sums: dict[str, float], ranks: int) -> tuple[float, float]:
    """Return alpha and beta by the smallest and the largest array."""
    sizes = sorted(sums, key=int)
    rounds = 2 * math.log2(ranks)
    alpha = sums[sizes[0]] / rounds
    beta = max(0.0, sums[sizes[-1]] - sums[sizes[0]]) / (2 * (ranks - 1) / ranks * int(sizes[-1]))
    return alpha, beta


def check(results: dict[str, Any]) -> list[list[str]]:
    """Beside each step measured on several ranks: the model's, from one rank's compute and the sums."""
    rows = [["net", "part", "ranks", "compute ms", "wait ms", "reduce ms", "step ms", "model ms", "model / measured"]]
    for each in results["steps"]:
        net, part, ranks = each["net"], each["part"], each["ranks"]
        model = each["step"]
        if ranks > 1:
            alone = computes(results, net, each["threads"])[part]  # of one rank, with the threads that each has here
            model = step(alone, ranks, each["bytes"], fit(results["sums"][str(ranks)], ranks))
        times = [harness.milliseconds(each[name]) for name in ("compute", "wait", "reduce", "step")]
        ratio = f"{model / each['step']:.2f}"
        rows.append([net, str(part), str(ranks), *times, harness.milliseconds(model), ratio])
    return rows


def computes(results: dict[str, Any], net: str, threads: int) -> dict[int, float]:
    """Seconds of a step of one rank by images, with so many threads."""
    return {t["part"]: t["step"] for t in results["threads"] if t["net"] == net and t["threads"] == threads}


def interpolated(times: dict[int, float], images: float) -> float:
    """Seconds for any number of images, straight between what was measured; a step has a least."""
    known = sorted(times)
    if images >= known[-1]:
        return times[known[-1]] * images / known[-1]
    low, high = known[0], known[1]
    for a, b in pairwise(known):
        if images >= a:
            low, high = a, b
    slope = (times[high] - times[low]) / (high - low)
    return max(times[low] + slope * (images - low), times[known[0]] * 0.25)


def one_machine(results: dict[str, Any], net: str, batch: int) -> list[list[str]]:
    """Ranks and threads (worker processes) of one machine, by its cores: milliseconds of a step, the best first.

    Threads beyond those measured follow Amdahl's law from one and two; a reduction costs as here.
    """
    one, two = computes(results, net, 1), computes(results, net, 2)
    sums = results["sums"]
    alpha, beta = fit(sums[min(sums, key=int)], int(min(sums, key=int)))
    size = results["steps"][[each["net"] for each in results["steps"]].index(net)]["bytes"]
    rows = [["cores", "best", "ms", "ranks alone", "4 processes a rank", "one rank, 4 processes"]]
    for cores in (8, 16, 32, 64):
        found = {}
        for threads in (1, 2, 4):
            for ranks in (1, cores // threads):
                part = batch / ranks
                t1, t2 = interpolated(one, part), interpolated(two, part) if two else interpolated(one, part)
                serial = min(max(2 * t2 - t1, 0.0), t1)
                compute = serial + (t1 - serial) / threads
                found[ranks, threads] = compute + reduction(ranks, size, alpha, beta)
        best = min(found, key=lambda key: found[key])
        said = [harness.milliseconds(found[key]) for key in (best, (cores, 1), (cores // 4, 4), (1, 4))]
        rows.append([str(cores), f"{best[0]} x {best[1]}", *said])
    return rows


def pays_until(compute: dict[int, float], batch: int, size: float, network: tuple[float, float]) -> int:
    """Return the ranks up to which twice as many still give 1.5 times as many steps of a batch of `batch`."""
    ranks = 1
    while ranks < 1024 and ranks * 2 <= batch:
        now, then = (step(interpolated(compute, batch / p), p, size, network) for p in (ranks, 2 * ranks))
        if now / then < 1.5:
            break
        ranks *= 2
    return ranks


def draw(results: dict[str, Any], path: Path, part: int) -> list[list[str]]:
    """Draw efficiency over ranks; return a table of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    nets = list(dict.fromkeys(each["net"] for each in results["steps"]))
    figure, panels = plt.subplots(1, len(nets), figsize=(4.2 * len(nets), 3.6), sharey=True, squeeze=False)
    ranks = [1 << i for i in range(11)]
    rows = [["net", "network", "at 64", "at 1024", "overlapped at 1024", "a batch of 4096 pays until"]]
    for panel, net in zip(panels[0], nets, strict=True):
        size = next(each["bytes"] for each in results["steps"] if each["net"] == net)
        compute = computes(results, net, 1)
        alone = interpolated(compute, part)
        for name, network in NETWORKS.items():
            plain = [alone / step(alone, p, size, network) for p in ranks]
            hidden = [alone / step(alone, p, size, network, True) for p in ranks]
            (line,) = panel.plot(ranks, plain, label=name)
            panel.plot(ranks, hidden, "--", color=line.get_color(), linewidth=0.9)
            until = pays_until(compute, 4096, size, network)
            rows.append([net, name, f"{plain[6]:.2f}", f"{plain[10]:.2f}", f"{hidden[10]:.2f}", f"{until} ranks"])
        panel.set(
            xscale="log", xlabel="ranks", title=f"{net}, {part} images a rank, {alone * 1e3:.1f} ms", ylim=(0, 1.03)
        )
        panel.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("speed a rank, of one alone")
    panels[0][-1].legend(loc="lower left", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--parts", type=int, nargs="*", default=PARTS)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--draw", action="store_true", help="from results/scaling.json, without measuring")
    parser.add_argument("--faster", type=float, default=1.0, help="draw for ranks that compute so many times as fast")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--net", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=64, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_of_a_job(options)
        return 0
    file = harness.RESULTS / "scaling.json"
    if not options.draw:
        harness.write(file.name, measure(options))
    results = json.loads(file.read_text())
    print(harness.table(check(results)), end="\n\n")
    for each in results["threads"]:
        each["step"] /= options.faster
    for ranks, sums in results["sums"].items():
        alpha, beta = fit(sums, int(ranks))
        print(f"sums over {ranks} ranks here: alpha {alpha * 1e6:.1f} us, beta {beta * 1e9:.3f} ns a byte")
    part = max(each["part"] for each in results["steps"])
    print(harness.table(draw(results, harness.RESULTS / "scaling.png", part)), end="\n\n")
    for net in dict.fromkeys(each["net"] for each in results["steps"]):
        if results["sums"]:
            print(f"one machine, {net}, a batch of 256:")
            print(harness.table(one_machine(results, net, 256)), end="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
