"""Forward and backward as a user calls them, replayed as halves of one graph: to the same bits as written."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpcnn
from xpcnn import nn, optim
from xpcnn.backend.graph import compiled
from xpcnn.errors import ShapeError, StateError
from xpcnn.nn import replayed
from xpcnn.nn.caches import Deferred

WARM = replayed.CALLS_BEFORE + 2


@pytest.fixture(autouse=True)
def numpy_backend():
    with xpcnn.use_backend("numpy"):
        yield


def network(seed=0, dropout=0.3):
    xpcnn.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2))
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Residual(body),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(36, 3),
    )


def batch(seed, n=4):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 2, 6, 6), "float32"), rng.integers(0, 3, n)


def step(model, x, y, input_gradient=False):
    criterion = nn.CrossEntropyLoss()
    loss = criterion(model(x), y)
    dx = model.backward(criterion.backward(), input_gradient=input_gradient)
    return loss, dx


def warm(model, calls=WARM, **options):
    for i in range(calls):
        model.zero_grad()
        step(model, *batch(i), **options)
    return model


def state_of(model):
    arrays = {name: array.copy() for name, array in model.state_dict().items()}
    arrays |= {f"d {name}": p.grad.copy() for name, p in model.named_parameters()}
    return arrays


def is_replayed(model):
    """Whether the last forward was a replay whose backward may follow."""
    return isinstance(model._kept[-1].cache, replayed.Waiting)


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert np.array_equal(got[name], wanted[name], equal_nan=True), name


def as_written(monkeypatch):
    monkeypatch.setattr(compiled, "is_enabled", lambda: False)


# --- the same bits as written, whatever comes between -----------------------------------------------------------------

EVENTS = (
    "step", "step", "step", "step and dx", "small", "two forwards", "add up", "inner backward", "no backward", "eval",
    "no grad", "freeze", "thaw", "seed", "new gradient array", "other layout", "x written", "forget", "rate", "bad x",
    "bad dy", "mode between", "learn", "double", "copy", "inner forward", "eval twice", "statistics between",
    "look", "look at many", "explain", "explain many", "look at it written", "look inside", "look, learn", "look again",
    "look, copy", "look, hook", "look, rate",
)  # fmt: skip


class Program:
    """A training loop that does one event after the other and notes all that it sees."""

    def __init__(self):
        self.model = network()
        self.optimizer = optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        self.seen = []
        self.i = 0

    def note(self, *arrays):
        self.seen += [np.array(each) for each in arrays if each is not None]

    def step(self, n=4, **options):
        self.i += 1
        self.optimizer.zero_grad()
        self.note(*step(self.model, *batch(self.i, n), **options))
        self.optimizer.step()

    def do(self, event):
        model, (x, y), dy = self.model, batch(self.i), np.full((4, 3), 0.25, "float32")
        if event == "step":
            self.step()
        elif event == "step and dx":
            self.step(input_gradient=True)
        elif event == "small":
            self.step(n=3)
        elif event == "two forwards":
            model.zero_grad()
            self.note(model(x), model(-x), model.backward(dy), model.backward(2 * dy, input_gradient=False))
        elif event == "add up":
            self.note(*step(model, x, y))
        elif event == "inner backward":
            self.note(model(x), model[7].backward(dy))
            self.note(model[5].backward(np.ones((4, 36), "float32")))
            model.forget()
        elif event == "no backward":
            self.note(model(x))
        elif event == "eval":
            model.eval()
            self.note(model(x), model.backward(dy, input_gradient=False))
            model.train()
        elif event == "eval twice":
            model.eval()
            self.note(model(x), model(-x), model.backward(dy, input_gradient=False))
            with pytest.raises(StateError, match="expected a forward before it"):
                model.backward(dy)
            model.train()
        elif event == "statistics between":
            model.eval()
            self.note(model(x))
            model.train()
            self.note(model(3 * x), model.backward(dy, input_gradient=False))
            self.note(model[7].backward(dy), model[5].backward(np.ones((4, 36), "float32")))
            model.forget()
        elif event.startswith(("look", "explain")):
            model.eval()
            self.look(event)
            model.train()
        elif event == "no grad":
            with xpcnn.no_grad():
                self.note(model(x))
        elif event in ("freeze", "thaw"):
            y = model(x)
            model[0].requires_grad_(event == "thaw")
            self.note(y, model.backward(dy, input_gradient=False))
        elif event == "seed":
            xpcnn.manual_seed(self.i)
        elif event == "new gradient array":
            y = model(x)
            model[7].weight.grad = np.ones_like(model[7].weight.data)
            self.note(y, model.backward(dy, input_gradient=False))
        elif event == "other layout":
            self.note(model(x), model.backward(np.asfortranarray(dy), input_gradient=False))
        elif event == "x written":
            mine = x.copy()
            y = model(mine)
            mine[...] = 0  # a replay has its own; as written, the first layer has copied it to batch-last
            self.note(y, model.backward(dy, input_gradient=False))
        elif event == "forget":
            self.note(model(x))
            model.forget()
            with pytest.raises(StateError, match="expected a forward before it"):
                model.backward(dy)
        elif event == "rate":
            model[6].p = 0.7 - model[6].p
        elif event == "bad x":
            with pytest.raises(ShapeError, match="x: expected"):
                model(np.ones((4, 3, 6, 6), "float32"))
        elif event == "bad dy":
            self.note(model(x))
            with pytest.raises(ShapeError, match="dy: expected"):
                model.backward(np.ones((4, 2), "float32"))
            self.note(model.backward(dy, input_gradient=False))
        elif event == "mode between":
            y = model(x)
            model.eval()
            self.note(y, model[7].backward(dy))
            model.train()
            model.forget()
        elif event == "learn":
            y = model(x)
            self.optimizer.step()
            with pytest.raises(StateError, match="backward: expected the parameters that its forward read"):
                model.backward(dy)
            model.forget()
        elif event == "double":
            model.append(nn.ReLU())
            self.note(model(x), model.backward(dy, input_gradient=False))
            del model[-1]
        elif event == "copy":
            self.note(model(x))
            self.note(copy.deepcopy(model).eval()(x), pickle.loads(pickle.dumps(model)).eval()(x))
            self.note(model.backward(dy, input_gradient=False))
        elif event == "inner forward":
            self.note(model(x), model[7](np.ones((4, 36), "float32")), model.backward(dy, input_gradient=False))
            model.forget()
        self.note(*state_of(model).values())

    def look(self, event):
        """Do an event in evaluation mode."""
        model, mine, dy = self.model, batch(self.i)[0], np.full((4, 3), 0.25, "float32")
        many, dy_many = batch(self.i, 44)[0], np.full((44, 3), 0.25, "float32")
        if event == "look at many":
            self.note(*[model(many) for _ in range(3)])
        elif event == "explain many":
            self.note(model(many), model[7].backward(dy_many), model(many), model.backward(dy_many))
        elif event == "look":
            self.note(*[model(each * mine) for each in range(12)])
        elif event == "explain":
            self.note(model(mine), model.backward(dy), model(2 * mine), model.backward(dy, input_gradient=False))
        elif event == "look at it written":
            y = model(mine)
            mine[...] = 0
            self.note(y, model.backward(dy))
        elif event == "look inside":
            self.note(model(mine), model[7].backward(dy), model[5].backward(np.ones((4, 36), "float32")))
        elif event == "look, learn":
            y = model(mine)
            self.optimizer.step()
            with pytest.raises(StateError, match="backward: expected the parameters that its forward read"):
                model.backward(dy)
            self.note(y)
        elif event == "look again":
            self.note(model(mine), model(-mine), model.backward(dy))
            with pytest.raises(StateError, match="expected a forward before it"):
                model.backward(dy)
        elif event == "look, copy":
            self.note(model(mine), copy.deepcopy(model)(mine), pickle.loads(pickle.dumps(model))(mine))
            with xpcnn.no_grad():
                self.note(model(-mine))
            self.note(model.backward(dy))
        elif event == "look, hook":
            with model[2].register_forward_hook(lambda module, x, y: self.note(y)):
                self.note(model(mine))
            self.note(model.backward(dy), model(mine))
            with model[2].register_forward_hook(lambda module, x, y: self.note(y)):
                self.note(model.backward(dy))
        elif event == "look, rate":
            y = model(mine)
            model[1].eps *= 2
            self.note(y, model.backward(dy))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=14), st.booleans())
def test_a_loop_gives_the_bits_that_it_gives_as_written(events, is_warm):
    events = ["step"] * (WARM if is_warm else 0) + events + ["step"]
    programs = []
    for enabled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not enabled:
                as_written(patch)
            programs.append(Program())
            for event in events:
                programs[-1].do(event)
    assert len(programs[0].seen) == len(programs[1].seen)
    for got, wanted in zip(programs[0].seen, programs[1].seen, strict=True):
        assert got.shape == wanted.shape
        assert np.array_equal(got, wanted, equal_nan=True)


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_after_replays(event, monkeypatch):
    test_a_loop_gives_the_bits_that_it_gives_as_written.hypothesis.inner_test([event] * 8, True)


def test_a_step_is_replayed_both_ways():
    model = warm(network())
    x, y = batch(9)
    criterion = nn.CrossEntropyLoss()
    criterion(model(x), y)
    assert is_replayed(model)
    pair = model._kept[-1].cache._pair
    before = pair.replays
    model.backward(criterion.backward(), input_gradient=False)
    assert pair.replays == before + 1
    assert not any(entry.cache is not nn.caches.GONE for each in model.modules() for entry in each._kept)


def test_nothing_is_replayed_where_that_is_switched_off(monkeypatch):
    as_written(monkeypatch)
    model = warm(network())
    model(batch(0)[0])
    assert not is_replayed(model)


def test_nothing_is_replayed_with_a_layer_of_the_users_own():
    class Mine(nn.ReLU):
        pass

    model = network()
    model[2] = Mine()
    warm(model)
    model(batch(0)[0])
    assert not is_replayed(model)


def test_a_forward_that_comes_before_the_backward_is_no_replay():
    model = warm(network())
    x, _ = batch(0)
    model(x)
    assert is_replayed(model)
    model(x)
    assert not is_replayed(model)
    model.forget()
    model(x)
    assert is_replayed(model)


def test_what_a_user_has_of_it_is_the_users():
    model = warm(network(dropout=0.0))
    x, _ = batch(0)
    y = model(x)
    mine = y.copy()
    model.backward(np.ones_like(y), input_gradient=False)
    model(2 * x)
    assert np.array_equal(y, mine)


@pytest.mark.parametrize("training", [True, False])
def test_a_layers_backward_finds_options_modes_and_layers_as_the_forward_did(training, monkeypatch):
    found = []
    for _ in range(2):
        model = warm(network()).train(training)
        xpcnn.manual_seed(1)
        model(batch(0)[0])
        assert isinstance(model._kept[-1].cache, Deferred) is not found
        model[6].p, model[1].eps = 0.9, 0.5
        model.train(not training).append(nn.ReLU())
        handle = model[2].register_forward_hook(lambda *_: pytest.fail("a forward that is no forward calls nobody"))
        dx = model.backward(np.ones((4, 3), "float32"))
        handle.remove()
        assert model[6].p == 0.9
        assert model[1].eps == 0.5
        assert len(model) == 9
        assert model.training is not training
        found.append(state_of(model) | {"dx": dx})
        as_written(monkeypatch)
    assert_same(*found)


def test_a_network_that_is_dropped_goes():
    model = warm(network())
    model(batch(0)[0])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_threads_have_one_network_at_once():
    model = network(dropout=0.0)
    for each in model.modules():
        each.training = not isinstance(each, (nn.BatchNorm2d, nn.Dropout2d))
    warm(model)
    x, _ = batch(0)
    expected = model(x)
    model.forget()
    found = []

    def work():
        for _ in range(30):
            found.append(np.array_equal(model(x), expected))
            model.forget()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 90
