"""`xpcnn.compile`: layers of the user's own, errors, copies, functions within functions, threads, profilers."""

import copy
import gc
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
from xpcnn import nn
from xpcnn.errors import ConfigError

from . import common
from .common import (
    AddsUp,
    Branches,
    Counts,
    Draws,
    DrawsANumber,
    DrawsByPython,
    DrawsFromItsOwn,
    KeepsAnAttribute,
    ReadsAGlobal,
    ReadsOnTheHost,
    make,
    same,
)
from .programs import Swish


@pytest.mark.parametrize(
    ("extra", "recorded", "why"),
    [
        (Swish, True, None),
        (KeepsAnAttribute, True, None),
        (ReadsAGlobal, True, None),
        (AddsUp, False, r"attribute 'total' of a AddsUp that the last call has assigned"),
        (Branches, False, r"common\.py:\d+, in forward"),
        (Counts, False, "attribute 'calls' of a Counts"),
        (ReadsOnTheHost, False, r"common\.py:\d+, in forward"),
        (Draws, False, r"common\.py:\d+, in forward"),
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
            monkeypatch.setattr(common, "FACTOR", 3.0)
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
