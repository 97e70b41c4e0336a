"""What ranks cost and bring: measured here, then computed to 1,024.

    python bench/scaling.py                    measures all, writes results/scaling.json, draws results/scaling.png
    python bench/scaling.py --nets lenet5      measures one net again; the file keeps the others
    python bench/scaling.py --draw             tables and picture from the file; --markdown: the guide's tables

Measured over ranks 1, 2, ... of this machine: forward, backward and update of a part (compute), the sum of all
gradients when all have come (reduce), and what the slower makes the others wait (wait); and the sum of arrays of 8
bytes to 16 MB; and steps whose sum begins within backward (`Communicator.bucket_bytes`) beside steps whose sum comes
after it, in turns. The model of a step on p ranks with n bytes of gradients:

    t(p) = compute(part) + min(ring, tree),   ring = 2 (p - 1) alpha + 2 (p - 1) / p n beta
                                              tree = 2 log2(p) (alpha + n beta)

(Hockney's alpha-beta model; Thakur, Rabenseifner, Gropp 2005). `alpha` is what a message costs, `beta` what a byte
does. Where the sum is begun while backward still runs, all but the last tenth may hide behind it (dashed lines).

One machine of 8 to 64 cores is simulated: ranks draw their steps from those measured of one rank and wait for the
slowest of them; threads beyond two (worker processes) follow Amdahl's law from one and two.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
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
BUCKET_BYTES = 1 << 16  # of the steps whose sum begins within backward
WARMUP = 0.4  # seconds of steps before those that count
DRAWS = 200  # steps of a simulation
ONE_MACHINE = 256  # images of a batch on one machine, all ranks together
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
        for _ in range(60):
            communicator.barrier()
            began = time.perf_counter()
            communicator.allreduce(array)
            times.append(time.perf_counter() - began)
            array[...] = 1
        sums[size] = harness.median(times[20:])  # the first meet cold memory
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

        if options.within:
            found = within(trainer, communicator, x, y, options.steps)
            if communicator.rank == 0:
                print(json.dumps(found), flush=True)
            return
        for _ in range(8):
            began = time.perf_counter()
            trainer.train_batch(x, y)
            last = time.perf_counter() - began
        # Worker processes start after a while of replays.
        (warmup,) = communicator.largest([math.ceil(WARMUP / last)])
        steps: list[float] = []
        for step in range(options.steps + warmup):
            if step == warmup:
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
        found["steps"] = [round(each, 6) for each in steps]
        found["bytes"] = 4 * sum(parameter.size for parameter in model.parameters())
    found["threads"] = xpcnn.get_num_threads()
    if communicator.rank == 0:
        print(json.dumps(found), flush=True)


def within(trainer: Any, communicator: Any, x: Any, y: Any, steps: int) -> dict[str, float]:
    """Return the seconds of a step whose sum begins within backward and of one whose sum comes after it, in turns."""
    times: dict[int, list[float]] = {0: [], BUCKET_BYTES: []}
    for turn in range(8):
        communicator.bucket_bytes = BUCKET_BYTES * (turn % 2)
        for step in range(6 + steps // 4):
            began = time.perf_counter()
            trainer.train_batch(x, y)
            if step >= 6:  # a step of another kind is recorded anew
                times[communicator.bucket_bytes].append(time.perf_counter() - began)
    return {"after": harness.median(times[0]), "within": harness.median(times[BUCKET_BYTES])}


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
    results: dict[str, Any] = {"facts": harness.facts(), "sums": {}, "steps": [], "threads": [], "within": []}
    file = harness.RESULTS / "scaling.json"
    if file.exists():
        before = json.loads(file.read_text())
        for name in ("steps", "threads", "within"):
            results[name] = [each for each in before[name] if each["net"] not in options.nets]
    for ranks in options.ranks:
        if ranks > 1:
            results["sums"][str(ranks)] = job(ranks)["sums"]
    for net in options.nets:
        for part in options.parts:
            for ranks in options.ranks:
                found = job(ranks, "--net", net, "--part", str(part), "--steps", str(options.steps))
                del found["steps"]
                results["steps"].append({"net": net, "part": part, "ranks": ranks} | found)
            for threads in range(1, min(4, os.cpu_count() or 1) + 1):
                arguments = "--net", net, "--part", str(part), "--steps", str(options.steps), "--threads", str(threads)
                results["threads"].append({"net": net, "part": part} | job(1, *arguments))
                if threads > 1:
                    del results["threads"][-1]["steps"]  # only one thread's are drawn from
        part = options.parts[len(options.parts) // 2]
        for ranks in options.ranks:
            if ranks > 1:
                arguments = "--net", net, "--part", str(part), "--steps", str(options.steps), "--within"
                results["within"].append({"net": net, "part": part, "ranks": ranks} | job(ranks, *arguments))
    for name in ("steps", "threads", "within"):
        results[name].sort(key=lambda each: list(NETS).index(each["net"]))
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
    """Return the alpha and beta whose model is nearest to all measured sums: least squares of the ratios' logarithms.

    From what the smallest and the largest sum say, in steps that shrink.
    """
    largest, least = max(sums, key=int), min(sums.values())
    found = least / (2 * math.log2(ranks)), max(sums[largest] - least, least) / int(largest)

    def distance(point: tuple[float, float]) -> float:
        return sum(math.log(reduction(ranks, int(size), *point) / seconds) ** 2 for size, seconds in sums.items())

    factor = 2.0
    while factor > 1.001:
        around = [(found[0] * factor**i, found[1] * factor**j) for i in (0, -1, 1) for j in (0, -1, 1)]
        nearest = min(around, key=distance)  # of equals the first, which is the point itself
        if nearest == found:
            factor **= 0.5
        found = nearest
    return found


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


def ratios(results: dict[str, Any], net: str, part: float) -> list[float]:
    """Return how steps of one rank and one thread spread about their median, at the nearest number of images."""
    found = [each for each in results["threads"] if each["net"] == net and each["threads"] == 1]
    nearest = min(found, key=lambda each: abs(each["part"] - part))
    return [each / nearest["step"] for each in nearest["steps"]]


def simulated(results: dict[str, Any], net: str, ranks: int, threads: int, batch: int) -> float:
    """Seconds of a step on one machine, the mean of DRAWS: the slowest rank's compute, then the sum of gradients."""
    one, two = computes(results, net, 1), computes(results, net, 2)
    part = batch / ranks
    t1 = interpolated(one, part)
    t2 = interpolated(two, part) if two else t1
    serial = min(max(2 * t2 - t1, 0.0), t1)
    compute = serial + (t1 - serial) / threads
    spread, draw = ratios(results, net, part), random.Random(0)
    slowest = sum(max(draw.choice(spread) for _ in range(ranks)) for _ in range(DRAWS)) / DRAWS
    least = min(results["sums"], key=int)
    size = next(each["bytes"] for each in results["steps"] if each["net"] == net)
    return compute * slowest + reduction(ranks, size, *fit(results["sums"][least], int(least)))


def one_machine(results: dict[str, Any], net: str, batch: int) -> list[list[str]]:
    """Ranks and threads (worker processes) of one machine, by its cores: milliseconds of a step."""
    ways = {"ranks alone": lambda n: (n, 1), "2 processes a rank": lambda n: (n // 2, 2)}
    ways |= {"4 processes a rank": lambda n: (n // 4, 4), "one rank, 4 processes": lambda n: (1, 4)}
    rows = [["cores", *(f"{name}, ms" for name in ways)]]
    for cores in (8, 16, 32, 64):
        times = [simulated(results, net, *way(cores), batch) for way in ways.values()]
        rows.append([str(cores), *map(harness.milliseconds, times)])
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


def computed(results: dict[str, Any], part: int) -> list[list[str]]:
    """Speed a rank, of one alone, by network: at 64 and 1,024 ranks, and up to where a fixed batch gains."""
    rows = [["net", "network", "64 ranks", "1,024 ranks", "1,024 ranks, overlapped", "a batch of 4,096 pays until"]]
    for net in dict.fromkeys(each["net"] for each in results["steps"]):
        size = next(each["bytes"] for each in results["steps"] if each["net"] == net)
        compute = computes(results, net, 1)
        alone = interpolated(compute, part)
        for name, network in NETWORKS.items():
            speeds = [alone / step(alone, *point) for point in ((64, size, network), (1024, size, network))]
            speeds.append(alone / step(alone, 1024, size, network, True))
            until = pays_until(compute, 4096, size, network)
            rows.append([net, name, *(f"{speed:.2f}" for speed in speeds), f"{until} ranks"])
    return rows


def draw(results: dict[str, Any], path: Path, part: int) -> None:
    """Draw speed a rank over ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    nets = list(dict.fromkeys(each["net"] for each in results["steps"]))
    figure, panels = plt.subplots(1, len(nets), figsize=(4.2 * len(nets), 3.6), sharey=True, squeeze=False)
    ranks = [1 << i for i in range(11)]
    for panel, net in zip(panels[0], nets, strict=True):
        size = next(each["bytes"] for each in results["steps"] if each["net"] == net)
        alone = interpolated(computes(results, net, 1), part)
        for name, network in NETWORKS.items():
            (line,) = panel.plot(ranks, [alone / step(alone, p, size, network) for p in ranks], label=name)
            hidden = [alone / step(alone, p, size, network, True) for p in ranks]
            panel.plot(ranks, hidden, "--", color=line.get_color(), linewidth=0.9)
        panel.set(
            xscale="log", xlabel="ranks", title=f"{net}, {part} images a rank, {alone * 1e3:.1f} ms", ylim=(0, 1.03)
        )
        panel.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("speed a rank, of one alone")
    panels[0][-1].legend(loc="lower left", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def check_sums(results: dict[str, Any]) -> list[list[str]]:
    """Beside each sum measured: the model's, from the smallest and the largest."""
    rows = [["ranks", "bytes", "measured ms", "model ms", "model / measured"]]
    for ranks, sums in results["sums"].items():
        for size, seconds in sums.items():
            model = reduction(int(ranks), int(size), *fit(sums, int(ranks)))
            said = map(harness.milliseconds, (seconds, model))
            rows.append([ranks, f"{int(size):,}", *said, f"{model / seconds:.2f}"])
    return rows


def within_rows(results: dict[str, Any]) -> list[list[str]]:
    """Steps whose sum begins within backward beside those whose sum comes after it."""
    rows = [["net", "images a rank", "ranks", "sum after backward, ms", "within, ms", "after / within"]]
    for each in results["within"]:
        times = [harness.milliseconds(each[name]) for name in ("after", "within")]
        ratio = f"{each['after'] / each['within']:.2f}"
        rows.append([each["net"], str(each["part"]), str(each["ranks"]), *times, ratio])
    return rows


def largest_part(results: dict[str, Any]) -> int:
    """Images of a rank for which networks are computed."""
    return max(each["part"] for each in results["steps"])


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """All tables, by what they show."""
    found = {
        "steps measured, and the model": check(results),
        "sums measured, and the model": check_sums(results),
        "sums within backward, measured": within_rows(results),
        f"speed a rank, of one alone, computed for {largest_part(results)} images a rank": computed(
            results, largest_part(results)
        ),
    }
    for net in dict.fromkeys(each["net"] for each in results["steps"]):
        found[f"one machine, {net}, a batch of {ONE_MACHINE}, simulated"] = one_machine(results, net, ONE_MACHINE)
    return found


def markdown(results: dict[str, Any]) -> str:
    """The tables as the guide on several processes has them."""
    parts = []
    for title, (heading, *rows) in tables(results).items():
        lines = [f"{title[0].upper()}{title[1:]}:", "", f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--parts", type=int, nargs="*", default=PARTS)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--draw", action="store_true", help="from results/scaling.json, without measuring")
    parser.add_argument("--faster", type=float, default=1.0, help="draw for ranks that compute so many times as fast")
    parser.add_argument("--markdown", action="store_true", help="print the guide's tables, from results/scaling.json")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--net", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=64, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_of_a_job(options)
        return 0
    file = harness.RESULTS / "scaling.json"
    if not options.draw and not options.markdown:
        harness.write(file.name, measure(options))
    results = json.loads(file.read_text())
    if options.markdown:
        print(markdown(results))
        return 0
    for each in results["threads"]:
        each["step"] /= options.faster
    for ranks, sums in results["sums"].items():
        alpha, beta = fit(sums, int(ranks))
        print(f"sums over {ranks} ranks here: alpha {alpha * 1e6:.1f} us, beta {beta * 1e9:.3f} ns a byte", end="\n\n")
    for title, rows in tables(results).items():
        print(f"{title}:\n{harness.table(rows)}", end="\n\n")
    draw(results, harness.RESULTS / "scaling.png", largest_part(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
