"""The model of `bench/scaling.py`: its formulas against a simulation of the messages, and what it reads from times."""

import importlib
import json
import platform
import random
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Let commands of bench/ be imported, and leave none of them behind."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def scaling(bench):
    import scaling

    return scaling


def simulated_ring(ranks, size, alpha, beta):
    """Reduce-scatter and allgather: each rank hands a piece on, and cannot before it has the one before."""
    ready = [0.0] * ranks
    for _ in range(2 * (ranks - 1)):
        ready = [max(ready[rank], ready[rank - 1]) + alpha + size / ranks * beta for rank in range(ranks)]
    return max(ready)


def simulated_tree(ranks, size, alpha, beta):
    """All pairs at once, ever farther apart, up to the root and down again."""
    seconds, there = 0.0, ranks
    while there > 1:
        seconds += 2 * (alpha + size * beta)
        there = (there + 1) // 2
    return seconds


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 100, 1024])
@pytest.mark.parametrize("size", [8, 10**7])
def test_formulas_are_what_messages_take(scaling, ranks, size):
    network = 1e-5, 1e-9
    assert scaling.ring(ranks, size, *network) == pytest.approx(simulated_ring(ranks, size, *network))
    assert scaling.tree(ranks, size, *network) == pytest.approx(simulated_tree(ranks, size, *network))


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_a_network_is_read_from_sums(scaling, ranks):
    network = 2e-6, 3e-10
    sums = {str(size): scaling.reduction(ranks, size, *network) for size in scaling.SIZES}
    assert scaling.fit(sums, ranks) == pytest.approx(network, rel=0.01)


def test_a_network_is_read_from_all_sums(scaling):
    network = 2e-6, 3e-10
    sums = {str(size): scaling.reduction(2, size, *network) for size in scaling.SIZES}
    sums[str(scaling.SIZES[-1])] *= 4  # no longer fits the cache
    alpha, beta = scaling.fit(sums, 2)
    assert network[1] < beta < 3 * network[1]
    assert alpha == pytest.approx(network[0], rel=0.2)


def test_overlap_hides_no_more_than_backward(scaling):
    network = 1e-5, 1e-9
    whole = scaling.step(1e-3, 64, 10**8, network)
    assert scaling.step(1e-3, 64, 10**8, network, True) == pytest.approx(whole - 1e-3 * scaling.BACKWARD)
    assert scaling.step(1.0, 2, 8, network, True) < scaling.step(1.0, 2, 8, network)


def test_times_between_those_measured(scaling):
    times = {16: 2.0, 32: 3.0, 64: 5.0}
    assert [scaling.interpolated(times, images) for images in (16, 24, 48, 64, 128)] == [2.0, 2.5, 4.0, 5.0, 10.0]
    assert scaling.interpolated(times, 1) > 0


def measured(threads_gain=0.5, spread=(1.0,), sums=(1e-6, 1e-10)):
    """Return results as `measure` leaves them, of a step that takes 1 ms and 0.1 ms an image."""
    alpha, beta = sums
    seconds = {str(size): 2 * alpha + size * beta for size in (8, 1 << 24)}
    found = {"sums": {"2": seconds}, "steps": [], "threads": [], "within": []}
    for part in (4, 64):
        one = 1e-3 + 1e-4 * part
        found["steps"].append({"net": "lenet5", "part": part, "ranks": 1, "bytes": 250_000})
        for threads, share in ((1, 1.0), (2, 1 - threads_gain / 2)):
            steps = [one * share * each for each in spread]
            found["threads"].append(
                {"net": "lenet5", "part": part, "threads": threads, "step": one * share, "steps": steps}
            )
    return found


def test_one_machine_by_the_time_of_a_rank(scaling):
    """Without spread: an image less is 0.1 ms less, and of the half that threads share, a quarter is left of four."""
    results = measured()
    cost = scaling.reduction(8, 250_000, *scaling.fit(results["sums"]["2"], 2))
    assert scaling.simulated(results, "lenet5", 8, 1, 256) == pytest.approx(1e-3 + 32e-4 + cost)
    assert scaling.simulated(results, "lenet5", 1, 4, 64) == pytest.approx((1e-3 + 64e-4) * (0.5 + 0.5 / 4))


def test_ranks_wait_for_the_slowest(scaling):
    results = measured(spread=(1.0, 1.0, 1.0, 2.0))
    alone, many = (scaling.simulated(results, "lenet5", ranks, 1, 64 * ranks) for ranks in (1, 64))
    rng = random.Random(5)
    expected = sum(max(rng.choice((1, 1, 1, 2)) for _ in range(64)) for _ in range(2000)) / 2000
    assert many / alone == pytest.approx(expected / 1.25, rel=0.1)


@pytest.mark.parametrize("command", ["scaling", "ranks_ddp"])
def test_the_guide_has_the_tables_of_the_results_and_no_others(bench, command):
    guide = (BENCH.parent / "xpcnn" / "guides" / "distributed.md").read_text(encoding="utf-8")
    name = f"{command.replace('_', '-')}.json"
    _, there = guide.split(f"<!-- figures: from bench/results/{name} -->\n")
    there, *_ = there.split("<!-- end of figures -->")
    file = BENCH / "results" / name
    if file.exists():
        text = file.read_text(encoding="utf-8")
        assert platform.node() not in text
        assert there.strip() == importlib.import_module(command).markdown(json.loads(text))
    else:
        assert not there.strip()
