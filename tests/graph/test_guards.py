"""What a recording depends on beside its arguments: a change of any is seen at the next call."""

import warnings

import numpy as np
import pytest

import xpcnn
from xpcnn import nn, optim

from .common import Slotted, make, same


def test_what_a_closure_holds(captures):
    factor, shifts, table = 2.0, [1.0], {"a": 0.5}

    class Options:
        gain = 1.0

        def __init__(self):
            self.bias = 0.0

    options = Options()

    def helper(x):
        return x * factor

    @xpcnn.compile
    def run(x):
        return (helper(x) + shifts[-1] + table["a"]) * options.gain + options.bias

    def expected(x):
        return (x * factor + shifts[-1] + table["a"]) * options.gain + options.bias

    x = captures.asarray(np.arange(5.0))

    def settle():
        for _ in range(8):
            same(run(x), expected(x))
        assert run.graphs == 1

    settle()
    factor = 3.0
    settle()
    shifts.append(4.0)
    settle()
    table["a"] = 7.0
    settle()
    options.bias = 1.5
    settle()
    Options.gain = 2.5
    settle()
    options.gain = 3.5
    settle()

    helper = captures.xp.negative  # noqa: F811
    same(run(x), (-x + 11.0) * 3.5 + 1.5)


def test_what_classes_and_slots_hold(captures):
    class Options:
        factor = 2.0

    slotted = Slotted()
    slotted.total = 1.0
    run = xpcnn.compile(lambda x: x * Options.factor + slotted.total)
    x = captures.asarray(np.arange(4.0))
    for factor, total in ((2.0, 1.0), (3.0, 1.0), (3.0, 5.0)):
        Options.factor, slotted.total = factor, total
        for _ in range(6):
            same(run(x), x * factor + total)
        assert run.graphs == 1


def test_what_is_another_at_each_call_runs_as_written(captures):
    now = 0.0
    run = xpcnn.compile(lambda x: x + now)
    x = captures.asarray(np.arange(4.0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(20):
            now += 1.0
            same(run(x), x + now)
    (only,) = [str(each.message) for each in said]
    assert "something that it depends on (now) is another at each call; pass it as an argument" in only
    assert run.graphs == 0
    run.forget()
    for _ in range(3):
        same(run(x), x + now)
    assert run.graphs == 1


def test_gradients_that_are_added_up_outside_are_named(captures, batches):
    model, criterion = nn.Sequential(nn.Flatten(), nn.Linear(144, 10)), nn.CrossEntropyLoss()

    @xpcnn.compile
    def gradients(x, y):
        loss = criterion(model(x), y)
        model.backward(criterion.backward(), input_gradient=False)
        return loss

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(8):
            gradients(*batches[0])
            gradients(*batches[1])
            model.zero_grad()
    (only,) = [str(each.message) for each in said]
    assert "gradients are zero at one call and not at the next; let one function add them up and step" in only


def test_modes_and_frozen_parameters(captures, batches):
    (first, as_written), (second, step) = make(nn.ReLU), make(nn.ReLU)
    compiled = xpcnn.compile(step)

    def change(model, i):
        if i == 5:
            model.layers[0].requires_grad_(False)
        if i == 8:
            model.layers[2].eval()
        if i == 11:
            model.layers[5].p = 0.5
        if i == 12:
            model.layers[0].requires_grad_(True)

    for i, (x, y) in enumerate(batches):
        for model, run in ((first, as_written), (second, compiled)):
            change(model, i)
            xpcnn.manual_seed(i)
            with captures.as_recorded():
                run(x, y)
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            same(a.data, b.data)
    assert compiled.graphs == 1
    assert compiled.reasons == []


@pytest.mark.parametrize(
    "schedule_over",
    [
        lambda o: optim.StepLR(o, 2),
        lambda o: optim.SequentialLR(o, [optim.LinearLR(o, 0.1), optim.ExponentialLR(o, 0.1)], [3]),
        lambda o: optim.LambdaLR(o, lambda step: 0.1**step),
    ],
)
def test_a_schedule_within(schedule_over, captures, batches):
    rates = []
    for wrap in (lambda step: step, xpcnn.compile):
        _, step = make(nn.ReLU)
        optimizer = step.__closure__[step.__code__.co_freevars.index("optimizer")].cell_contents
        schedule = schedule_over(optimizer)

        def both(x, y, step=step, schedule=schedule):
            loss = step(x, y)
            schedule.step()
            return loss

        run = wrap(both)
        for x, y in batches:
            run(x, y)
        rates.append(optimizer.param_groups[0]["lr"])
    assert run.graphs == 1
    assert rates[0] == rates[1] < 1e-8
