"""A loss or gradient that is nan or infinite: what is said, and that nothing of that step stays."""

import math

import numpy as np
import pytest

import xpcnn
from xpcnn import nn
from xpcnn.backend import get_backend
from xpcnn.errors import NonFiniteError
from xpcnn.training import Checkpointer

from .common import arrays, assert_same, loader, net, net_without_dropout, trainer

pytestmark = pytest.mark.usefixtures("backend")

pytestmark = pytest.mark.usefixtures("backend")


def batches(count=6):
    return list(loader(seed=0))[:count]


def spoil(batch, value=np.nan):
    x, labels = batch
    backend = get_backend()
    host = backend.to_numpy(x).copy()
    host[0, 0, 2, 2] = value
    return backend.asarray(host), labels


class BadGradient(nn.Module):
    """Passes x on; from its `first` backward on, gives an infinite gradient."""

    def __init__(self, first):
        super().__init__()
        self.first, self.calls = first, 0

    def forward(self, x):
        return x

    def backward(self, dy):
        self.calls += 1
        return dy * math.inf if self.calls >= self.first else dy


@pytest.mark.parametrize("read_every", [1, 2, 50])
def test_the_state_before_the_bad_step_stays(backend, read_every):
    data = batches()
    good = trainer("adam", "none")
    good.fit(data[:3])
    mine = trainer("adam", "none", read_every=read_every)
    with pytest.raises(NonFiniteError, match=r"^step 4: the loss is nan; ") as caught:
        mine.fit([*data[:3], spoil(data[3]), *data[4:]])
    assert "\n" not in str(caught.value)
    assert_same(arrays(good.model), arrays(mine.model))
    assert mine.step == len(mine.history) == 3
    saved, expected = mine.optimizer.state_dict(), good.optimizer.state_dict()
    for name, value in expected.items():
        if name.startswith("state."):
            np.testing.assert_array_equal(saved[name], value, err_msg=name)


def test_input_that_is_not_finite_is_named():
    data = batches()
    with pytest.raises(NonFiniteError, match="first in the input of the batch; likely cause: nan or inf in the data"):
        trainer("sgd", "none").fit([spoil(data[0], np.inf)])


def test_a_rate_that_is_too_high_is_named(backend):
    mine = trainer("sgd", "none", model=nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 3)))
    mine.optimizer.lr = 1e25
    with pytest.raises(NonFiniteError) as caught:
        mine.fit(loader(seed=0), epochs=10)
    text = str(caught.value)
    assert "likely cause: the learning rate (1e+25) is too high, try a tenth of it" in text
    assert "first in " in text


def test_unscaled_input_is_named(backend):
    data = [(x * 1e36, labels) for x, labels in batches(1)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 3))
    with pytest.raises(NonFiniteError) as caught:
        trainer("sgd", "none", model=model).fit(data * 3)
    text = str(caught.value)
    assert "unscaled input (values up to 1e+36: divide pixels by 255)" in text
    assert "first in layer '2' (Linear), parameter '2.weight'" in text or "layer '1' (Linear)" in text


@pytest.mark.parametrize("place", [0, 3])
def test_the_layer_and_parameter_are_named(place):
    """A parameter that overflows its layer's output; the layers before it are fine."""
    activation = nn.ReLU() if place == 0 else nn.Tanh()  # Tanh would make numbers of infinities again
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), activation, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    layer = model[1 if place == 0 else 3]
    layer.weight.data[...] = 1e38
    name = "1" if place == 0 else "3"
    data = [(x * 0 + 5.0, labels) for x, labels in batches(2)]
    model[1].bias.data[...] = 30.0
    with pytest.raises(NonFiniteError, match=rf"first in layer '{name}' \(Linear\), parameter '{name}.weight'"):
        trainer("sgd", "none", model=model).fit(data)


def test_a_bad_gradient_names_its_parameter(backend):
    layers = list(net())
    model = nn.Sequential(*layers[:5], BadGradient(3), *layers[5:])
    mine = trainer("momentum", "none", model=model)
    data = batches(2)
    mine.fit(data)
    before = arrays(model)
    with pytest.raises(
        NonFiniteError,
        match=r"step 3: a gradient is nan or infinite; first in the gradient of layer '1' \(BatchNorm2d\), "
        r"parameter '1.bias'; likely cause: the learning rate \(0.05\)",
    ):
        mine.fit(data)
    assert_same(before, arrays(model))


@pytest.mark.parametrize("read_every", [1, 3])
def test_skip_leaves_out_the_bad_steps_alone(backend, read_every):
    data = batches()
    good = trainer("momentum", "none", model=net_without_dropout())
    good.fit([data[0], data[1], data[3], data[5]])
    mine = trainer("momentum", "none", model=net_without_dropout(), nonfinite="skip", read_every=read_every)
    history = mine.fit([data[0], data[1], spoil(data[2]), data[3], spoil(data[4], np.inf), data[5]])
    assert_same(arrays(good.model), arrays(mine.model))
    assert mine.skipped == 2
    assert [math.isfinite(loss) for loss in history.steps["loss"]] == [True, True, False, True, False, True]
    assert history.epochs["loss"] == good.history.epochs["loss"]


def test_no_checkpoint_holds_a_bad_state(backend, tmp_path):
    data = batches()
    checkpointer = Checkpointer(tmp_path, every_steps=2, every_seconds=None)
    mine = trainer("sgd", "none", checkpoint=checkpointer, read_every=50)
    with pytest.raises(NonFiniteError, match="step 4"):
        mine.fit([*data[:3], spoil(data[3]), *data[4:]])
    assert checkpointer.steps() == [2]


def test_bad_parameters_are_named():
    mine = trainer("sgd", "none")
    mine.model[0].weight.data[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"first in parameter '0.weight', before the step"):
        mine.fit(batches(1))


def test_training_goes_on_after_the_error():
    data = batches()
    mine = trainer("momentum", "none", model=net_without_dropout())
    with pytest.raises(NonFiniteError):
        mine.fit([data[0], spoil(data[1])])
    mine.fit(data[1:3])
    good = trainer("momentum", "none", model=net_without_dropout())
    good.fit(data[:1])
    good.fit(data[1:3])
    assert_same(arrays(good.model), arrays(mine.model))
    assert len(mine.history) == mine.step == 3


def test_masks_go_on_after_a_step_that_is_left_out(backend):
    """It has drawn its mask, as PyTorch's would have: a training that draws and drops one there is the same."""
    data = batches()
    good = trainer("momentum", "none", nonfinite="skip")
    good.fit(data[:2])
    xpcnn.random.draw_key()
    good.fit(data[3:])
    mine = trainer("momentum", "none", nonfinite="skip")
    mine.fit([*data[:2], spoil(data[2]), *data[3:]])
    assert_same(arrays(good.model), arrays(mine.model))
