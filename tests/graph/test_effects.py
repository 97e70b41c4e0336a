"""What a function does beside computing: what a recording does again, and what keeps one from being made."""

import collections
import functools
import itertools
import logging
import warnings

import pytest

import xpcnn
from xpcnn import nn
from xpcnn.backend import get_backend

from .common import (
    Slotted,
    same,
)


class Totals:
    """What a loop of one's own keeps beside the model."""

    def __init__(self):
        backend = get_backend()
        self.total = backend.zeros((), "float64")
        self.pair = (backend.zeros((3,), "float64"), [backend.zeros((3,), "float64")])
        self.by_name = {"a": backend.zeros((3,), "float64")}
        self.slotted = Slotted()
        self.shared = type("Shared", (), {})
        self.slotted.total = self.shared.total = self.kept = backend.zeros((3,), "float64")
        self.norm = nn.BatchNorm2d(3)
        self.waiting = collections.deque([1.0, 2.0, 3.0], maxlen=3)
        self.numbers = itertools.count()
        self.log = logging.getLogger("tests.graph")

    def arrays(self):
        first, (second,) = self.pair
        beside = self.slotted.total, self.shared.total, self.kept, self.norm.running_mean
        return first, second, self.by_name["a"], self.total, *beside


def adds_to_a_number(totals, x):
    totals.total = totals.total + x.sum()
    return totals.total * 1.0


def adds_in_place(totals, x):
    first, (second,) = totals.pair
    first *= 0.5
    second += 1.0
    first += x
    return first + second


def adds_to_a_dict(totals, x):
    totals.by_name["a"] *= 0.5
    totals.by_name["a"] += x
    return totals.by_name["a"] * 2


def puts_in_a_dict(totals, x):
    totals.by_name["a"] = totals.by_name["a"] * 0.5 + x
    return totals.by_name["a"] * 2


def puts_in_a_tuple(totals, x):
    totals.pair = (totals.pair[0] * 0.5 + x, totals.pair[1])
    return totals.pair[0] * 2


def adds_in_a_slot(totals, x):
    totals.slotted.total = totals.slotted.total * 0.5 + x
    return totals.slotted.total * 2


def adds_in_a_class(totals, x):
    totals.shared.total = totals.shared.total * 0.5 + x
    return totals.shared.total * 2


def adds_to_a_buffer(totals, x):
    totals.norm.running_mean = totals.norm.running_mean * 0.5 + x
    return totals.norm.running_mean * 2


def keeps_what_it_reads(totals, x):
    totals.kept = x * 2
    return totals.kept + 1


def waits(totals, x):
    totals.waiting.append(x.shape[0] + totals.waiting[0])
    return x * totals.waiting[-1]


def counts(totals, x):
    return x * next(totals.numbers)


def logs(totals, x):
    totals.log.warning("a step")
    return x * 2


def prints(totals, x):
    print("a step")
    return x * 2


def seeds(totals, x):
    xpcnn.manual_seed(0)
    return x * 2


def draws_from_the_library(totals, x):
    return x * 0 + xpcnn.random.generator().integers(0, 1)


def reads_a_value(totals, x):
    return x * float(totals.pair[1][0][0])


@pytest.mark.parametrize(
    ("function", "recorded"),
    [
        (adds_to_a_number, False),
        (adds_in_place, True),
        (adds_to_a_dict, True),
        (puts_in_a_dict, False),
        (puts_in_a_tuple, False),
        (adds_in_a_slot, False),
        (adds_in_a_class, False),
        (adds_to_a_buffer, False),
        (keeps_what_it_reads, True),
        (waits, False),
        (counts, False),
        (logs, False),
        (prints, False),
        (seeds, False),
        (draws_from_the_library, False),
        (reads_a_value, False),
    ],
)
def test_what_lies_beside_the_model(captures, rng, capsys, caplog, function, recorded):
    here, there = Totals(), Totals()
    compiled = xpcnn.compile(functools.partial(function, there))
    said = []
    for _ in range(12):
        x = captures.asarray(rng.normal(size=3))
        expected = function(here, x)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            same(compiled(x), expected)
        said += caught
    for a, b in zip(here.arrays(), there.arrays(), strict=True):
        same(a, b)
        assert not type(b).__module__.startswith("xpcnn")
    assert here.waiting == there.waiting
    assert bool(compiled.graphs) is recorded
    assert len(said) == (not recorded)
    assert capsys.readouterr().out.count("a step") == (24 if function is prints else 0)
    assert len(caplog.records) == (24 if function is logs else 0)
