"""Measure xpcnn on the CPU beside its peers in one interleaved run.

    python bench/run.py                          every workload and every peer that is there; writes bench/results/
    python bench/run.py --output cpu-table.json 'conv-*'    these again; the table keeps its other rows
    python bench/run.py --quick lenet5 'conv-*'  xpcnn and PyTorch only, three short rounds, writes nothing
    python bench/run.py --python torch=/some/env/bin/python --envs FOLDER

Every peer runs in a process of its own and only one works at a time. A round is A B A B, the next one B A B A. A ratio
is taken per round (median of the peer's steps over median of ours); the row states the median of the ratios and their
range. A ratio nearer than 1.3 to its goal gets more rounds. Peers with several ways to do a workload are calibrated
first, and their best way runs. A turn that other programs disturbed is repeated, and what remains is stated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import costs
import harness
import report
import workloads as w
from environments import default_folder
from harness import COMPILED, DISTURBED, FREE, OURS, PEERS, WRITTEN, Noise, Patience, PeerError, Worker, median

NEAR = 1.3  # the same program drifts by this much between rounds on a shared machine: a nearer ratio needs more rounds


@dataclass(frozen=True)
class Effort:
    """How long to measure. A turn has at least `least` steps and lasts about `seconds`; slow peers get fewer steps."""

    rounds: int
    most_rounds: int
    seconds: float
    least: int
    slow_least: int
    calibration: float
    settle: float
    patience: float = 60  # seconds more than needed that a workload may take to wait for other programs to rest
    tries: int = 4

    def steps(self, step_seconds: float, main: bool) -> int:
        least = self.least if main or step_seconds * self.least < 2 * self.seconds else self.slow_least
        return max(least, min(500, int(self.seconds / step_seconds)))


FULL = Effort(rounds=5, most_rounds=11, seconds=0.4, least=15, slow_least=2, calibration=0.4, settle=0.15)
BRIEF = Effort(rounds=5, most_rounds=5, seconds=0.25, least=4, slow_least=2, calibration=0.2, settle=0.1, patience=15)
QUICK = Effort(rounds=3, most_rounds=3, seconds=0.25, least=8, slow_least=2, calibration=0.12, settle=0.1, patience=10)


Turn = tuple[list[float], Noise]  # seconds of each step


@dataclass
class Entrant:
    """A peer in one workload."""

    worker: Worker
    patience: Patience
    variant: str = ""
    calibration: dict[str, float] = field(default_factory=dict)  # seconds of a step by variant
    parameters: int = 0
    steps: int = 0
    loss: float | None = None
    rounds: list[float] = field(default_factory=list)  # median seconds of a step, by round

    def run(self, variant: str, warmup: int, steps: int) -> list[float]:
        reply = self.worker.ask("run", variant=variant, warmup=warmup, steps=steps)
        self.loss = reply["loss"]
        times: list[float] = reply["times"]
        return times

    def turn(self, variant: str, warmup: int, steps: int, effort: Effort, sleepers: list[Worker]) -> Turn:
        """One turn; where other programs disturbed it, the least disturbed of a few tries."""
        tries: list[Turn] = []
        while not tries or (tries[-1][1].others > DISTURBED and len(tries) < effort.tries and self.patience.left > 0):
            self.patience.wait(effort.settle, DISTURBED)
            start = time.perf_counter()
            tries.append(harness.watch(self.worker, sleepers, lambda: self.run(variant, warmup, steps)))
            self.patience.left -= time.perf_counter() - start if len(tries) > 1 else 0
        return min(tries, key=lambda found: found[1].others)

    def calibrate(self, workload: w.Workload, effort: Effort, sleepers: list[Worker]) -> None:
        """Time every variant twice, the second time in reverse order, and keep the fastest."""
        every = self.worker.ask("variants", workload=workload.name, threads=list(workload.threads))["variants"]
        names = [name for name in every if PEERS[self.worker.name].has(name)]
        for name in names:
            self.parameters = self.worker.ask("build", workload=workload.name, variant=name)["parameters"]
            self.calibration[name] = min(self.run(name, 1, 3))
        if len(names) > 1:
            seen: dict[str, list[float]] = {name: [] for name in names}
            for name in [*names, *reversed(names)]:
                count = max(3, min(200, int(effort.calibration / 2 / self.calibration[name])))
                seen[name] += self.turn(name, 1, count, effort, sleepers)[0]
            self.calibration = {name: median(times) for name, times in seen.items()}
        self.variant = min(self.calibration, key=self.calibration.__getitem__)
        self.worker.ask("keep", variant=self.variant)


def start(
    workload: w.Workload, names: list[str], pythons: dict[str, str], threads: int, effort: Effort
) -> tuple[dict[str, Entrant], dict[str, str], dict[str, Any]]:
    """Start and calibrate the peers of a workload; those that cannot do it are named with the reason."""
    entrants: dict[str, Entrant] = {}
    skipped: dict[str, str] = {}
    about: dict[str, Any] = {}
    patience = Patience(effort.patience)
    for name in names:
        worker = Worker(PEERS[name], PEERS[name].python(pythons), threads)
        entrant = Entrant(worker, patience)
        try:
            about[name] = worker.ask("hello", timeout=120)
            entrant.calibrate(workload, effort, [e.worker for e in entrants.values()])
            entrants[name] = entrant
        except PeerError as error:
            skipped[name] = str(error)
            worker.close()
    return entrants, skipped, about


def play(entrants: dict[str, Entrant], effort: Effort, workload: w.Workload) -> Noise:
    """The rounds, their order turned each time; returns the worst noise."""
    noises = [Noise()]
    for name, entrant in entrants.items():
        entrant.steps = effort.steps(entrant.calibration[entrant.variant], main=name in (*OURS, "torch", COMPILED))
    played = 0
    while played < effort.rounds or (played < effort.most_rounds and is_near(entrants, workload)):
        order = list(entrants) if played % 2 == 0 else list(reversed(entrants))
        times: dict[str, list[float]] = {name: [] for name in order}
        for name in order * 2:
            sleepers = [e.worker for other, e in entrants.items() if other != name]
            entrant = entrants[name]
            warmup = max(1, min(20, entrant.steps // 4))
            found, noise = entrant.turn(entrant.variant, warmup, entrant.steps, effort, sleepers)
            times[name] += found
            noises.append(noise)
        for name, values in times.items():
            entrants[name].rounds.append(median(values))
        played += 1
    return Noise(max(n.others for n in noises), max(n.peers for n in noises))


def ratios(entrants: dict[str, Entrant], peer: str, own: str = "xpcnn") -> list[float]:
    """The peer's time over ours, by round."""
    if peer not in entrants or own not in entrants:
        return []
    return [theirs / ours for theirs, ours in zip(entrants[peer].rounds, entrants[own].rounds, strict=True)]


def spread(found: list[float]) -> dict[str, Any]:
    """What the table says of ratios."""
    return {"median": median(found), "least": min(found), "most": max(found), "rounds": found}


def is_near(entrants: dict[str, Entrant], workload: w.Workload) -> bool:
    """Whether a ratio to PyTorch is too near to its goal to be sure."""
    goals = {("xpcnn", "torch"): workload.goal, ("xpcnn", COMPILED): workload.goal, (FREE, "torch"): workload.goal}
    goals[WRITTEN, "torch"] = workload.written_goal
    found = [(ratios(entrants, peer, own), goal) for (own, peer), goal in goals.items()]
    return any(each and abs(math.log(median(each) / goal)) < math.log(NEAR) for each, goal in found)


def measure_rates(rates: Worker | None, cost: costs.Cost, threads: int, effort: Effort) -> dict[str, dict[str, float]]:
    """Rates of products and copies, in the same minutes as the workload; the better of before and after it counts."""
    if rates is None:
        return {}
    Patience(effort.patience / 4).wait(effort.settle, DISTURBED)
    return rates.ask("rates", threads=threads, products=sorted(cost.products, key=math.prod)[-1:])


def measure(
    workload: w.Workload, names: list[str], pythons: dict[str, str], threads: int, effort: Effort, rates: Worker | None
) -> dict[str, Any]:
    """One row: everything that is known about one workload."""
    cost = costs.cost(workload)
    row: dict[str, Any] = {
        "workload": workload.name,
        "goal": workload.goal,
        "written_goal": workload.written_goal,
        "other_goals": workload.others,
        "multiply_adds": cost.multiply_adds,
    }
    before = measure_rates(rates, cost, threads, effort)
    able = [name for name in names if workload.kind in PEERS[name].kinds]
    entrants, row["skipped"], row["about"] = start(workload, able, pythons, threads, effort)
    try:
        noise = play(entrants, effort, workload)
        after = measure_rates(rates, cost, threads, effort)
    finally:
        for entrant in entrants.values():
            entrant.worker.close()
    if rates is not None:
        found = {kind: {key: max(before[kind][key], after[kind][key]) for key in before[kind]} for kind in before}
        copies = {int(size): rate for size, rate in found["copy"].items()}
        row |= {"rates": found, "floor_seconds": costs.floor(cost, max(found["gemm"].values()), copies)}
    row["noise"] = {"others": round(noise.others, 3), "sleeping_peers": round(noise.peers, 3)}
    row["peers"] = {
        name: {
            "median_seconds": median(e.rounds),
            "rounds": e.rounds,
            "steps_per_round": 2 * e.steps,
            "variant": e.variant,
            "variants": e.calibration,
            "parameters": e.parameters,
            "loss": e.loss,
        }
        for name, e in entrants.items()
    }
    row["ratios"] = {
        own: {name: spread(found) for name in entrants if name not in OURS and (found := ratios(entrants, name, own))}
        for own in OURS
        if own in entrants
    }
    return row


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workloads", nargs="*", help="names or shell patterns; all without")
    parser.add_argument("--quick", action="store_true", help="xpcnn and PyTorch only, three short rounds, no file")
    parser.add_argument("--brief", action="store_true", help="five rounds and short turns: all rows in half an hour")
    parser.add_argument("--peers", help=f"comma-separated, of {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, help="at least so many rounds")
    parser.add_argument("--threads", type=int, default=2, help="threads of every peer (default 2)")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a peer")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="folder made by environments.py")
    parser.add_argument(
        "--output", help="name of the file in bench/results; cpu-table.json for the whole table, else none"
    )
    parser.add_argument("--list", action="store_true", help="list the workloads and stop")
    return parser.parse_args()


def main() -> int:
    options = parse()
    chosen = w.select(options.workloads)
    if options.list:
        print("\n".join(work.name for work in chosen))
        return 0
    names = options.peers.split(",") if options.peers else ["xpcnn", WRITTEN, "torch"] if options.quick else list(PEERS)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise SystemExit(f"unknown peer {', '.join(unknown)}; there are: {', '.join(PEERS)}")
    effort = QUICK if options.quick else BRIEF if options.brief else FULL
    if options.rounds:
        effort = replace(effort, rounds=options.rounds, most_rounds=max(effort.most_rounds, options.rounds))
    pythons = harness.interpreters(options.python, options.envs)
    rates = None if options.quick else Worker("rates", pythons["xpcnn"], options.threads)
    output = options.output or ("" if options.quick or options.workloads else "cpu-table.json")
    start_facts = {**harness.facts(), "threads": options.threads, "effort": vars(effort)}
    path = harness.RESULTS / output
    kept = json.loads(path.read_text()) if output and options.workloads and path.exists() else {"rows": [], "peers": {}}
    rows, about = kept["rows"], kept["peers"]
    order = list(w.WORKLOADS)
    try:
        for workload in chosen:
            began = time.perf_counter()
            row = measure(workload, names, pythons, options.threads, effort, rates)
            row["wall_seconds"] = round(time.perf_counter() - began, 1)
            about |= row.pop("about")
            row |= {key: start_facts[key] for key in ("date", "commit")}
            rows = sorted(
                [*(r for r in rows if r["workload"] != workload.name), row], key=lambda r: order.index(r["workload"])
            )
            if output:  # after every row, so that an interrupted run leaves what it has
                harness.write(output, {**start_facts, "peers": about, "rows": rows})
            print(report.summary(row), flush=True)
            for name, reason in row["skipped"].items():
                print(f"  {name} skipped: {reason}", flush=True)
            for text in report.warnings(row):
                print(f"  warning: {text}", flush=True)
    finally:
        if rates is not None:
            rates.close()
    print("\n" + report.whole(rows))
    if output:
        print(f"\nwritten: bench/results/{output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
