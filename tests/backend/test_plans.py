"""Planned operations against the functions that they were recorded of, bit by bit."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given

from tests.functional.strategies import convolutions, lay_out, poolings, values
from xpcnn import functional as F
from xpcnn import nn, optim, use_backend
from xpcnn.backend.numpy import plans as plans_module
from xpcnn.backend.numpy import trace
from xpcnn.backend.numpy.plans import Plan, Plans
from xpcnn.functional.activation import ReLUOp
from xpcnn.functional.channelwise import run
from xpcnn.nn import no_grad

NEVER = 10**9


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """Record every operation at its first call; give what the backend then keeps."""
    with use_backend("numpy") as backend:
        monkeypatch.setattr(plans_module, "CALLS_BEFORE", 0)
        monkeypatch.setattr(backend, "plans", Plans(backend))
        yield backend.plans


def kept(plans):
    """Return what this thread keeps: plans, and None for what cannot be planned."""
    return list(plans._local.__dict__.get("plans", {}).values())


def as_written(function, *arguments):
    """Call a function with every operation as it is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans_module, "CALLS_BEFORE", NEVER)
        with use_backend("numpy") as backend:
            patch.setattr(backend, "plans", Plans(backend))
            return function(*arguments)


def same_bits(results, expected):
    assert len(results) == len(expected)
    for a, b in zip(results, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def check(plans, function, draw):
    """Compare three calls, of which the second and third are played, on other numbers each."""
    for _ in range(3):
        arrays = draw()
        same_bits(function(*arrays), as_written(function, *arrays))
    assert any(isinstance(plan, Plan) for plan in kept(plans))


def arranged(array, case):
    with use_backend("numpy") as backend:
        return lay_out(backend, array, case.layout)


def convolve(x, weight, bias, dy, **options):
    y, cache = F.conv2d(x, weight, bias, **options)
    return y, *F.conv2d_backward(dy, cache)


@given(case=convolutions())
def test_convolutions(plans, case):
    rng = case.rng()
    shape = F.conv2d(np.zeros(case.x_shape, case.dtype), np.zeros(case.weight_shape, case.dtype), **case.options)[
        0
    ].shape

    def draw():
        shapes = case.x_shape, case.weight_shape, case.weight_shape[:1], shape
        x, weight, bias, dy = (values(rng, each, case.dtype) for each in shapes)
        return arranged(x, case), arranged(weight, case), bias if case.bias else None, arranged(dy, case)

    check(plans, lambda *arrays: convolve(*arrays, **case.options), draw)


@pytest.mark.parametrize("operation", ["max_pool2d", "avg_pool2d"])
@given(case=poolings())
def test_poolings(plans, operation, case):
    rng = case.rng()
    forward, backward = getattr(F, operation), getattr(F, f"{operation}_backward")
    options = {k: v for k, v in case.options.items() if k != "count_include_pad" or operation == "avg_pool2d"}
    shape = forward(np.zeros(case.x_shape, case.dtype), case.kernel, **options)[0].shape

    def pool(x, dy):
        y, cache = forward(x, case.kernel, **options)
        return y, backward(dy, cache)

    def draw():
        return [arranged(values(rng, each, case.dtype), case) for each in (case.x_shape, shape)]

    check(plans, pool, draw)


@pytest.mark.parametrize("batch", [4, 64])
def test_a_net_trains_alike(plans, batch):
    """Batch norm writes to its statistics, residual blocks hand a gradient on, dropout has a key of its own a step."""

    def train():
        import xpcnn

        xpcnn.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        model = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Residual(block), nn.ReLU(), nn.Dropout(0.3), nn.LeakyReLU(), nn.AvgPool2d(2)),
            *(nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(16, 4)),
        )
        criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.05, momentum=0.9)
        rng = np.random.default_rng(0)
        for _ in range(5):
            x, labels = values(rng, (batch, 3, 24, 24), "float32"), rng.integers(0, 4, batch)
            optimizer.zero_grad()
            criterion(model(x), labels)
            model.backward(criterion.backward())
            optimizer.step()
        return list(model.state_dict().values())

    same_bits(train(), as_written(train))
    assert sum(isinstance(plan, Plan) for plan in kept(plans)) >= 6


def test_caches_of_several_calls(rng):
    """What a call returned and kept is its own: a later one changes nothing of it."""
    images = [values(rng, (3, 2, 8, 8), "float32") for _ in range(5)]
    done = [F.max_pool2d(x, 2) for x in images]
    dy = values(rng, done[0][0].shape, "float32")
    for x, (y, cache) in reversed(list(zip(images, done, strict=True))):
        expected, other = as_written(F.max_pool2d, x, 2)
        same_bits([y, F.max_pool2d_backward(dy, cache)], [expected, as_written(F.max_pool2d_backward, dy, other)])


def test_shapes_that_give_one_dy(rng):
    """What the backward does depends on the image too, of which windows leave the edge out."""
    for size in (6, 7, 6, 7, 6, 7):
        x, dy = values(rng, (2, 3, size, size), "float32"), values(rng, (2, 3, 3, 3), "float32")
        same_bits(pool(x, dy), as_written(pool, x, dy))


def pool(x, dy):
    y, cache = F.max_pool2d(x, 2)
    return y, F.max_pool2d_backward(dy, cache)


def test_arguments_that_share_memory_are_not_planned(plans, rng):
    x = values(rng, (3, 5, 5, 4), "float32").transpose(3, 0, 1, 2)  # as it lies inside a net: nothing copies it
    dy = values(rng, (4, 4, 3, 3), "float32")
    for _ in range(3):
        same_bits(convolve(x, x[:, :, :3, :3], None, dy), as_written(convolve, x, x[:, :, :3, :3], None, dy))
    assert not any(isinstance(plan, Plan) for plan in kept(plans))
    weight = x[:, :, :3, :3].copy()
    for _ in range(2):
        same_bits(convolve(x, weight, None, dy), as_written(convolve, x, weight, None, dy))


def test_a_plan_that_would_keep_much_is_none(plans, rng, monkeypatch):
    monkeypatch.setattr(plans_module, "BYTES_KEPT", -1)
    arrays = [values(rng, shape, "float32") for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,), (2, 4, 4, 4))]
    for _ in range(3):
        same_bits(convolve(*arrays), as_written(convolve, *arrays))
    assert kept(plans) == [None, None]


def test_plans_are_given_up_when_there_are_many(plans, rng, monkeypatch):
    monkeypatch.setattr(plans_module, "PLANS_KEPT", 4)
    for batch in range(1, 9):
        x = values(rng, (batch, 3, 4, 4), "float32")
        F.relu(x)
        assert len(kept(plans)) <= 4


def test_scratch_memory_that_grows(rng):
    """A plan finds its scratch memory where it is now."""

    def draw(size):
        return [values(rng, shape, "float32") for shape in ((9, 3, size, size), (4, 3, 3, 3), (4,), (9, 4, size, size))]

    for size in (5, 5, 20, 20, 5, 40, 5, 20):
        arrays = draw(size)
        same_bits(convolve(*arrays, padding=1), as_written(lambda a: convolve(*a, padding=1), arrays))


def test_scratch_memory_that_grows_while_a_plan_is_made(plans, rng):
    """The operation is recorded anew: its calls would go on using the memory that was too small."""
    x, weight = values(rng, (32, 32, 28, 28), "float32"), values(rng, (64, 32, 3, 3), "float32")
    F.conv2d(x, weight, padding=1)
    assert not kept(plans)
    for _ in range(2):
        same_bits(F.conv2d(x, weight, padding=1)[:1], as_written(lambda: F.conv2d(x, weight, padding=1)[:1]))
    (plan,) = kept(plans)
    assert plan.bytes_kept < 1e5


def test_tasks_that_are_recorded_work_alone(monkeypatch):
    """As in the pool: products that several threads cut otherwise may differ in their last bits."""
    with use_backend("numpy") as backend:
        monkeypatch.setattr(backend.pool, "_size", 2)
        recorder, seen = trace.tracing_backend(backend, None), []
        recorder.parallel(lambda task: seen.append(recorder.get_num_threads()), range(4), 1e12)
        assert seen == [1] * 4
        assert recorder.get_num_threads() == 2


def test_nothing_of_a_call_is_kept(plans, rng):
    x = values(rng, (16, 8, 32, 32), "float32")
    with use_backend("numpy") as backend:
        backend.blocks.give_back()
        gc.collect()
        before = backend.blocks.used_bytes
        for _ in range(3):
            y, cache = F.max_pool2d(x, 2)
            dx = F.max_pool2d_backward(y, cache)
        assert kept(plans)
        gone = weakref.ref(x)
        del x, y, cache, dx
        gc.collect()
        assert gone() is None
        backend.blocks.give_back()
        assert backend.blocks.used_bytes == before


def test_recording_a_step_gives_up_the_plans(plans, rng):
    x = values(rng, (16, 8, 32, 32), "float32")
    for _ in range(2):
        F.relu(x)
    with use_backend("numpy") as backend:
        backend.capture(lambda: F.relu(x))
    assert not kept(plans)


def test_slabs_of_two_sizes_where_nothing_is_kept(plans, rng, monkeypatch):
    """Each worker has scratch memory of its own size, and nothing of it is a result."""
    with use_backend("numpy") as backend:
        monkeypatch.setattr(backend.pool, "_size", 2)
    layers = nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.ReLU()

    class Written(nn.Sequential):
        """One that no graph takes the place of."""

        def forward(self, x):
            return super().forward(x)

    model = Written(*layers).eval()
    x = values(rng, (128, 6, 28, 28), "float32")

    def forward():
        with no_grad():
            return [model(x)]

    expected = as_written(forward)
    for _ in range(4):
        same_bits(forward(), expected)
    (plan,) = kept(plans)
    assert isinstance(plan, Plan)


def test_arrays_that_lie_elsewhere_each_time(plans, rng, monkeypatch):
    monkeypatch.setattr(plans_module, "ADDRESSES_KEPT", 2)
    weight = values(rng, (4, 2, 3, 3), "float32")
    held = [values(rng, (3, 2, 8, 8), "float32") for _ in range(5)]
    results = []  # hold their memory: each call's results lie in another place too
    for x in [*held, *held, *reversed(held)]:
        results.append(F.conv2d(x, weight)[0])
        same_bits([results[-1]], as_written(lambda x=x: F.conv2d(x, weight)[:1]))
    assert any(isinstance(plan, Plan) for plan in kept(plans))


def test_a_handler_that_computes_between_the_calls_of_a_plan(plans, rng):
    weight, found = values(rng, (4, 2, 3, 3), "float32"), []
    x, other = values(rng, (3, 2, 8, 8), "float32"), values(rng, (3, 2, 8, 8), "float32")
    for _ in range(3):
        expected = F.conv2d(x, weight)[0].copy()
    (plan,) = kept(plans)
    plan._bound.insert(1, (lambda: found.append(F.conv2d(other, weight)[0]), ()))
    same_bits([F.conv2d(x, weight)[0]], [expected])
    plan._bound.pop(1)
    same_bits(found, as_written(lambda: F.conv2d(other, weight)[:1]))


def test_a_copy_of_what_was_kept_has_arrays_of_its_own(rng):
    x, dy = values(rng, (3, 2, 8, 8), "float32"), values(rng, (3, 2, 4, 4), "float32")
    for _ in range(3):
        _, cache = F.max_pool2d(x, 2)
    expected = [F.max_pool2d_backward(dy, cache)]
    other = copy.deepcopy(cache.caches)
    F.max_pool2d_backward(dy, F.max_pool2d(-x, 2)[1])
    same_bits([F.max_pool2d_backward(dy, cache._replace(caches=other))], expected)


def test_arrays_of_somebody_else_s(rng, tmp_path):
    """Batch norm keeps a view of x, whatever that is a part of."""

    def train(x):
        ones, zeros = np.ones((2, 4), "float32"), np.zeros((2, 4), "float32")
        y, cache = F.batch_norm(x, ones[0], zeros[0], zeros[1], ones[1], training=True)
        return y, *F.batch_norm_backward(dy, cache), ones, zeros

    many = values(rng, (5, 4, 6, 6), "float32")
    np.save(tmp_path / "x.npy", many[:1])
    dy = values(rng, (1, 4, 6, 6), "float32")
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    read = np.frombuffer(many[:1].tobytes(), "float32").reshape(1, 4, 6, 6)
    for x in (mapped, read, many[2:3]):
        for _ in range(4):
            same_bits(train(x), as_written(train, x))


def test_arrays_that_may_not_be_written(rng):
    x = values(rng, (3, 4, 6, 6), "float32")
    arrays = [np.ones(4, "float32") for _ in range(4)]
    for _ in range(3):
        F.batch_norm(x, *arrays, training=True)
    frozen = [array.copy() for array in arrays]
    for array in frozen:
        array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        F.batch_norm(x, *frozen, training=True)


def test_an_operation_that_extends_another_has_plans_of_its_own(plans, rng):
    class Doubled(ReLUOp):
        def forward(self, backend, x, channels, out, keep):
            backend.xp.multiply(x, 2, out=out)

    x = values(rng, (3, 4, 6, 6), "float32")
    for _ in range(3):
        F.relu(x)
        same_bits(run((Doubled(),), x)[:1], [2 * x])


def test_a_plan_of_very_many_calls_is_none(plans, rng, monkeypatch):
    monkeypatch.setattr(plans_module, "ARGUMENTS_KEPT", 3)
    x = values(rng, (3, 4, 6, 6), "float32")
    for _ in range(3):
        same_bits(F.relu(x)[:1], as_written(lambda: F.relu(x)[:1]))
        F.avg_pool2d(x, 2)
    assert None in kept(plans)


def test_in_threads(rng):
    """Threads that come at once have plans of their own, and the bits of one after the other."""
    arrays = [
        [values(rng, shape, "float32") for shape in ((32, 8, 16, 16), (16, 8, 3, 3), (16,), (32, 16, 16, 16))]
        for _ in range(4)
    ]
    expected = [as_written(lambda a: convolve(*a, padding=1), each) for each in arrays]
    together = Barrier(4)

    def work(each):
        together.wait()
        return [convolve(*each, padding=1) for _ in range(10)]

    with ThreadPoolExecutor(4) as threads:
        for results, right in zip(threads.map(work, arrays), expected, strict=True):
            for result in results:
                same_bits(result, right)
