"""Several batches in one step: the step of one batch of them all, recorded or not, resumed and counted rightly."""

import io
import math

import numpy as np
import pytest

import xpcnn
from xpcnn import get_backend, nn, optim
from xpcnn.data import DataLoader
from xpcnn.errors import ConfigError, NonFiniteError, OutOfMemoryError
from xpcnn.training import Checkpointer, Progress, Trainer

from .common import StopAfter, arrays, assert_same, images, labels, loader, net_without_dropout, trainer

pytestmark = pytest.mark.usefixtures("backend")

SAMPLES = 43


def batches(size, dtype="float64"):
    """Return all samples in their order, in batches of `size`; the last is ragged."""
    backend = get_backend()
    x, y = (images()[:, None] / 255).astype(dtype), labels()
    return [(backend.asarray(x[i : i + size]), backend.asarray(y[i : i + size])) for i in range(0, SAMPLES, size)]


def plain_net(dtype="float64"):
    xpcnn.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    return made.to(dtype=dtype)


def fit(data, criterion=None, dtype="float64", epochs=2, optimiser=optim.Adam, **options):
    model = plain_net(dtype)
    made = Trainer(model, optimiser(model.parameters(), 0.01), criterion or nn.CrossEntropyLoss(), **options)
    made.fit(data, epochs=epochs)
    return made


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("compile", ["auto", False])
def test_equal_to_a_larger_batch(k, reduction, compile):
    few = fit(batches(4), nn.CrossEntropyLoss(reduction=reduction), accumulate=k, compile=compile, epochs=4)
    large = fit(batches(4 * k), nn.CrossEntropyLoss(reduction=reduction), epochs=4)
    for name, value in arrays(large.model).items():
        np.testing.assert_allclose(arrays(few.model)[name], value, rtol=1e-11, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(few.history.steps["loss"], large.history.steps["loss"], rtol=1e-11)
    assert few.history.steps["accuracy"] == large.history.steps["accuracy"]
    np.testing.assert_allclose(few.history.epochs["loss"], large.history.epochs["loss"], rtol=1e-11)
    assert few.step == large.step == 4 * math.ceil(SAMPLES / (4 * k))


def test_equal_to_the_bit_where_nothing_is_rounded():
    """Sums of small integers are exact in any order."""
    rng = np.random.default_rng(0)
    backend = get_backend()
    x, y = rng.integers(-4, 5, (32, 6)).astype("float32"), rng.integers(-4, 5, (32, 3)).astype("float32")

    def trained(size, k):
        model = nn.Sequential(nn.Linear(6, 3))
        model[0].weight.data[...] = 1
        data = [(backend.asarray(x[i : i + size]), backend.asarray(y[i : i + size])) for i in range(0, 32, size)]
        made = Trainer(model, optim.SGD(model.parameters(), 2.0**-6), nn.MSELoss(reduction="sum"), accumulate=k)
        made.fit(data)
        return arrays(model)

    assert_same(trained(4, 8), trained(32, 1))


def test_recorded_is_as_written():
    recorded = fit(batches(4, "float32"), dtype="float32", accumulate=2, epochs=4)
    written = fit(batches(4, "float32"), dtype="float32", accumulate=2, epochs=4, compile=False)
    assert_same(arrays(recorded.model), arrays(written.model))
    assert recorded.history.steps == written.history.steps


@pytest.mark.parametrize("options", [{"clip_norm": 0.05}, {"nonfinite": "skip"}, {"scaler": True}])
def test_with_what_else_a_step_does(options):
    dtype = "float32" if "scaler" in options else "float64"  # a scale is float32

    def made(size, **more):
        given = {**options, "scaler": optim.GradScaler(init_scale=8.0)} if "scaler" in options else options
        return fit(batches(size, dtype), dtype=dtype, optimiser=optim.SGD, **given, **more)

    few, large = made(4, accumulate=3), made(12)
    rtol = 200 * np.finfo(dtype).eps
    for name, value in arrays(large.model).items():
        np.testing.assert_allclose(arrays(few.model)[name], value, rtol=rtol, atol=rtol / 10, err_msg=name)


def test_values_in_the_place_of_classes():
    backend = get_backend()
    x = backend.asarray(np.random.default_rng(0).standard_normal((9, 4)).astype("float32"))
    model = nn.Sequential(nn.Linear(4, 1))
    made = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.MSELoss(), accumulate=2)
    made.fit([(x[:4], x[:4, :1]), (x[4:8], x[4:8, :1]), (x[8:], x[8:, :1])])
    assert made.step == 2
    assert math.isnan(made.history.steps["accuracy"][0])


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resumed_to_the_bit(tmp_path, stop):
    def made(seed=0, **options):
        return trainer(seed=seed, accumulate=4, checkpoint=Checkpointer(tmp_path, every_steps=1), **options)

    with pytest.raises(StopAfter.Stopped):
        made(callbacks=[StopAfter(stop + 1)]).fit(loader(), epochs=3)
    resumed = made(seed=99)
    resumed.fit(loader(), epochs=3, resume=True)
    whole = trainer(accumulate=4)
    whole.fit(loader(), epochs=3)
    assert_same(arrays(resumed.model), arrays(whole.model))
    assert resumed.history.steps == whole.history.steps
    assert resumed.step == 6


class AfterTheLast:
    """Interrupts after the last step of an epoch, whose batches are fewer."""

    def on_step(self, made):
        made.interrupted = made.step == 2


def test_interrupted_at_the_end_of_an_epoch(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        trainer(accumulate=4, checkpoint=Checkpointer(tmp_path), callbacks=[AfterTheLast()]).fit(loader(), epochs=3)
    resumed = trainer(seed=99, accumulate=4, checkpoint=Checkpointer(tmp_path))
    resumed.fit(loader(), epochs=3, resume=True)
    whole = trainer(accumulate=4)
    whole.fit(loader(), epochs=3)
    assert_same(arrays(resumed.model), arrays(whole.model))


def test_a_schedule_counts_steps():
    model = plain_net()
    optimizer = optim.SGD(model.parameters(), 0.1)
    total = 2 * math.ceil(11 / 3)
    for steps in (total - 1, total):
        schedule = optim.OneCycleLR(optimizer, 0.1, steps)
        made = Trainer(model, optimizer, nn.CrossEntropyLoss(), schedule=schedule, accumulate=3)
        if steps < total:
            with pytest.raises(ConfigError, match=f"total_steps: expected {total} or more batches"):
                made.fit(batches(4), epochs=2)
        else:
            made.fit(batches(4), epochs=2)
    assert schedule.last_step == made.step == total


@pytest.mark.parametrize("read_every", [1, 2, 50])
def test_a_bad_step_is_named_and_undone(read_every):
    data = batches(4)
    x, y = data[4]
    data[4] = x * math.nan, y
    made = trainer("adam", "none", model=net_without_dropout().to(dtype="float64"), accumulate=2, read_every=read_every)
    good = trainer("adam", "none", model=net_without_dropout().to(dtype="float64"), accumulate=2)
    with pytest.raises(NonFiniteError, match=r"^step 3: the loss is nan; ") as caught:
        made.fit(data)
    if read_every == 1:
        assert "first in the input of the batch" in str(caught.value)
    good.fit(data[:4])
    assert_same(arrays(good.model), arrays(made.model))
    assert (made.step, made.batch, len(made.history)) == (2, 4, 2)


def test_out_of_memory_names_the_largest_batch(monkeypatch):
    made = trainer("sgd", "none", model=plain_net(), accumulate=2, compile=False)

    def full(x):
        raise MemoryError

    monkeypatch.setattr(made.model[4], "forward", full)
    with pytest.raises(OutOfMemoryError, match=r"step 1: out of memory in layer '4' \(Linear\) with a batch of 4;"):
        made.fit(batches(4))


def test_plain_lines_come_as_often():
    file = io.StringIO()
    trainer(accumulate=3, callbacks=[Progress(every=2, file=file, bar=False)]).fit(loader(), epochs=1)
    assert file.getvalue().count("  batch ") == 2
    assert "batch 6/6" in file.getvalue()


def test_an_iterable_without_a_length():
    class Stream:
        def __iter__(self):
            return iter(batches(4))

    assert fit(Stream(), accumulate=4, epochs=1).step == 3


@pytest.mark.parametrize("wrong", [0, 1.5, True, None])
def test_wrong_numbers(wrong):
    with pytest.raises(ConfigError, match=f"accumulate: expected an integer of 1 or more, got {wrong}"):
        trainer(accumulate=wrong)


def test_of_a_loader_each_batch_is_there_once():
    seen = []

    class Watch:
        def on_step(self, made):
            seen.append(made.batch)

    data = DataLoader(images(), labels(), 8, shuffle=False)
    made = trainer(accumulate=4, callbacks=[Watch()])
    made.fit(data, epochs=2)
    assert seen == [4, 6, 4, 6]
