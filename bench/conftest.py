"""Fixtures of the pytest-benchmark files, and the factor between loops and library printed at the end.

python -m pytest bench                                   every group
python -m pytest bench --benchmark-json FILE             also as JSON: processor and versions, no host name
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness

import xpcnn

MEDIANS = pytest.StashKey[dict[tuple[str, str], float]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEDIANS] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Replace pytest-benchmark's own facts, which name the host."""
    python = {"python_version": sys.version.split()[0]}
    machine_info.clear()
    machine_info.update(harness.facts() | python)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    medians = config.stash[MEDIANS]
    rows = [
        [group, harness.milliseconds(loops), harness.milliseconds(medians[group, "xpcnn"]), f"{loops / ours:,.0f}"]
        for (group, name), loops in medians.items()
        if name == "loops" and (ours := medians.get((group, "xpcnn")))
    ]
    if rows:
        terminalreporter.section("loops against the library")
        terminalreporter.write_line(harness.table([["operation", "loops ms", "xpcnn ms", "factor"], *rows]))


@pytest.fixture(params=xpcnn.available_backends())
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each backend that answers on this machine, switched on for the test."""
    with xpcnn.use_backend(request.param):
        yield xpcnn.get_backend()


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`timed(group, name, function, setup, rounds)` times a function, each call with what `setup` gives."""

    def run(
        group: str, name: str, function: Callable[..., Any], setup: Callable[[], tuple[Any, ...]], rounds: int
    ) -> Any:
        benchmark.group = group
        warmup = 2 if rounds > 1 else 0
        result = benchmark.pedantic(
            function, setup=lambda: (setup(), {}), rounds=rounds, iterations=1, warmup_rounds=warmup
        )
        if benchmark.stats is not None:  # --benchmark-disable
            request.config.stash[MEDIANS][group, name] = benchmark.stats.stats.median
        return result

    return run
