"""A network's forward in evaluation mode that keeps nothing: replayed and cut, and always what the network is now."""

import copy
import pickle

import numpy as np
import pytest

from tests.functional.strategies import values
from tests.marks import needs_recording
from xpcnn import nn, no_grad
from xpcnn.backend import backend_of
from xpcnn.backend.graph import Compiled
from xpcnn.errors import ShapeError

from .layers import in_float64

pytestmark = needs_recording


def network(outputs=5):
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * 4 * 4, outputs)).eval()


def forward(model, x):
    with no_grad():
        return model(x)


def layer_by_layer(model, x):
    """Return what the layers give when they are called one after the other."""
    with no_grad():
        for layer in model:
            x = layer(x)
    return x


@pytest.fixture(params=[3, 200])  # in one piece, and in several where batches are cut
def x(request, backend, rng, monkeypatch):
    if backend.slab_bytes is not None:
        monkeypatch.setattr(backend, "slab_bytes", 1 << 13)
    return backend.asarray(values(rng, (request.param, 2, 8, 8), "float32"))


def graphs(model):
    evaluation = model._live[1]  # none where nothing is recorded
    return 0 if evaluation is None else evaluation.batches.whole.graphs + evaluation.batches.shared.graphs


def on_host(array):
    return backend_of(array).to_numpy(array)


def matches(y, expected):
    np.testing.assert_allclose(on_host(y), on_host(expected), rtol=1e-5, atol=1e-5)


def same(y, expected):
    np.testing.assert_array_equal(on_host(y), on_host(expected))


def test_it_is_replayed_and_the_result_belongs_to_the_caller(backend, x):
    model = network()
    first = forward(model, x)
    kept = first.copy()
    for scale in (1, -1, 2, 1):
        y = forward(model, scale * x)
        matches(y, layer_by_layer(model, scale * x))
    assert bool(graphs(model)) is backend.immediate
    same(first, kept)
    same(y, first)


def turn_sign(model):
    model[0].weight.data[...] *= -1


def load(model):
    model.load_state_dict({name: 2 * array for name, array in model.state_dict().items()})


def replace(model):
    model[2] = nn.LeakyReLU(0.3).eval()


def change_inside(model):
    model[2:4]  # the same layers
    model[1].eps = 0.5


def append(model):
    model.append(nn.Linear(5, 2).eval())


def remove(model):
    del model[2]


def move_statistics(model):
    model[1].running_mean[...] += 3


@pytest.mark.parametrize("change", [turn_sign, load, replace, change_inside, append, remove, move_statistics])
def test_what_changes_is_seen(x, change):
    model = network()
    for _ in range(3):
        before = forward(model, x)
    change(model)
    for _ in range(3):
        y = forward(model, x)
        matches(y, layer_by_layer(model, x))
    assert y.shape != before.shape or abs(on_host(y) - on_host(before)).max() > 1e-3


def test_layers_in_training_mode_compute_over_the_batch(x):
    model = network()
    for _ in range(3):
        forward(model, x)
    model[1].train()
    other = copy.deepcopy(model)
    for _ in range(3):
        matches(forward(model, x), layer_by_layer(other, x))
    matches(model[1].running_mean, other[1].running_mean)
    model.train()
    other.train()
    with no_grad():
        matches(model(x), layer_by_layer(other, x))


def test_layers_that_mix_samples_get_all_of_them(x):
    model = network().append(nn.Softmax(dim=0)).eval()
    for _ in range(3):
        y = forward(model, x)
    np.testing.assert_allclose(on_host(y).sum(axis=0), np.ones(5), rtol=1e-5)


class Counted(nn.Module):
    """A layer of a user's own, which does more than compute."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return x


def test_layers_of_a_user_are_called(x):
    model = network().append(Counted()).eval()
    for _ in range(4):
        forward(model, x)
    assert model[-1].calls == [len(x)] * 4


def test_copies_have_graphs_of_their_own(x):
    model = network()
    for _ in range(3):
        y = forward(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(forward(other, x), y)
        other[0].weight.data[...] = 0
        assert not np.array_equal(on_host(forward(other, x)), on_host(y))
    same(forward(model, x), y)


def test_errors_name_the_layer(x):
    model = network()
    model[5] = nn.Linear(7, 2).eval()
    for _ in range(3):
        with pytest.raises(ShapeError, match=r"layer '5' \(Linear\): x: expected 7 features"):
            forward(model, x)
    with pytest.raises(ShapeError, match=r"layer '0' \(Conv2d\)"):
        forward(network(), x[0])


def test_another_type_and_no_images(x):
    model = in_float64(network())
    for each in (x.astype("float64"), x.astype("float64")[:0]):
        for _ in range(3):
            y = forward(model, each)
        assert y.dtype == "float64"
        matches(y, layer_by_layer(model, each))


def test_caches_are_kept_where_a_backward_may_come(x):
    model = network()
    for _ in range(3):
        forward(model, x)
    y = model(x)
    assert model.backward(y).shape == x.shape


def test_the_switch(x, monkeypatch):
    model = network()
    expected = [forward(model, x) for _ in range(4)][-1]
    monkeypatch.setattr("xpcnn.backend.graph.compiled.is_enabled", lambda: False)
    other = copy.deepcopy(model)
    for _ in range(4):
        same(forward(other, x), expected)
    assert other._live[1] is None or isinstance(other._live[1].batches.whole, Compiled)
    assert not graphs(other)
