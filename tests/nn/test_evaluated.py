"""Forwards in evaluation mode outside `no_grad`: as those inside it, and a backward finds what it needs."""

import contextlib
import copy
import gc
import pickle
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import xpcnn
from tests.functional.strategies import values
from tests.marks import needs_recording, needs_speed
from xpcnn import nn, optim
from xpcnn.backend import backend_of
from xpcnn.backend.graph import compiled
from xpcnn.errors import StateError
from xpcnn.nn import caches, evaluated
from xpcnn.testing import numerical_gradient

from .layers import in_float64, kept_by

CHANNELS, SIZE, CLASSES = 2, 6, 3


class Mine(nn.ReLU):
    """A layer of a user's own."""


def plain():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), *head())


def head():
    return nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES)


def frozen():
    model = plain()
    model[0].requires_grad_(False)
    return model


def nested():
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    shared = nn.Tanh()
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3), shared),
        nn.Residual(body),
        nn.ReLU(),
        nn.Concat(nn.Identity(), nn.AvgPool2d(1)),
        nn.Conv2d(8, 4, 1),
        shared,
        nn.AvgPool2d(2),
        nn.Sequential(*head()),
    )


def of_a_user():
    model = plain()
    model[2] = Mine()
    return model


NETWORKS = {"plain": plain, "frozen": frozen, "nested": nested, "of a user": of_a_user}


def network(rng, make=plain):
    """A network in evaluation mode whose statistics and scales are not those it begins with."""
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for array in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                array[...] = model.backend.asarray(rng.uniform(0.5, 2, array.shape).astype("float32"))
    return model


@pytest.fixture(params=[1, 3, 200])  # the last goes through in pieces where batches are cut
def x(request, backend, rng, monkeypatch):
    cut_small(monkeypatch, backend)
    return batch(rng, backend, request.param)


def cut_small(monkeypatch, backend, slab=1 << 12):
    if backend.slab_bytes is not None:
        monkeypatch.setattr(backend, "slab_bytes", slab)


def batch(rng, backend, n):
    return backend.asarray(values(rng, (n, CHANNELS, SIZE, SIZE), "float32"))


def like(y):
    """A gradient for y."""
    backend = backend_of(y)
    return backend.asarray(values(np.random.default_rng(5), y.shape, "float32"))


def is_awaited(model):
    return isinstance(model._kept[-1].cache, evaluated.Awaited)


def forward(model, x, awaited=True):
    """Return y of a forward that keeps nothing as long as no backward asks for it."""
    model(x)  # the first one of a few images may be the only one
    y = model(x)
    assert is_awaited(model) is (awaited and model.backend.immediate and model.backend.slab_bytes is not None)
    return y


def gradients(model, dx=None):
    found = {"dx": dx} | {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: backend_of(array).to_numpy(array).copy() for name, array in found.items() if array is not None}


def as_kept(monkeypatch, model, x, dy):
    """Return the gradients of a model's copy that keeps its caches."""
    other = copy.deepcopy(model)
    with monkeypatch.context() as patch:
        patch.setattr(evaluated.Evaluation, "forward", lambda self, x: None)
        patch.setattr(compiled, "is_enabled", lambda: False)
        other.zero_grad()
        other(x)
        assert not is_awaited(other)
        return gradients(other, other.backward(dy))


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


# --- the gradients ----------------------------------------------------------------------------------------------------


@needs_recording
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_a_forward_that_kept_its_caches(backend, rng, x, monkeypatch, name):
    model = network(rng, NETWORKS[name])
    y = forward(model, x, awaited=name != "of a user")
    dy = like(y)
    wanted = as_kept(monkeypatch, model, x, dy)
    for _ in range(2):
        model.zero_grad()
        assert_same(gradients(model, model.backward(dy)), wanted)
        assert not kept_by(model)
        model(x)
    model.backward(dy, input_gradient=False)  # adds up
    assert_same(
        {name: each for name, each in gradients(model).items() if name in wanted},
        {name: 2 * each for name, each in wanted.items() if name != "dx"},
    )


@needs_recording
@pytest.mark.parametrize("n", [2, 40])
def test_gradients_are_those_of_finite_differences(rng, n, monkeypatch):
    with xpcnn.use_backend("numpy") as backend:
        cut_small(monkeypatch, backend, 1 << 10)
        model = in_float64(network(rng, lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Tanh())))
        x = rng.standard_normal((n, CHANNELS, 4, 4))
        dy = rng.standard_normal((n, 2, 2, 2))
        y = forward(model, x)
        assert model._live[1].batches.cuts(x) is (n > 16)

        def loss(_):
            with xpcnn.no_grad():
                return float((model._alone(x) * dy).sum())

        assert y.shape == dy.shape
        dx = model.backward(dy)
        for gradient, array in ((dx, x), *((each.grad, each.data) for each in model.parameters())):
            np.testing.assert_allclose(gradient, numerical_gradient(loss, array), rtol=1e-6, atol=1e-7)


@needs_recording
def test_each_layer_finds_its_own(backend, rng, x, monkeypatch):
    model, other = network(rng), network(rng, plain)
    other.load_state_dict(model.state_dict())
    forward(model, x)
    with monkeypatch.context() as patch:
        patch.setattr(evaluated.Evaluation, "forward", lambda self, x: None)
        y = other(x)
    for layers in (model, other):
        dy = like(y)
        for i in (6, 4):  # the others are in chains, whose caches the network has
            dy = layers[i].backward(dy)
    assert_same(gradients(model, dy), gradients(other, dy))


@needs_recording
def test_some_of_the_layers(backend, rng, x, monkeypatch):
    model = network(rng)
    y = forward(model, x)
    first = model[:3].eval()
    inner = forward(first, x)
    wanted = as_kept(monkeypatch, first, x, like(inner)), as_kept(monkeypatch, model, x, like(y))
    found = gradients(first, first.backward(like(inner)))
    model.zero_grad()
    assert_same(found, wanted[0])
    assert_same(gradients(model, model.backward(like(y))), wanted[1])


# --- what changes between forward and backward ------------------------------------------------------------------------


def _hook(model):
    return model[2].register_forward_hook(lambda module, args, output: pytest.fail("no forward of the user's"))


def _layers(model):
    model[3] = nn.ReLU()
    model.append(nn.ReLU())


CHANGES = {
    "x": lambda model, x: x.fill(7),
    "statistics": lambda model, x: model[1].running_mean.fill(3),
    "statistics replaced": lambda model, x: setattr(model[1], "running_var", model[1].running_var * 4),
    "an option": lambda model, x: setattr(model[1], "eps", 0.5),
    "modes": lambda model, x: model.train(),
    "a hook": lambda model, x: _hook(model),
    "layers": lambda model, x: _layers(model),
    "frozen": lambda model, x: model.requires_grad_(False).requires_grad_(True),
    "another model": lambda model, x: optim.SGD(nn.Linear(3, 3).parameters(), 0.1).step(),
    "the seed": lambda model, x: xpcnn.manual_seed(5),
}


@needs_recording
@pytest.mark.parametrize("change", CHANGES)
def test_gradients_are_those_of_the_network_as_it_was(rng, x, monkeypatch, change):
    model = network(rng)
    model.forget()
    backend, given = model.backend, model.backend.copy(x)
    y = forward(model, given)
    wanted = as_kept(monkeypatch, model, x, like(y))
    if not is_awaited(model) and change in ("x", "statistics"):
        pytest.skip("arrays that are kept as they are, not copied, are the user's to leave alone")
    left_by_it = CHANGES[change](model, given)
    left = copy.deepcopy(model.state_dict())
    draws, options = xpcnn.random.get_state(), [vars(each).copy() for each in model.modules()]
    model.zero_grad()
    assert_same(gradients(model, model.backward(like(y))), wanted)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(backend.to_numpy(array), backend.to_numpy(left[name]))
    assert xpcnn.random.get_state() == draws
    for each, before in zip(model.modules(), options, strict=True):
        assert {name: id(value) for name, value in vars(each).items() if name not in each.unguarded} == {
            name: id(value) for name, value in before.items() if name not in each.unguarded
        }
    if change == "a hook":
        left_by_it.remove()  # while there is one anywhere, nothing is replayed


@needs_recording
def test_a_layer_whose_forward_stood_on_a_changed_one_is_right_or_an_error(rng, x):
    model = network(rng)
    dy = like(forward(model, x))
    other = copy.deepcopy(model)
    other(x)
    other[6].backward(dy)
    wanted = gradients(other)
    model[0].weight.data = 2 * model[0].weight.data
    if is_awaited(model):
        with pytest.raises(StateError, match=r"got '0\.weight' changed since then by an assignment to \.data"):
            model[6].backward(dy)
    else:
        model[6].backward(dy)
        assert_same(gradients(model), wanted)


@needs_recording
def test_writes_of_the_users_own_are_found_where_they_are_looked_for(rng, x, monkeypatch):
    monkeypatch.setattr(caches, "checks_writes", True)
    model = network(rng)
    y = forward(model, x, awaited=False)
    model[0].weight.data[...] = 1
    with pytest.raises(StateError, match=r"got 'cache\.weight' written to since then"):
        model.backward(y)


# --- where caches end -------------------------------------------------------------------------------------------------


@needs_recording
def test_one_backward_alone_follows_and_of_the_last_forward(rng, x):
    model = network(rng)
    y = forward(model, x)
    model.backward(like(y))
    with pytest.raises(StateError, match="in evaluation mode the last one alone"):
        model.backward(like(y))
    model(x)
    model.forget()
    with pytest.raises(StateError, match="expected a forward before it"):
        model.backward(like(y))


@needs_recording
def test_copies_are_made_at_any_time(rng, x, monkeypatch):
    model = network(rng)
    y = forward(model, x)
    wanted = as_kept(monkeypatch, model, x, like(y))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(StateError, match="expected a forward before it"):
            other.backward(like(y))
        forward(other, x)
        other.zero_grad()
        assert_same(gradients(other, other.backward(like(y))), wanted)
    assert_same(gradients(model, model.backward(like(y))), wanted)


@pytest.mark.parametrize("n", [1, 40])
def test_memory_is_flat(rng, n, monkeypatch):
    with xpcnn.use_backend("numpy") as backend:
        cut_small(monkeypatch, backend)
        model, x = network(rng), batch(rng, backend, n)
        calls = 10_000 if n == 1 else 500
        for _ in range(100):
            model(x)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(calls):
                model(x)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 20_000
        assert len(model._forwards) == 1
        assert max(len(each._kept) for each in model.modules()) <= 2


@pytest.mark.parametrize("calls", [1, 2])
def test_parts_of_a_network_that_are_dropped_take_their_caches_along(rng, x, calls):
    model, gone = network(rng), []
    for _ in range(6):
        part = model[:3].eval()
        for _ in range(calls):
            part(x)
        gone.append(weakref.ref(part))
        del part
        gc.collect()
    assert not any(each() for each in gone)
    assert max(len(each._kept) for each in model.modules()) <= 2


@needs_recording
@pytest.mark.parametrize("n", [1, 40])
def test_caches_are_computed_for_a_backward_and_kept_where_one_came(rng, n, monkeypatch):
    with xpcnn.use_backend("numpy") as backend:
        cut_small(monkeypatch, backend)
        model, x = network(rng), batch(rng, backend, n)
        dy = like(forward(model, x))
        model.backward(dy)
        for _ in range(9):
            model(x)
            assert is_awaited(model) is (n > 16)  # what is cut is so always: its last bits depend on it
            model.backward(dy)
        for _ in range(evaluated.KEPT_AFTER_BACKWARD + 1):
            model(x)
        assert is_awaited(model)


# --- threads ----------------------------------------------------------------------------------------------------------


def at_once(*functions):
    found = [None] * len(functions)

    def call(i):
        found[i] = functions[i]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_that_evaluate_one_network(rng):
    with xpcnn.use_backend("numpy") as backend:
        model, x = network(rng), batch(rng, backend, 4)
        expected = model(x)
        work = lambda: all(np.array_equal(model(x), expected) for _ in range(100))  # noqa: E731
        assert at_once(work, work, work) == [True] * 3


@needs_recording
def test_threads_that_have_a_network_each(rng, monkeypatch):
    with xpcnn.use_backend("numpy") as backend:
        x = batch(rng, backend, 4)
        models = [network(rng) for _ in range(3)]
        dy = like(models[0](x))
        wanted = [as_kept(monkeypatch, model, x, dy) for model in models]

        def work(model, wanted):
            for _ in range(30):
                model.zero_grad()
                for _ in range(evaluated.KEPT_AFTER_BACKWARD + 3):
                    model(x)
                assert is_awaited(model)
                assert_same(gradients(model, model.backward(dy)), wanted)
            return True

        assert at_once(*[lambda i=i: work(models[i], wanted[i]) for i in range(3)]) == [True] * 3


# --- measuring, pieces, `compile` -------------------------------------------------------------------------------------


@needs_speed
def test_a_network_is_measured_where_it_comes_again_and_once(rng, monkeypatch):
    with xpcnn.use_backend("numpy") as backend:
        model, x, measured = network(rng), batch(rng, backend, 1), []
        measure = nn.Sequential._measure
        monkeypatch.setattr(nn.Sequential, "_measure", lambda *args: measured.append(1) or measure(*args))
        model(x)
        assert not measured
        for _ in range(5):
            model.train()
            model.eval()
            model(x)
        assert len(measured) == 1
        model.append(nn.Softmax().eval())
        for _ in range(3):
            model(x)
        assert len(measured) == 2


@needs_speed
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("without", [True, False])
def test_a_compiled_function_takes_a_batch_as_a_whole_at_each_call(rng, monkeypatch, enabled, without):
    """Pieces may differ from the whole in their last bits, and calls as written must not from those recorded."""
    with xpcnn.use_backend("numpy") as backend:
        cut_small(monkeypatch, backend)
        monkeypatch.setattr("xpcnn.backend.numpy.SLAB_BYTES_OF_HELPERS", backend.slab_bytes)
        if not enabled:
            monkeypatch.setattr(compiled, "is_enabled", lambda: False)
        model, x = network(rng), batch(rng, backend, 200)
        sizes = []
        run = nn.Conv2d.forward
        monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: sizes.append(len(x)) or run(self, x))

        def function(x):
            if not without:
                return model(x)
            with xpcnn.no_grad():
                return model(x)

        call = xpcnn.compile(function)
        results = [call(x) for _ in range(6)]
        assert set(sizes) <= {1, 200}
        for y in results[1:]:
            np.testing.assert_array_equal(y, results[0])
        sizes.clear()
        np.testing.assert_allclose(function(x), results[0], rtol=1e-5, atol=1e-6)
        assert not any(size == 200 for size in sizes)


@needs_recording
def test_a_compiled_backward_without_its_forward_runs_as_written_and_says_so(rng, monkeypatch):
    with xpcnn.use_backend("numpy") as backend:
        model, x = network(rng), batch(rng, backend, 3)
        dy = like(forward(model, x))
        wanted = as_kept(monkeypatch, model, x, dy)
        backward = xpcnn.compile(lambda dy: model.backward(dy))
        for call in range(6):
            model.zero_grad()
            for _ in range(evaluated.KEPT_AFTER_BACKWARD + 2):
                model(x)
            assert is_awaited(model)
            context = pytest.warns(RuntimeWarning, match="what a forward outside of it has kept")
            with context if call == 3 else contextlib.nullcontext():
                dx = backward(dy)
            assert_same(gradients(model, dx), wanted)
