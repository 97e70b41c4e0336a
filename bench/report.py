"""The table of run.py, also from its results: `python bench/report.py [cpu-table.json]`; README's with --markdown."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import workloads as w
from harness import DISTURBED, FREE, milliseconds


def warnings(row: dict[str, Any]) -> list[str]:
    """What would make the row's figures doubtful."""
    found = []
    counts = {name: p["parameters"] for name, p in row["peers"].items()}
    if len(set(counts.values())) > 1:
        found.append(f"the peers differ in their number of parameters: {counts}")
    found += [
        f"{name} ended with loss {p['loss']}"
        for name, p in row["peers"].items()
        if p["loss"] is not None and not math.isfinite(p["loss"])
    ]
    if row["noise"]["sleeping_peers"] > 0.03:
        found.append(f"peers that should sleep took {row['noise']['sleeping_peers']:.0%} of the machine")
    if row["noise"]["others"] > DISTURBED:
        found.append(f"other programs took up to {row['noise']['others']:.0%} of the machine in a turn")
    return [f"{row['workload']}: {text}" for text in found]


def cells(row: dict[str, Any], others: list[str]) -> list[str]:
    """A line of the table."""
    peers, found = row["peers"], row["ratios"]
    ours = peers.get("xpcnn", {}).get("median_seconds")

    def ratio(name: str) -> str:
        r = found.get(name)
        return f"{r['median']:.2f}" if r else "-"

    torch = peers.get("torch")
    spread = f"{found['torch']['least']:.2f}-{found['torch']['most']:.2f}" if "torch" in found else "-"
    goals = {"torch": row["goal"], **row["other_goals"]}
    reached = [found[name]["median"] >= goal for name, goal in goals.items() if name in found]
    sure = row["noise"]["others"] <= DISTURBED
    met = "-" if "torch" not in found else ("yes" if all(reached) else "no") + ("" if sure else "?")
    line = [
        row["workload"],
        milliseconds(ours) if ours else "-",
        milliseconds(torch["median_seconds"]) if torch else "-",
        torch["variant"] if torch else "-",
        ratio("torch"),
        spread,
        f"{row['goal']:.1f}",
        met,
    ]
    free = row.get("ratios_free_threaded", {}).get("torch")
    line += [f"{milliseconds(peers[FREE]['median_seconds'])} ({free['median']:.2f})" if free else "-"]
    line += [f"{milliseconds(peers[n]['median_seconds']) if n in peers else '-'} ({ratio(n)})" for n in others]
    floor = row.get("floor_seconds")
    if floor:
        bound = "products" if floor["products"] >= floor["memory"] else "memory"
        line += [f"{milliseconds(floor['floor'])} {bound}", f"{floor['floor'] / ours:.0%}" if ours else "-"]
    return line


def summary(row: dict[str, Any]) -> str:
    """A line while the run goes on."""
    times = (f"{name} {milliseconds(p['median_seconds'])} ms [{p['variant']}]" for name, p in row["peers"].items())
    against = row["ratios"].get("torch")
    ratio = f"; torch / xpcnn {against['median']:.2f} ({against['least']:.2f}-{against['most']:.2f})" if against else ""
    return f"{row['workload']}: {', '.join(times)}{ratio}"


def heading(others: list[str], with_floor: bool) -> list[str]:
    first = [
        "workload",
        "xpcnn ms",
        "torch ms",
        "torch's way",
        "ratio",
        "range",
        "goal",
        "met",
        "free-threaded ms (ratio)",
    ]
    return first + [f"{name} ms (ratio)" for name in others] + (["floor ms", "floor/ours"] if with_floor else [])


def whole(rows: list[dict[str, Any]]) -> str:
    """The table of all rows."""
    found = dict.fromkeys(name for row in rows for name in row["peers"])
    others = [name for name in harness.PEERS if name in found and name not in ("xpcnn", FREE, "torch")]
    with_floor = any("floor_seconds" in row for row in rows)
    return harness.table([heading(others, with_floor), *(cells(row, others) for row in rows)])


def title(workload: w.Workload) -> str:
    """What README calls a row."""
    shape = "x".join(map(str, (workload.batch, *workload.image)))
    if workload.conv:
        kernel = f"{workload.conv.outputs}@{workload.conv.kernel}x{workload.conv.kernel}"
        return f"convolution {shape}, {kernel}" + f" stride {workload.conv.stride}" * (workload.conv.stride > 1)
    if workload.pool:
        return f"max-pool {shape}"
    return f"`{workload.net}` {'step' if workload.kind == 'train' else 'inference'}, batch {workload.batch}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as README has it."""
    columns = ["workload", "xpcnn", "PyTorch", "PyTorch / xpcnn (range)", "goal", "floor"]
    columns += ["free-threaded", "PyTorch / that", "JAX", "Chainer"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        times = {name: f"{milliseconds(peer['median_seconds'])} ms" for name, peer in row["peers"].items()}
        ratio, free = row["ratios"]["torch"], row.get("ratios_free_threaded", {}).get("torch")
        line = [
            title(w.WORKLOADS[row["workload"]]),
            times["xpcnn"],
            times["torch"],
            f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})",
            f"{row['goal']}",
            f"{row['floor_seconds']['floor'] / row['peers']['xpcnn']['median_seconds']:.0%}",
            times.get(FREE, "-"),
            f"{free['median']:.2f}" if free else "-",
            *(times.get(name, "-") for name in ("jax", "chainer")),
        ]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="cpu-table.json", help="file in bench/results")
    parser.add_argument("--markdown", action="store_true", help="README's table")
    options = parser.parse_args()
    content = json.loads((harness.RESULTS / options.name).read_text())
    if options.markdown:
        print(markdown(content["rows"]))
        return 0
    print(f"{content['processor']}, {content['cores']} cores, {content['date']}, commit {content['commit']}\n")
    print(whole(content["rows"]))
    for row in content["rows"]:
        print("\n".join(warnings(row)), end="\n" if warnings(row) else "")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
