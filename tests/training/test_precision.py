"""Training in float16: overflow, growth, resuming, recorded steps; and that a scale changes no float32 training."""

import contextlib
import copy

import numpy as np
import pytest

import xpcnn
from tests.fake_device import counters
from tests.models import small
from xpcnn import nn, optim
from xpcnn.backend import backend_of, use_backend
from xpcnn.errors import ConfigError, DataError, NonFiniteError
from xpcnn.nn.precision import call
from xpcnn.training import Checkpointer, Trainer, load_parameters, save_parameters

from .common import OPTIMISERS, StopAfter, arrays, assert_same, loader, net, net_without_dropout, trainer
from .test_step import device  # noqa: F401

INPUTS = {"lenet5": (1, 32, 32), "deep3": (1, 28, 28), "tiny": (1, 28, 28), "conv8": (1, 28, 28),
          "three-layer": (3, 32, 32), "resnet20": (3, 32, 32), "vgg8": (3, 32, 32)}  # fmt: skip
KINKED = "lenet5", "vgg8", "resnet20"  # so many maxima that some lie within a rounding for most seeds
BOUND = 1e-2  # of a whole network's logits and gradients against float64, relative by norm


def half_trainer(optimiser="momentum", schedule="none", scaler=None, **options):
    mine = trainer(optimiser, schedule, scaler=optim.GradScaler(1024.0) if scaler is None else scaler, **options)
    mine.model.half()
    return mine


def state(mine):
    """Everything that a training changes, in host arrays."""
    optimizer = {f"optimizer.{k}": np.asarray(v) for k, v in mine.optimizer.state_dict().items()}
    scaler = {f"scaler.{k}": np.asarray(v) for k, v in mine.scaler.state_dict().items()} if mine.scaler else {}
    return {**arrays(mine.model), **optimizer, **scaler}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_scale_changes_no_bit_of_a_float32_training(backend, optimiser):
    """A power of two passes through every backward, the clipping and the update without rounding anything."""
    plain = trainer(optimiser, "none", clip_norm=0.5)
    scaled = trainer(optimiser, "none", clip_norm=0.5, scaler=optim.GradScaler(2.0**10, growth_interval=4))
    for mine in (plain, scaled):
        xpcnn.manual_seed(1)  # the same masks
        mine.fit(loader(seed=0), epochs=2)
    assert scaled.scaler.get_scale() == 2.0**13
    assert_same(arrays(scaled.model), arrays(plain.model))
    assert plain.history.steps == scaled.history.steps


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_float16_trains_as_float32_does(backend, optimiser):
    narrow, plain = (make(optimiser, "none", model=well_conditioned_net()) for make in (half_trainer, trainer))
    for mine in (narrow, plain):
        xpcnn.manual_seed(1)  # the same masks
        mine.fit(loader(seed=0), epochs=4)
    assert {str(a.dtype) for a in arrays(narrow.model).values()} == {"float16", "float32"}
    assert narrow.skipped == 0
    assert narrow.history.steps["loss"] == pytest.approx(plain.history.steps["loss"], abs=0.02)
    metrics, expected = narrow.evaluate(loader()), plain.evaluate(loader())
    assert metrics.loss == pytest.approx(expected.loss, abs=0.02)


@pytest.mark.parametrize("read_every", [1, 50])
def test_an_overflow_leaves_everything_but_the_scale(backend, read_every):
    data = list(loader(seed=0))[:3]
    mine = half_trainer("adam", scaler=optim.GradScaler(2.0**30), read_every=read_every)
    mine.optimizer.gather()
    before = state(mine)
    mine.fit(data)
    assert mine.skipped == mine.step == 3
    assert mine.scaler.get_scale() == 2.0**27
    after = state(mine)
    for name, value in before.items():
        if not name.startswith(("scaler.", "optimizer.memory.")):
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert all(np.isfinite(mine.history.steps["loss"]))


def test_training_goes_on_at_the_scale_that_fits(backend):
    """The steps that overflowed have left no trace: what follows is a training that began with the scale they found."""
    data = list(loader(seed=0))[:5]
    mine = half_trainer("momentum", scaler=optim.GradScaler(2.0**24), model=net_without_dropout())
    mine.fit(data * 4)
    assert 0 < mine.skipped < 15
    assert mine.scaler.get_scale() == 2.0 ** (24 - mine.skipped)
    other = half_trainer("momentum", scaler=optim.GradScaler(mine.scaler.get_scale()), model=net_without_dropout())
    other.fit((data * 4)[mine.skipped :])
    assert other.skipped == 0
    assert_same(arrays(mine.model), arrays(other.model))


def well_conditioned_net():
    """Return a net whose training does not depend on roundings.

    One ReLU or maximum that goes the other way changes a loss by 0.03, and the gradient of a bias before batch norm is
    nothing but rounding noise, which RMSprop and Adam bring to full steps.
    """
    xpcnn.manual_seed(0)
    return smooth(net(bias=False))


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_the_scale_grows(backend, nonfinite):
    mine = half_trainer(scaler=optim.GradScaler(16.0, growth_interval=3), nonfinite=nonfinite)
    mine.fit(list(loader(seed=0))[:5] * 2)
    assert mine.scaler.get_scale() == 16.0 * 2**3
    assert mine.scaler.state_dict()["_growth_tracker"] == 1


def spoiled(data, at):
    x, labels = data[at]
    return [*data[:at], (x * np.nan if isinstance(x, np.ndarray) else x * float("nan"), labels), *data[at + 1 :]]


@pytest.mark.parametrize("read_every", [1, 2, 50])
def test_a_loss_that_is_nan_is_no_overflow(backend, read_every):
    data = list(loader(seed=0))[:5]
    good = half_trainer("adam")
    good.fit(data[:3])
    mine = half_trainer("adam", read_every=read_every)
    with pytest.raises(NonFiniteError, match=r"^step 4: the loss is nan; "):
        mine.fit(spoiled(data, 3))
    assert mine.step == len(mine.history) == 3
    assert_same(arrays(good.model), arrays(mine.model))
    assert mine.scaler.state_dict() == good.scaler.state_dict()


@pytest.mark.parametrize(
    "scaler",
    [optim.GradScaler(2.0**30, 1.0, 1.0), optim.GradScaler(2.0**30, backoff_factor=1.0)],
    ids=["static", "growing only"],
)
def test_an_overflow_that_no_lower_scale_can_cure_is_an_error(backend, scaler):
    mine = half_trainer(scaler=copy.deepcopy(scaler))
    with pytest.raises(NonFiniteError, match=r"step 1: a gradient is nan or infinite; .*the scale of the loss"):
        mine.fit(list(loader(seed=0))[:3])
    assert mine.step == 0
    skipping = half_trainer(scaler=copy.deepcopy(scaler), nonfinite="skip")
    skipping.fit(list(loader(seed=0))[:3])
    assert skipping.skipped == 3


def test_gradients_that_stay_infinite_are_an_error_in_the_end(backend):
    class Broken(nn.Module):
        def forward(self, x):
            return x

        def backward(self, dy):
            return dy * float("inf")

    mine = half_trainer(scaler=optim.GradScaler(2.0**-12), model=nn.Sequential(*net_without_dropout(), Broken()))
    with pytest.raises(NonFiniteError, match="step 3: a gradient is nan or infinite"):
        mine.fit(list(loader(seed=0))[:5])
    assert mine.scaler.get_scale() == 2.0**-14


@pytest.mark.parametrize("optimiser", ["momentum", "adam", "rmsprop"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"nonfinite": "skip"}])
def test_recorded_steps_are_the_steps(backend, optimiser, options):
    """On NumPy's tape; `device` below is the recorder that forbids what CUDA forbids."""
    if not backend.captures:
        pytest.skip(f"{backend.name} records no steps")
    check_recorded(optimiser, options)


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"nonfinite": "skip"}])
def test_recorded_steps_are_the_steps_on_a_device(device, optimiser, options):  # noqa: F811
    check_recorded(optimiser, options)
    assert device.replays == 3 * 5 - 3


def check_recorded(optimiser, options):
    """Overflows and growth happen inside of the record."""
    both = []
    for steps in (True, False):
        mine = half_trainer(optimiser, scaler=optim.GradScaler(2.0**22, growth_interval=4), compile=steps, **options)
        mine.fit(loader(), epochs=3)
        both.append(mine)
    recorded, plain = both
    assert 3 < recorded.skipped < 15
    assert_same(state(recorded), state(plain))
    assert recorded.history.steps == plain.history.steps


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
@pytest.mark.parametrize("stop", [3, 8])
def test_resumed_equals_undisturbed(backend, tmp_path, optimiser, stop):
    def make(**options):
        return half_trainer(optimiser, scaler=optim.GradScaler(2.0**22, growth_interval=5), **options)

    straight = make()
    straight.fit(loader(), epochs=3)
    mine = make(checkpoint=Checkpointer(tmp_path, every_steps=1), callbacks=[StopAfter(stop)])
    with contextlib.suppress(StopAfter.Stopped):
        mine.fit(loader(), epochs=3)
    resumed = make(checkpoint=Checkpointer(tmp_path, every_steps=1), seed=7)
    resumed.fit(loader(), epochs=3, resume=True)
    assert_same(state(resumed), state(straight))
    assert resumed.history.steps == straight.history.steps
    assert resumed.skipped == straight.skipped > 0


def test_a_checkpoint_with_a_scaler_wants_one(backend, tmp_path):
    mine = half_trainer(checkpoint=Checkpointer(tmp_path))
    mine.fit(loader())
    other = trainer("momentum", "none", checkpoint=Checkpointer(tmp_path))
    other.model.half()
    with pytest.raises(DataError, match="scaler: expected one in both the checkpoint and the trainer, or in neither"):
        other.fit(loader(), epochs=2, resume=True)
    plain = trainer("momentum", "none", scaler=optim.GradScaler(), checkpoint=Checkpointer(tmp_path))
    with pytest.raises(DataError, match=r"expected float32 as the trainer has it, got float16"):
        plain.fit(loader(), epochs=2, resume=True)


def test_parameters_are_saved_in_float16(backend, tmp_path):
    mine = half_trainer()
    mine.fit(loader(seed=0))
    save_parameters(mine.model, tmp_path / "model.safetensors")
    other = net().half()
    load_parameters(other, tmp_path / "model.safetensors")
    assert_same(arrays(mine.model), arrays(other))


def test_a_step_never_waits_for_the_device():
    with use_backend("fake"):
        mine = half_trainer("adam", scaler=optim.GradScaler(2.0**20, growth_interval=2), read_every=50, clip_norm=1.0)
        data = list(loader(seed=0))[:5]
        mine.train_batch(*data[0])
        counters.reset()
        for batch in data[1:] + data:
            mine.train_batch(*batch)
        assert (counters.syncs, counters.downloads) == (0, 0)
        assert counters.matmul_copies == []
        mine.read()
        assert counters.downloads > 0
        assert mine.scaler.get_scale() < 2.0**20


def test_a_scaler_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"scaler: expected an optim\.GradScaler, got float"):
        trainer(scaler=1024.0)


def test_float16_without_a_scaler_is_allowed(backend):
    mine = trainer("momentum", "none")
    mine.model.half()
    mine.fit(loader(seed=0))
    assert mine.skipped == 0


def test_small_gradients_need_the_scale(backend):
    """Of a gradient of at most 2^-25, which float16 rounds to zero, a scale lets the weights see all."""
    moved = []
    for scaler in (None, optim.GradScaler(1024.0)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).half()
        start = arrays(model)["1.weight"]
        x = backend.asarray(np.full((1, 1, 2, 2), 2.0**-24, "float32"))
        mine = Trainer(model, optim.SGD(model.parameters(), 2.0**25), nn.CrossEntropyLoss(), scaler=scaler)
        mine.fit([(x, backend.asarray(np.zeros(1, "int64")))])
        moved.append(float(np.abs(arrays(model)["1.weight"] - start).max()))
    assert moved[0] == 0.0
    assert moved[1] > 0.5


# --- whole networks ------------------------------------------------------------------------------------------------


def norm_of_difference(found, expected):
    difference = sum(np.sum((a - b) ** 2) for a, b in zip(found, expected, strict=True))
    return float(np.sqrt(difference / sum(np.sum(b**2) for b in expected)))


def smooth(model):
    """Put smooth layers in the place of ReLU and max-pooling.

    Where two candidates differ by less than a rounding, those send a gradient the other way. Over twenty layers that
    takes ResNet-20's gradient 10 % away from float64's, and says nothing about the arithmetic.
    """
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            layers = (nn.Tanh() if isinstance(each, nn.ReLU) else each for each in module)
            module._set(tuple(nn.AvgPool2d(2) if isinstance(each, nn.MaxPool2d) else each for each in layers))
    return model


@pytest.mark.parametrize(("name", "change"), [*((name, copy.copy) for name in INPUTS if name not in KINKED),
                                              *((name, smooth) for name in KINKED)])  # fmt: skip
def test_gradients_of_whole_networks_against_float64(backend, rng, name, change):
    x = rng.normal(size=(8, *INPUTS[name])).astype("float32")
    labels = backend.asarray(rng.integers(0, 10, 8))
    found = {}
    for dtype in ("float16", "float64"):
        xpcnn.manual_seed(0)
        model = change(small.thin(name)).half().to(dtype=dtype)  # both from the same rounded weights
        criterion = nn.CrossEntropyLoss()
        xpcnn.manual_seed(0)  # the same masks
        logits = call(model, backend.asarray(x.astype("float16").astype(dtype)))
        criterion(logits, labels)
        scale = 1024.0 if dtype == "float16" else 1.0
        dlogits = criterion.backward() * scale
        model.backward(dlogits.astype(dtype), input_gradient=False)
        to_host = lambda a: backend_of(a).to_numpy(a).astype("float64")  # noqa: E731
        found[dtype] = [to_host(logits)], [to_host(p.grad) / scale for p in model.parameters()]
    assert norm_of_difference(found["float16"][0], found["float64"][0]) < BOUND
    assert norm_of_difference(found["float16"][1], found["float64"][1]) < BOUND
