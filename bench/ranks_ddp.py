"""Two ranks of this library beside two of PyTorch's DistributedDataParallel on gloo: `python bench/ranks_ddp.py`.

Writes results/ranks-ddp.json; --markdown prints the guide's table from it.
One run: rounds take turns, each starts both ranks anew and gives the median of its steps. The same net, global batch,
update rule and number of threads; needs mpi4py with an MPI, and PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import workloads as w

NETS = ("lenet5", "deep3")
LIBRARIES = ("xpcnn", "torch")


def ours(net: str, batch: int, steps: int, warmup: int) -> list[float]:
    """Seconds of each step of this rank."""
    import numpy as np

    import xpcnn
    from xpcnn import distributed, models, nn, optim
    from xpcnn.training import Trainer

    communicator = distributed.init()
    xpcnn.manual_seed(0)
    model = models.create(net)
    optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
    trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), communicator=communicator)
    rng = np.random.default_rng(0)
    shape = tuple(w.NETS[net].image)
    data = [(rng.normal(size=(batch, *shape)).astype("float32"), rng.integers(0, 10, batch)) for _ in range(4)]
    seconds = []
    for step in range(warmup + steps):
        began = time.perf_counter()
        trainer.train_batch(*data[step % 4])
        seconds.append(time.perf_counter() - began)
    return seconds[warmup:] if communicator.rank == 0 else []


def torch_s(net: str, batch: int, steps: int, warmup: int) -> list[float]:
    """The same of PyTorch's; RANK and the meeting file come by the environment."""
    import torch
    import torch.distributed as dist
    from peers.torch_peer import sequential
    from torch.nn.parallel import DistributedDataParallel

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo", init_method=f"file://{os.environ['MEETING']}", rank=rank, world_size=size)
    torch.manual_seed(0)
    layout = torch.channels_last
    model = DistributedDataParallel(sequential(w.NETS[net].layers).to(memory_format=layout))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    shape = tuple(w.NETS[net].image)
    part = batch // size
    data = [
        (torch.randn(part, *shape).to(memory_format=layout), torch.randint(0, 10, (part,)))
        for _ in range(4)
    ]  # fmt: skip
    seconds = []
    for step in range(warmup + steps):
        x, y = data[step % 4]
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        float(loss)
        seconds.append(time.perf_counter() - began)
    dist.barrier()  # who leaves first ends the other with an abort
    dist.destroy_process_group()
    return seconds[warmup:] if rank == 0 else []


def round_of(library: str, net: str, options: argparse.Namespace) -> float:
    """Median seconds of a step in a job of its own."""
    threads = max(1, (os.cpu_count() or 1) // options.ranks)
    environment = harness.clean_environment(threads) | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--rank", library, "--nets", net]
    command += ["--batch", str(options.batch), "--steps", str(options.steps), "--warmup", str(options.warmup)]
    with tempfile.TemporaryDirectory() as folder:
        if library == "xpcnn":
            beside = Path(sys.executable).parent / "mpiexec"
            launcher = str(beside) if beside.exists() else shutil.which("mpiexec") or "mpiexec"
            jobs = [
                subprocess.Popen([launcher, "-n", str(options.ranks), *command], env=environment, stdout=-1, text=True)
            ]
        else:
            environment |= {
                "WORLD_SIZE": str(options.ranks),
                "MEETING": f"{folder}/meeting",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            jobs = [
                subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=-1, text=True)
                for rank in range(options.ranks)
            ]
        said = [job.communicate(timeout=600)[0] for job in jobs]
    if any(job.returncode for job in jobs):
        raise SystemExit(f"{library} failed")
    (line,) = [line for text in said for line in text.splitlines() if line.startswith("[") and line != "[]"]
    return harness.median(json.loads(line))


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The medians of the rounds, their ratio, and its range over rounds."""
    found = [["net", "ours, ms", "DDP, ms", "DDP / ours", "in each round"]]
    for net, times in results["nets"].items():
        mine, peer = (harness.median(times[library]) for library in LIBRARIES)
        each = [theirs / own for own, theirs in zip(*(times[library] for library in LIBRARIES), strict=True)]
        said = harness.milliseconds(mine), harness.milliseconds(peer), f"{peer / mine:.2f}"
        found.append([net, *said, f"{min(each):.2f} to {max(each):.2f}"])
    return found


def markdown(results: dict[str, Any]) -> str:
    """The table as the guide on several processes has it."""
    heading, *others = rows(results)
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in others)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="of all ranks")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="print the guide's table, from results/ranks-ddp.json")
    parser.add_argument("--rank", choices=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads((harness.RESULTS / "ranks-ddp.json").read_text())))
        return 0
    if options.rank:
        work = {"xpcnn": ours, "torch": torch_s}[options.rank]
        print(json.dumps(work(options.nets[0], options.batch, options.steps, options.warmup)), flush=True)
        return 0
    results: dict[str, Any] = {"facts": harness.facts(), "ranks": options.ranks, "batch": options.batch, "nets": {}}
    for net in options.nets:
        times: dict[str, list[float]] = {library: [] for library in LIBRARIES}
        for _ in range(options.rounds):
            for library in LIBRARIES:
                times[library].append(round_of(library, net, options))
        results["nets"][net] = times
    print(harness.table(rows(results)))
    print(f"written: {harness.write('ranks-ddp.json', results).name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
