"""Arguments and results of what `xpcnn.compile` makes: whose they are, who writes them, which count as others."""

import warnings

import numpy as np
import pytest

import xpcnn
from xpcnn import nn, optim

from .common import same


def test_results_belong_to_the_caller(captures, rng):
    double = xpcnn.compile(lambda x: {"twice": x * 2, "both": (x, [x + 1])})
    xs = [captures.asarray(rng.normal(size=(3, 4))) for _ in range(8)]
    results = [double(x) for x in xs]
    assert double.graphs == 1
    for x, result in zip(xs, results, strict=True):
        same(result["twice"], x * 2)
        assert result["both"][0] is x
        same(result["both"][1][0], x + 1)
        assert type(result["twice"]) is type(x)


def test_arguments_are_written_in_place(captures, rng):
    @xpcnn.compile
    def add_one(x, y):
        x += 1.0
        captures.xp.multiply(x, 2.0, out=y)

    for _ in range(8):
        x, y = captures.asarray(rng.normal(size=(2, 5)))
        before = x.copy()
        assert add_one(x, y) is None
        same(x, before + 1)
        same(y, x * 2)
    assert add_one.graphs == 1


def test_a_call_that_could_not_be_recorded_wrote_its_arguments(captures):
    """A NumPy recording does the step's work on copies of the arguments, whether it is kept or not."""

    class Counter:
        calls = 0

    counter = Counter()

    @xpcnn.compile
    def add_one(x):
        counter.calls = counter.calls + 1
        x += 1.0
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for call in range(1, 13):
            x = captures.asarray(np.zeros((2, 3)))
            assert add_one(x) is x
            same(x, captures.asarray(np.ones((2, 3))))
            assert counter.calls == call
    assert add_one.graphs == 0


def test_arguments_that_share_memory(captures):
    @xpcnn.compile
    def add_one(x, y):
        captures.xp.add(x, 1.0, out=x)
        return y * 2

    for i in range(12):
        z = captures.asarray(np.arange(6.0) + i)
        expected = z.copy()
        expected[:3] += 1
        first, second = ((z[:3], z[1:4]), (z[:3], z[:3]), (z[:3], z[3:]))[i % 3]
        there = expected[:3] if second.base is None else expected[(1, 0, 3)[i % 3] :][:3]
        same(add_one(first, second), there * 2)
        same(z, expected)
    assert add_one.graphs == 1


@pytest.mark.parametrize("alias", ["values", "gradient", "a part", "an average"])
def test_an_argument_that_the_function_writes_by_another_way(captures, rng, alias):
    layer = nn.Linear(3, 3, bias=False)
    optimizer = optim.SGD(layer.parameters(), 0.5)
    average = captures.asarray(np.ones((3, 3), "float32"))
    state = {"average": average}

    def step(x, w):
        layer.zero_grad()
        y = layer(x)
        layer.backward(y)
        optimizer.step()
        state["average"] *= 0.5
        return w * 2

    run = xpcnn.compile(step)
    x, other = captures.asarray(rng.normal(size=(2, 3, 3)).astype("float32"))
    given = {
        "values": layer.weight.data,
        "gradient": layer.weight.grad,
        "a part": layer.weight.data[1:].T,
        "an average": average[::-1],
    }[alias]
    for i in range(14):
        w = given if i % 3 == 0 or i > 9 else other
        same(run(x, w), w * 2)  # w as the step has left it
    assert run.graphs >= 1


def test_arguments_that_are_no_arrays_count_by_value(captures, rng):
    scale = xpcnn.compile(lambda x, factor, *, options=(): x * factor + sum(options))
    x = captures.asarray(rng.normal(size=7))
    for _ in range(6):
        for factor in (2.0, 3.0, np.float64(2.0)):
            same(scale(x, factor), x * factor)
        same(scale(x, 2.0, options=(1, 2)), x * 2.0 + 3)
    assert scale.graphs == 4


def test_kinds_that_were_not_used_for_long_give_way(captures):
    double = xpcnn.compile(lambda x: x * 2)
    for n in range(1, 20):
        for _ in range(20):
            same(double(captures.asarray(np.full(n, 3.0))), 6.0)
    assert double.graphs == 8
