"""How layers are grouped, and that only what the library knows is fused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpcnn
from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.errors import ConfigError
from xpcnn.nn.contexts import trace
from xpcnn.nn.fusion import Call, Chain, ResidualSum, group
from xpcnn.testing import gradcheck


class OwnForward(nn.ReLU):
    def forward(self, x):
        return super().forward(x) * 2

    def backward(self, dy):
        return super().backward(dy * 2)


class OwnBackward(nn.ReLU):
    """A gradient that is cut off, as a user may want it."""

    def backward(self, dy):
        return super().backward(dy) * 0


class OwnCall(nn.ReLU):
    def __call__(self, x):
        return super().__call__(x) * 2


class OwnName(nn.ReLU):
    pass


def kinds(net):
    return [type(each).__name__ for each in group(net)]


def test_groups():
    net = [
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Residual(nn.Conv2d(3, 3, 1)), nn.ReLU(), nn.MaxPool2d(2),
        nn.Residual(nn.ReLU()), nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, 3),
    ]  # fmt: skip
    assert kinds(net) == ["Chain", "ResidualSum", "Call", "Call", "Chain", "Call"]
    assert [layer for each in group(net) for layer in each.layers()] == net
    assert kinds([]) == []


@pytest.mark.parametrize(("kind", "how"), [(OwnForward, Call), (OwnBackward, Call), (OwnCall, Call), (OwnName, Chain)])
def test_what_a_subclass_does_itself_is_called(backend, rng, kind, how):
    assert [type(each) for each in group([nn.Tanh(), kind(), nn.Tanh()])] == (
        [Chain] if how is Chain else [Chain, how, Chain]
    )
    x = backend.asarray(values(rng, (3, 4), "float32"))
    net, layers = nn.Sequential(nn.Tanh(), kind(), nn.Tanh()), [nn.Tanh(), kind(), nn.Tanh()]
    y = x
    for layer in layers:
        y = layer(y)
    dy = y
    for layer in reversed(layers):
        dy = layer.backward(dy)
    np.testing.assert_array_equal(backend.to_numpy(net(x)), backend.to_numpy(y))
    np.testing.assert_array_equal(backend.to_numpy(net.backward(y)), backend.to_numpy(dy))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("at", range(6))
def test_what_is_put_on_a_layer_is_called(backend, rng, training, at):
    """Before the first forward and after many, by the network itself, inside no_grad and by its inference form."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 1))),
        nn.Sequential(nn.ReLU()), nn.Dropout(0.0),
    )  # fmt: skip
    x = backend.asarray(values(rng, (3, 2, 5, 5), "float32"))
    net.train(training)
    for _ in range(9):
        net(x)
        net.backward(backend.asarray(np.ones((3, 4, 5, 5), "float32")))
    plain, called = type(net[at]).forward, []

    def forward(x):
        called.append(at)
        return plain(net[at], x)

    net[at].forward = forward
    net(x)
    net.backward(backend.asarray(np.ones((3, 4, 5, 5), "float32")))
    assert len(called) >= 1
    with nn.no_grad():
        called.clear()
        net(x)
        assert called == [at]
        called.clear()
        nn.Inference(net)(x)
        assert called
    del net[at].forward
    called.clear()
    net(x)
    assert not called


def test_what_is_put_in_the_place_of_a_convolution_s_forward_is_called(backend, rng, monkeypatch):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = backend.asarray(values(rng, (3, 2, 5, 5), "float32"))
    net(x)
    plain, called = nn.Conv2d.forward, []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda layer, x: called.append(layer) or plain(layer, x))
    net(x)
    assert called == [net[0]]


def test_a_subclass_of_residual_is_called():
    class Mine(nn.Residual):
        pass

    assert [type(each) for each in group([Mine(nn.Tanh()), nn.ReLU()])] == [Call, Chain]
    assert [type(each) for each in group([nn.Residual(nn.Tanh()), nn.ReLU()])] == [ResidualSum]


LAYERS = {
    "norm": lambda: nn.BatchNorm2d(2),
    "conv": lambda: nn.Conv2d(2, 2, 1),
    "tanh": nn.Tanh,
    "dropout": lambda: nn.Dropout(0.3),
    "own": OwnForward,
    "residual": lambda: nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))),
    "net": lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Sigmoid()),
}
EDITS = st.tuples(st.sampled_from(["append", "insert", "set", "del", "extend", "slice"]), st.integers(0, 9))


@given(st.lists(st.sampled_from(list(LAYERS)), max_size=4), st.lists(EDITS, max_size=6), st.sampled_from(list(LAYERS)))
def test_an_edited_net_is_the_net_made_so(names, edits, extra):
    """Against a list that is edited alike, made into a new net, and run one layer at a time."""
    rng = np.random.default_rng(len(names))
    layers = [LAYERS[name]() for name in names]
    net = nn.Sequential(*layers)
    x = values(rng, (4, 2, 3, 3), "float32")
    net(x)  # groups are made by now
    net.forget()
    for edit, place in edits:
        new, i = LAYERS[extra](), place % (len(layers) + 1)
        if edit == "append":
            net.append(new), layers.append(new)
        elif edit == "insert":
            net.insert(i, new), layers.insert(i, new)
        elif edit == "extend":
            net.extend([new, new]), layers.extend([new, new])
        elif edit == "set" and i < len(layers):
            net[i] = layers[i] = new
        elif edit == "del" and i < len(layers):
            del net[i], layers[i]
        elif edit == "slice":
            del net[i:], layers[i:]
    assert list(net) == layers
    assert list(net[1:3]) == layers[1:3]
    twin = nn.Sequential(*layers)
    buffers = [array.copy() for _, array in net.named_buffers()]
    xpcnn.manual_seed(4)
    y = net(x)
    dx = net.backward(y)
    found = [parameter.grad.copy() for parameter in net.parameters()]
    for (_, array), value in zip(net.named_buffers(), buffers, strict=True):
        array[...] = value
    net.zero_grad()
    xpcnn.manual_seed(4)
    with trace():
        np.testing.assert_array_equal(twin(x), y)
    np.testing.assert_array_equal(twin.backward(y), dx)
    for parameter, gradient in zip(twin.parameters(), found, strict=True):
        np.testing.assert_array_equal(parameter.grad, gradient)


def test_an_edit_that_is_none(backend):
    net = nn.Sequential(nn.Tanh(), nn.ReLU())
    for edit in (
        lambda: net.insert(0, nn.ReLU),
        lambda: net.__setitem__(0, None),
        lambda: net.extend([nn.Tanh(), 3]),
    ):
        with pytest.raises(ConfigError, match=r"expected instances of xpcnn.nn.Module, got"):
            edit()
    with pytest.raises(IndexError):
        net[5] = nn.Tanh()
    with pytest.raises(IndexError):
        del net[5]
    assert [type(each).__name__ for each in net] == ["Tanh", "ReLU"]


def test_a_layer_replaced_between_forward_and_backward(backend, rng):
    """The groups that a forward took go back, whatever the net is now."""
    net = nn.Sequential(nn.Tanh(), nn.Sigmoid(), nn.Linear(3, 3))
    twin = nn.Sequential(*net)
    x = backend.asarray(values(rng, (2, 3), "float32"))
    y = net(x)
    net[1] = nn.ReLU()
    dx = net.backward(y)
    twin(x)
    np.testing.assert_array_equal(backend.to_numpy(dx), backend.to_numpy(twin.backward(y)))


def test_options_of_a_pooling_take_effect(backend, rng):
    x = backend.asarray(values(rng, (2, 3, 8, 8), "float32"))
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(nn.ReLU(), pool)
    assert net(x).shape == (2, 3, 4, 4)
    pool.kernel_size = pool.stride = 4
    assert net(x).shape == (2, 3, 2, 2)
    mean = nn.AvgPool2d(2)
    mean.padding, mean.stride = 1, 1
    assert mean(x).shape == (2, 3, 9, 9)


def test_residual_blocks_of_every_kind_have_right_gradients(backend, rng):
    for block in (
        nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))),
        nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), nn.Conv2d(2, 2, 1)),
        nn.Residual(nn.Tanh()),
    ):
        net = nn.Sequential(nn.Conv2d(2, 2, 1), block, nn.Sigmoid(), nn.Flatten())
        report = gradcheck(net, values(rng, (2, 2, 3, 3)))
        assert report, report
