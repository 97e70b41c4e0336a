"""Frozen parts: no gradient, no update, no cost; and backward without dx through layers of every kind."""

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn, optim
from xpcnn.backend import backend_of
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.nn import convolution, linear

from .layers import LAYERS, kept_by, make


class Named(nn.Module):
    """y = x; notes that its backward was called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.keep(x.shape)
        return x

    def backward(self, dy):
        self.take()
        self.calls += 1
        return dy


def images(backend, rng):
    return backend.asarray(values(rng, (3, 2, 6, 6), "float32"))


def network(first=None):
    return nn.Sequential(
        first or nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.ReLU(),
        nn.Linear(5, 2),
    )  # fmt: skip


def host(arrays):
    return [backend_of(array).to_numpy(array).copy() for array in arrays]


def test_the_switch():
    net = network()
    assert all(parameter.requires_grad is True for parameter in net.parameters())
    assert net.requires_grad_(False) is net
    assert not any(parameter.requires_grad for parameter in net.parameters())
    net[4].requires_grad_()
    assert [parameter.requires_grad for parameter in net.parameters()] == [False] * 4 + [True] * 2 + [False] * 2
    with pytest.raises(ConfigError, match=r"4.weight.requires_grad: expected True or False, got None"):
        net[4].weight.requires_grad = None
    assert nn.Parameter(net[4].weight.data, "w", False).requires_grad is False


@pytest.mark.parametrize("name", [name for name in LAYERS if make(name, np.random.default_rng(0))[0].parameters()])
def test_a_frozen_layer_gets_no_gradient_and_gives_the_same_dx(backend, rng, name):
    layer, x = make(name, rng, "float32")
    layer.eval()
    x = backend.asarray(x)
    y = layer(x)
    expected = backend.to_numpy(layer.backward(y)).copy()
    layer.zero_grad()
    layer.requires_grad_(False)
    layer(x)
    np.testing.assert_allclose(backend.to_numpy(layer.backward(y)), expected, rtol=1e-4, atol=1e-5)
    layer(x)
    assert layer.backward(y, input_gradient=False) is None
    assert all(parameter.grad_is_zero for parameter in layer.parameters())
    assert kept_by(layer) == 0
    layer(x)
    with pytest.raises(ShapeError, match="dy: expected shape"):
        layer.backward(y[:1])


def test_gradients_that_were_there_stay(backend, rng):
    layer, x = nn.Linear(4, 3), backend.asarray(values(rng, (5, 4), "float32"))
    layer.backward(layer(x))
    (before, _) = host([layer.weight.grad, layer.bias.grad])
    layer.weight.requires_grad = False
    layer.zero_grad()
    layer.weight.grad = backend.asarray(before)
    layer.backward(layer(x))
    np.testing.assert_array_equal(host([layer.weight.grad])[0], before)
    assert not layer.bias.grad_is_zero


def test_a_frozen_layer_costs_no_gradient(backend, rng, monkeypatch):
    asked = []

    def spy(function):
        def call(dy, cache, **options):
            asked.append((options["input_gradient"], options["weight_gradient"]))
            return function(dy, cache, **options)

        return call

    monkeypatch.setattr(convolution, "conv2d_backward", spy(convolution.conv2d_backward))
    monkeypatch.setattr(linear, "linear_backward", spy(linear.linear_backward))
    net, x = network(), images(backend, rng)
    net[4].requires_grad_(False)
    net.backward(net(x), input_gradient=False)
    assert asked == [(True, True), (True, False), (False, True)]
    asked.clear()
    net[0].requires_grad_(False)
    net.backward(net(x), input_gradient=False)  # batch norm is the first that needs one
    assert asked == [(True, True), (True, False)]
    asked.clear()
    net[1].requires_grad_(False)
    net.backward(net(x), input_gradient=False)
    assert asked == [(False, True)]
    asked.clear()
    net.backward(net(x))
    assert asked == [(True, True), (True, False), (True, False)]
    assert kept_by(net) == 0


def test_a_net_without_parameters_or_with_all_frozen_does_nothing(backend, rng):
    net, x = network().requires_grad_(False), images(backend, rng)
    y = net(x)
    assert net.backward(y, input_gradient=False) is None
    assert kept_by(net) == 0
    flat = nn.Sequential(nn.Flatten(), nn.ReLU())
    assert flat.backward(flat(x), input_gradient=False) is None
    assert flat.backward(flat(x)).shape == x.shape


def test_layers_of_the_user_are_reached_unless_frozen(backend, rng):
    """Nobody else knows what their backward does."""
    named, x = Named(), images(backend, rng)
    net = network(nn.Sequential(named, nn.Conv2d(2, 3, 3)))
    net.backward(net(x), input_gradient=False)
    assert named.calls == 1
    named.gain = nn.Parameter(backend.asarray(np.ones(1, "float32")))
    named.gain.requires_grad = False
    net.backward(net(x), input_gradient=False)
    assert named.calls == 1
    assert kept_by(net) == 0


@pytest.mark.parametrize("place", range(4))
def test_a_backward_without_the_keyword_works_in_any_place(backend, rng, place):
    layers = [nn.Tanh(), nn.Linear(4, 4), nn.Residual(nn.Linear(4, 4))]
    layers.insert(place, Named())
    net, plain = nn.Sequential(*layers), nn.Sequential(*[each for each in layers if not isinstance(each, Named)])
    x = backend.asarray(values(rng, (3, 4), "float32"))
    for give in (net, nn.Sequential(net), nn.Residual(net)):
        assert give.backward(give(x), input_gradient=False) is None
    net.zero_grad()
    y = net(x)
    dx = net.backward(y)
    found = host([dx, *(each.grad for each in net.parameters())])
    net.zero_grad()
    plain(x)
    for mine, other in zip(found, host([plain.backward(y), *(each.grad for each in plain.parameters())]), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_backward_put_in_the_class_s_place_later_works_too(backend, rng, monkeypatch):
    monkeypatch.setattr(nn.Linear, "backward", lambda self, dy: dy @ self.weight.data)
    net = nn.Sequential(nn.Linear(4, 3))
    net.backward(net(backend.asarray(values(rng, (2, 4), "float32"))), input_gradient=False)


def test_what_a_frozen_beginning_keeps_meets_no_later_backward(backend, rng):
    """One part of a user's module goes back without dx, the other with: the stack below must fit."""

    class Twice(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, x):
            self.part(x * 2)
            return self.part(x)

        def backward(self, dy):
            self.part.backward(dy, input_gradient=False)  # of x
            return self.part.backward(dy)  # of 2 x

    part = nn.Sequential(nn.Softmax(), nn.Linear(4, 4), nn.Linear(4, 3))
    part[1].requires_grad_(False)
    x = backend.asarray(values(rng, (2, 4), "float32"))
    model = Twice(part)
    y = model(x)
    found = host([model.backward(y)])[0]
    part(x * 2)
    np.testing.assert_array_equal(found, host([part.backward(y)])[0])


def test_training_moves_what_is_not_frozen(backend, rng):
    net, x = network(), images(backend, rng)
    update = optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
    net[0].requires_grad_(False)
    net[1].eval()
    before = host(net.state_dict().values())
    for _ in range(3):
        net.backward(net(x), input_gradient=False)
        update.step()
        update.zero_grad()
    moved = [not np.array_equal(a, b) for a, b in zip(before, host(net.state_dict().values()), strict=True)]
    names = list(net.state_dict())
    still = {name for name, has_moved in zip(names, moved, strict=True) if not has_moved}
    assert still == {"0.weight", "0.bias", "1.running_mean", "1.running_var"}
    assert not net[1].training
    assert net.training
