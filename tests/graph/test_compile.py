"""`xpcnn.compile`: what is guarded, what cannot be recorded, what belongs to whom."""

import collections
import copy
import functools
import gc
import itertools
import logging
import os
import pickle
import random
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import xpcnn
from xpcnn import nn, optim
from xpcnn.backend import backend_of, get_backend
from xpcnn.errors import ConfigError

FACTOR = 2.0


def on_host(array):
    return backend_of(array).to_numpy(array)


def same(a, b):
    """Hold two results against each other, bit by bit, of whichever backend each is."""
    np.testing.assert_array_equal(*(each if np.isscalar(each) else on_host(each) for each in (a, b)))


class Swish(nn.Module):
    def forward(self, x):
        s = 1 / (1 + backend_of(x).xp.exp(-x))
        self.keep((x, s))
        return x * s

    def backward(self, dy):
        x, s = self.take()
        return dy * s * (1 + x * (1 - s))


class KeepsAnAttribute(nn.Module):
    """Remembers its output itself."""

    def __init__(self):
        super().__init__()
        self.scale = get_backend().asarray(np.full((1, 8, 1, 1), 1.5, "float32"))
        self.y = None

    def forward(self, x):
        self.y = x * self.scale
        return self.y

    def backward(self, dy):
        return dy * self.scale + 0.125 * self.y


class AddsUp(nn.Module):
    """Puts another array in the place of the one that it reads."""

    def __init__(self):
        super().__init__()
        self.total = get_backend().zeros((), "float32")

    def forward(self, x):
        self.total = self.total + x.sum()
        return x + self.total

    def backward(self, dy):
        return dy


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.mean() > 0 else x

    def backward(self, dy):
        return dy


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls

    def backward(self, dy):
        return dy * self.calls


class ReadsOnTheHost(nn.Module):
    def forward(self, x):
        return x * float(backend_of(x).to_numpy(x).max())

    def backward(self, dy):
        return dy


class Draws(nn.Module):
    def forward(self, x):
        return x * backend_of(x).asarray(np.random.normal(size=x.shape).astype("float32"))  # noqa: NPY002

    def backward(self, dy):
        return dy


class DrawsANumber(Draws):
    def forward(self, x):
        return x * np.random.random()  # noqa: NPY002


class DrawsFromItsOwn(Draws):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, x):
        return x * self.rng.random()


class DrawsByPython(Draws):
    def forward(self, x):
        return x * random.random()


class ReadsAGlobal(nn.Module):
    def forward(self, x):
        return x * FACTOR

    def backward(self, dy):
        return dy * FACTOR


def make(extra):
    xpcnn.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), extra(), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3)]
    model = nn.Sequential(*layers, nn.Linear(8 * 5 * 5, 10))
    optimizer, criterion = optim.Adam(model.parameters(), lr=0.01), nn.CrossEntropyLoss()

    def step(x, y):
        loss = criterion(model(x), y)
        model.backward(criterion.backward())
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, step


@pytest.fixture
def batches(backend, rng):
    images = [rng.normal(size=(16, 1, 12, 12)).astype("float32") for _ in range(14)]
    return [(backend.asarray(x), backend.asarray(rng.integers(0, 10, 16))) for x in images]


@pytest.fixture
def captures(backend):
    """Give a backend that records, where one does."""
    if not backend.captures:
        pytest.skip(f"{backend.name} records nothing here (XPCNN_COMPILE, XPCNN_PORTABLE)")
    return backend


@pytest.mark.parametrize(
    ("extra", "recorded", "why"),
    [
        (Swish, True, None),
        (KeepsAnAttribute, True, None),
        (ReadsAGlobal, True, None),
        (AddsUp, False, r"attribute 'total' of a AddsUp that the last call has assigned"),
        (Branches, False, r"test_compile\.py:\d+, in forward"),
        (Counts, False, "attribute 'calls' of a Counts"),
        (ReadsOnTheHost, False, r"test_compile\.py:\d+, in forward"),
        (Draws, False, r"test_compile\.py:\d+, in forward"),
        (DrawsANumber, False, "draws random numbers"),
        (DrawsFromItsOwn, False, "draws random numbers"),
        (DrawsByPython, False, "gives or does something else at each call"),
    ],
)
def test_layers_of_ones_own(captures, batches, extra, recorded, why, monkeypatch):
    (first, as_written), (second, step) = make(extra), make(extra)
    compiled = xpcnn.compile(step)
    said = []
    for i, (x, y) in enumerate(batches):
        if i == 10:
            monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
        losses = []
        for run in (as_written, compiled):
            np.random.seed(i)  # noqa: NPY002
            random.seed(i)
            xpcnn.manual_seed(100 + i)
            with captures.as_recorded(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                losses.append(run(x, y))
            said += [str(each.message) for each in caught]
            assert all(each.filename == __file__ for each in caught)  # the line of the call
        same(*losses)
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            same(a.data, b.data)
    assert bool(compiled.graphs) is recorded
    assert len(said) == (0 if recorded else 1)
    if not recorded:
        assert "runs as written" in said[0]
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(said[0])


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


def test_what_the_backend_loads_within_a_call_is_none_of_the_users(captures, monkeypatch):
    """The first product of a process looks for BLAS, in code that has files beside the user's."""
    if captures.name == "numpy":
        monkeypatch.setattr(captures, "blas", type(captures.blas)())
    same_object = xpcnn.compile(lambda x: (x, x @ x if captures.name == "numpy" else x * 2))
    for _ in range(8):
        x = captures.asarray(np.eye(3))
        assert same_object(x)[0] is x
    assert same_object.reasons == []
    assert same_object.graphs == 1


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


def test_errors_come_as_written(captures):
    @xpcnn.compile
    def run(x, y):
        return x + y

    def ones(*shape):
        return captures.asarray(np.ones(shape))

    for _ in range(6):
        with pytest.raises(ValueError, match="broadcast"):
            run(ones(2, 3), ones(2, 2))
    assert run.reasons == []
    same(run(ones(2, 3), ones(2, 1)), 2.0)
    with pytest.raises(ConfigError, match="function: expected something to call, got int"):
        xpcnn.compile(3)


def test_copies_and_pickles(captures):
    double = xpcnn.compile(captures.xp.square)
    x = captures.asarray(np.arange(3.0))
    for _ in range(6):
        double(x)
    for other in (copy.deepcopy(double), pickle.loads(pickle.dumps(double))):
        assert other.graphs == 0
        same(other(x), x * x)


def test_a_method(captures):
    class Scales:
        def __init__(self, factor):
            self.factor = factor

        @xpcnn.compile
        def run(self, x):
            """Scale."""
            return x * self.factor

    two, three = Scales(2.0), Scales(3.0)
    x = captures.asarray(np.arange(3.0))
    for _ in range(8):
        same(two.run(x), x * 2)
        same(three.run(x), x * 3)
    two.factor = 5.0
    same(two.run(x), x * 5)
    assert Scales.run.__doc__ == "Scale."


def test_a_compiled_function_in_another(captures):
    inner = xpcnn.compile(lambda x: x * 2)
    outer = xpcnn.compile(lambda x: inner(x) + inner(x + 1))
    for i in range(8):
        same(outer(captures.asarray(np.full(3, float(i)))), 4.0 * i + 2)
    assert outer.graphs == 1


def test_work_whose_result_nobody_reads_is_left_out(captures, rng):
    from xpcnn.backend.graph.compiled import Compiled

    def run(x):
        captures.xp.exp(x)
        kept = x * 3
        captures.xp.sin(kept)
        return kept

    if not captures.capture_runs:
        pytest.skip("a device's graph does not tell its calls")
    calls = []
    for function in (run, lambda x: x * 3):
        compiled = Compiled(function)
        for _ in range(5):
            compiled(captures.asarray(rng.normal(size=64)))
        ((record,),) = [case.free for case in compiled._cases.values()]
        calls.append(len(record._replay.calls))
    assert calls[0] == calls[1] == 1


def test_threads_of_one_function(captures):
    from concurrent.futures import ThreadPoolExecutor

    run = xpcnn.compile(lambda x: captures.xp.sqrt(x * x + 1) * 2)
    with ThreadPoolExecutor(4) as pool:
        given = [captures.asarray(np.full((50, 50), float(i))) for i in range(200)]
        for i, result in enumerate(pool.map(run, given)):
            same(result, float(np.sqrt(i * i + 1.0)) * 2)


class Slotted:
    __slots__ = ("total",)


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


def test_what_collects_garbage_is_no_part_of_it(captures):
    heard = []
    callback = lambda phase, info: heard.append((phase, time.perf_counter()))  # noqa: E731
    gc.callbacks.append(callback)
    try:
        run = xpcnn.compile(lambda x: x * 2 + gc.collect() * 0)
        for i in range(8):
            same(run(captures.asarray(np.full(3, float(i)))), 2.0 * i)
    finally:
        gc.callbacks.remove(callback)
    assert heard
    assert (run.graphs, run.reasons) == (1, [])


PROGRAM = """
import hashlib, numpy as np, xpcnn
from tests.graph.test_compile import Swish, make
xpcnn.set_num_threads(2)
rng = np.random.default_rng(0)
model, step = make(Swish)
step, backend = xpcnn.compile(step), model.backend
for i in range(9):
    step(*map(backend.asarray, (rng.normal(size=(16, 1, 12, 12)).astype("float32"), rng.integers(0, 10, 16))))
values = b"".join(backend.to_numpy(p.data).tobytes() for p in model.parameters())
print(step.graphs, hashlib.sha256(values).hexdigest())
"""


def test_switched_off_it_gives_every_bit(captures):
    said = {}
    for value in ("1", "0"):
        settings = {**os.environ, "XPCNN_BACKEND": captures.name, "XPCNN_COMPILE": value}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=True, timeout=120
        )
        said[value] = run.stdout.split()
    assert (said["1"][0], said["0"][0]) == ("1", "0")
    assert said["1"][1] == said["0"][1]
    settings = {**os.environ, "XPCNN_COMPILE": "yes"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=False, timeout=120
    )
    assert "XPCNN_COMPILE: expected 0 or 1, got 'yes'" in run.stderr


def test_below_a_profiler():
    """It sees the calls before and after the tracing, and nothing stops."""
    import cProfile

    seen, profile = set(), cProfile.Profile()
    x = np.ones((2, 4), "float32")
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    function = xpcnn.compile(lambda x: model(x))
    profile.enable()
    for _ in range(4):
        found = function(x)
    profile.disable()
    np.testing.assert_array_equal(found, model(x))
    profile.create_stats()
    assert any(name == "__call__" for _, _, name in profile.stats)
    function = xpcnn.compile(lambda x: model(x))
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: seen.add(frame.f_code.co_name))
    for _ in range(4):
        found = function(x)
    sys.setprofile(before)
    np.testing.assert_array_equal(found, model(x))
    assert {"__call__", "forward"} <= seen
