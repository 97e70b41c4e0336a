"""The table of run.py again, from its results: `python bench/report.py [cpu-table.json]`; --markdown: the guide's."""

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
from harness import COMPILED, DISTURBED, TRAINER, WRITTEN, milliseconds


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


def ratio_of(row: dict[str, Any], own: str, peer: str) -> dict[str, Any] | None:
    """A peer's time over ours: median, least and most."""
    found: dict[str, Any] | None = row["ratios"].get(own, {}).get(peer)
    return found


def best_peer(row: dict[str, Any]) -> dict[str, Any] | None:
    """Ours against PyTorch at its best, eager or compiled."""
    found = [each for peer in ("torch", COMPILED) if (each := ratio_of(row, "xpcnn", peer))]
    return min(found, key=lambda each: each["median"], default=None)


def is_met(row: dict[str, Any]) -> str:
    """Whether the row's goals are reached; with a question mark where others disturbed the machine."""
    best, written = best_peer(row), ratio_of(row, WRITTEN, "torch")
    if best is None:
        return "-"
    pairs = [(best, row["goal"]), (written, row["written_goal"])]
    pairs += [(ratio_of(row, "xpcnn", name), goal) for name, goal in row["other_goals"].items()]
    sure = row["noise"]["others"] <= DISTURBED
    return ("yes" if all(each["median"] >= goal for each, goal in pairs if each) else "no") + ("" if sure else "?")


def share_of_floor(row: dict[str, Any]) -> str:
    """What share of our time the floor is."""
    ours = row["peers"].get("xpcnn")
    return f"{row['floor_seconds']['floor'] / ours['median_seconds']:.0%}" if ours and "floor_seconds" in row else "-"


def cells(row: dict[str, Any], names: list[str]) -> list[str]:
    """A line of the table."""
    peers = row["peers"]
    times = [milliseconds(peers[name]["median_seconds"]) if name in peers else "-" for name in names]
    best, written = best_peer(row), ratio_of(row, WRITTEN, "torch")
    spread = f"{best['median']:.2f} ({best['least']:.2f}-{best['most']:.2f})" if best else "-"
    other = [f"{name} {each['median']:.2f}" for name in row["other_goals"] if (each := ratio_of(row, "xpcnn", name))]
    line = [row["workload"], *times, spread, f"{row['goal']}", f"{written['median']:.2f}" if written else "-"]
    return [*line, is_met(row), share_of_floor(row), ", ".join(other) or "-"]


def summary(row: dict[str, Any]) -> str:
    """A line while the run goes on."""
    times = (f"{name} {milliseconds(p['median_seconds'])} ms [{p['variant']}]" for name, p in row["peers"].items())
    found = [
        f"{peer} / {own} {each['median']:.2f} ({each['least']:.2f}-{each['most']:.2f})"
        for own in harness.OURS
        for peer in ("torch", COMPILED)
        if (each := ratio_of(row, own, peer))
    ]
    return f"{row['workload']}: {', '.join(times)}; {', '.join(found)}"


def whole(rows: list[dict[str, Any]]) -> str:
    """The table of all rows: milliseconds of each column, then ratios."""
    found = dict.fromkeys(name for row in rows for name in row["peers"])
    names = [name for name in harness.PEERS if name in found]
    ratios = ["PyTorch's best / xpcnn", "goal", "eager / written", "met", "floor", "others"]
    return harness.table([["workload", *names, *ratios], *(cells(row, names) for row in rows)])


def title(workload: w.Workload) -> str:
    """What the guide calls a row."""
    shape = "x".join(map(str, (workload.batch, *workload.image)))
    if workload.conv:
        kernel = f"{workload.conv.outputs}@{workload.conv.kernel}x{workload.conv.kernel}"
        return f"convolution {shape}, {kernel}" + f" stride {workload.conv.stride}" * (workload.conv.stride > 1)
    if workload.pool:
        return f"max-pool {shape}"
    return f"`{workload.net}` {'step' if workload.kind == 'train' else workload.kind}, batch {workload.batch}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as the guide on benchmarks has it."""
    columns = {"xpcnn": "xpcnn.compile", WRITTEN: "as written", TRAINER: "Trainer", "torch": "PyTorch"}
    columns |= {COMPILED: "torch.compile", "onnxruntime": "ONNX Runtime"}
    ratios = ["PyTorch's best / compiled (range)", "goal", "PyTorch / as written", "floor"]
    heading = ["workload", *(f"{name}, ms" for name in columns.values()), *ratios]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for row in rows:
        best, written = best_peer(row), ratio_of(row, WRITTEN, "torch")
        line = [
            title(w.WORKLOADS[row["workload"]]),
            *(milliseconds(row["peers"][n]["median_seconds"]) if n in row["peers"] else "-" for n in columns),
            f"{best['median']:.2f} ({best['least']:.2f} to {best['most']:.2f})" if best else "-",
            f"{row['goal']}",
            f"{written['median']:.2f}" if written else "-",
            share_of_floor(row),
        ]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="cpu-table.json", help="file in bench/results")
    parser.add_argument("--markdown", action="store_true", help="the guide's table")
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
