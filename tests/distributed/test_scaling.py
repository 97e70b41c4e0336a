"""The model of `bench/scaling.py`: its formulas against a simulation of the messages, and what it reads from times."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    import scaling

    yield scaling
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


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


def test_a_network_is_read_from_sums(scaling):
    network = 2e-6, 3e-10
    sums = {str(size): scaling.reduction(2, size, *network) for size in scaling.SIZES}
    assert scaling.fit(sums, 2) == pytest.approx(network, rel=0.05)


def test_overlap_hides_no_more_than_backward(scaling):
    network = 1e-5, 1e-9
    whole = scaling.step(1e-3, 64, 10**8, network)
    assert scaling.step(1e-3, 64, 10**8, network, True) == pytest.approx(whole - 1e-3 * scaling.BACKWARD)
    assert scaling.step(1.0, 2, 8, network, True) < scaling.step(1.0, 2, 8, network)


def test_times_between_those_measured(scaling):
    times = {16: 2.0, 32: 3.0, 64: 5.0}
    assert [scaling.interpolated(times, images) for images in (16, 24, 48, 64, 128)] == [2.0, 2.5, 4.0, 5.0, 10.0]
    assert scaling.interpolated(times, 1) > 0
