"""How long caches live, who gives them back, and what must not change between forward and backward."""

import copy
import gc
import os
import subprocess
import sys
import tracemalloc
import warnings
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.strategies import values
from xpcnn import nn, optim
from xpcnn.backend import backend_of
from xpcnn.errors import ShapeError, StateError
from xpcnn.nn import caches
from xpcnn.testing import assert_close

from .layers import LAYERS, kept_by, make


class Swish(nn.Module):
    """README's layer of one's own, which knows of no error."""

    def forward(self, x):
        s = 1 / (1 + backend_of(x).xp.exp(-x))
        self.keep((x, s))
        return x * s

    def backward(self, dy):
        x, s = self.take()
        if dy.shape != x.shape:
            raise ShapeError(f"dy: expected shape {x.shape}, got {dy.shape}")
        return dy * s * (1 + x * (1 - s))


class Branches(nn.Module):
    """A container of a user, which keeps nothing itself."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.left(x) + self.right(x)

    def backward(self, dy):
        return self.left.backward(dy) + self.right.backward(dy)


class Failing(nn.Module):
    """Raises in its backward as often as asked."""

    def __init__(self, times=1):
        super().__init__()
        self.times = times

    def forward(self, x):
        self.keep(x.shape)
        return x

    def backward(self, dy):
        self.take()
        if self.times:
            self.times -= 1
            raise ArithmeticError("no gradient today")
        return dy


def dense(rng, backend, *shape):
    return backend.asarray(values(rng, shape, "float32"))


def gradients(model):
    return [model.backend.to_numpy(parameter.grad).copy() for parameter in model.parameters()]


# --- how many forwards may wait ---------------------------------------------------------------------------------------


@pytest.fixture(params=["layer", "net", "layer of a user"])
def model(request, backend):
    return {
        "layer": lambda: nn.Linear(4, 3),
        "net": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
        "layer of a user": Branches,
    }[request.param]()


def test_evaluation_keeps_the_last_forward_alone(backend, rng, model):
    x, other = dense(rng, backend, 2, 4), dense(rng, backend, 5, 4)
    model.eval()
    y = model(x)
    expected = model.backward(y)
    once = kept_by(model)
    for _ in range(3):
        model(other)
    kept = [model(x), kept_by(model)][1]
    assert_close(model.backward(y), expected)
    assert kept_by(model) == once == 0
    assert kept > 0
    with pytest.raises(StateError, match="in evaluation mode the last one alone"):
        model.backward(y)


def test_training_keeps_64_and_warns_at_the_17th(backend, rng, model):
    x = dense(rng, backend, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(16):
            y = model(x)
    with pytest.warns(RuntimeWarning, match=r"17 forwards .* without a backward.*no_grad\(\)") as caught:
        y = [model(x) for _ in range(48)][-1]
    assert len(caught) == 1
    for _ in range(2):
        with pytest.raises(StateError, match=r"expected at most 64 forwards .*, got one more; .*no_grad\(\)"):
            model(x)
    with nn.no_grad():
        model(x)
    for _ in range(64):
        model.backward(y)
    with pytest.raises(StateError, match="got none"):
        model.backward(y)
    model(x)
    model.backward(y)


def test_the_refused_forward_changes_nothing(backend, rng):
    norm = nn.BatchNorm1d(4)
    x = dense(rng, backend, 5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(64):
            norm(x)
    before = backend.to_numpy(norm.running_mean).copy()
    with pytest.raises(StateError):
        norm(x)
    np.testing.assert_array_equal(backend.to_numpy(norm.running_mean), before)


def test_a_layer_used_often_in_one_forward_counts_once(backend, rng):
    shared = nn.Tanh()
    net = nn.Sequential(*[shared] * 80)
    x = dense(rng, backend, 2, 3)
    for mode in (True, False):
        net.train(mode)
        net.backward(net(x))
    deep = nn.Sequential(*[nn.Sequential(shared, nn.Linear(3, 3)) for _ in range(70)])
    deep.backward(deep(x))
    assert kept_by(deep) == 0


def test_backwards_in_between_count_back(backend, rng, model):
    x = dense(rng, backend, 2, 4)
    y = model(x)
    for _ in range(200):
        model(x)
        model.backward(y)
    assert len(model._forwards) == 1


def test_layers_called_one_by_one_count_each_for_itself(backend, rng):
    layers = [nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)]
    x = dense(rng, backend, 2, 4)
    for _ in range(100):
        y = x
        for layer in layers:
            y = layer(y)
        for layer in reversed(layers):
            y = layer.backward(y)
    assert not any(kept_by(layer) for layer in layers)


def test_what_a_backward_leaves_out_does_not_pile_up(backend, rng):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aside = nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x):
            self.aside(x)
            return self.body(x)

        def backward(self, dy):
            return self.body.backward(dy)

    model, x = Aside(), dense(rng, backend, 2, 4)
    for _ in range(100):
        model.backward(model(x))
    assert kept_by(model) == 0


@given(st.lists(st.sampled_from(["forward", "evaluation", "no_grad", "backward", "refused", "forget"]), max_size=40))
def test_a_stack_is_a_stack(actions):
    """Against a list: what each backward gives, whatever came before it."""
    net = nn.Sequential(nn.Tanh(), nn.Linear(3, 3), nn.Sequential(nn.Sigmoid(), Swish()))
    waiting = []
    rng = np.random.default_rng(0)
    for action in actions:
        x = rng.normal(size=(2, 3)).astype("float32")
        net.train(action != "evaluation")
        if action in ("forward", "evaluation"):
            net(x)
            waiting = [*waiting, x] if action == "forward" else [x]
        elif action == "no_grad":
            with nn.no_grad():
                net(x)
        elif action == "refused":
            with pytest.raises(ShapeError):
                net(x[:, :2])
            if waiting:
                with pytest.raises(ShapeError):
                    net.backward(x[:1])
        elif action == "forget":
            net.forget()
            waiting = []
        elif not waiting:
            with pytest.raises(StateError):
                net.backward(x)
        else:
            dx = net.backward(x)
            oracle = copy.deepcopy(net)
            oracle(waiting.pop())
            np.testing.assert_array_equal(dx, oracle.backward(x))
    assert len([forward for forward in net._forwards if forward.waits]) == len(waiting)


LOOPS = {
    "evaluation": lambda net, x: net.eval()(x),
    "no_grad": lambda net, x: _without_gradients(net.train(), x),
    "pairs": lambda net, x: net.train().backward(net(x)),
    "pairs without dx": lambda net, x: net.train().backward(net(x), input_gradient=False),
    "refused": lambda net, x: _refused(net.train(), x),
}


def _without_gradients(net, x):
    with nn.no_grad():
        net(x)


def _refused(net, x):
    with pytest.raises(ShapeError):
        net(x[:, :1])


@pytest.mark.parametrize("loop", LOOPS)
def test_memory_is_flat(rng, loop):
    net = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 8), Swish())
    x = np.ones((2, 2, 2, 2), "float32")
    for _ in range(300):  # plans are made by then
        LOOPS[loop](net, x)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(500):  # and laid over the memory that comes again and again
            LOOPS[loop](net, x)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2000):
            LOOPS[loop](net, x)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000, "ten bytes a call"


def test_a_model_that_is_dropped_goes_at_once(rng):
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Softmax())
    gc.collect()
    gc.disable()
    try:
        net(np.ones((2, 4), "float32"))
        inside = weakref.ref(net[0])
        del net
        assert inside() is None
    finally:
        gc.enable()


# --- a batch that is refused ------------------------------------------------------------------------------------------


def test_a_refused_batch_leaves_no_caches_and_moves_nothing(backend, rng):
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(),
        nn.BatchNorm1d(12), nn.Linear(12, 2),
    )  # fmt: skip
    good, bad = dense(rng, backend, 3, 2, 4, 4), dense(rng, backend, 3, 2, 5, 5)
    y = net(good)
    before = [backend.to_numpy(array).copy() for _, array in net.named_buffers()]
    kept = kept_by(net)
    for context in (nn.no_grad, lambda: warnings.catch_warnings()):
        with context(), pytest.raises(ShapeError):
            net(bad)
    assert kept_by(net) == kept
    for array, value in zip((array for _, array in net.named_buffers()), before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), value)
    net.backward(y)


def test_a_refused_part_that_a_layer_catches_is_undone(backend, rng):
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(3, 2))
            self.second = nn.Linear(4, 2)

        def forward(self, x):
            try:
                return self.first(x)
            except ShapeError:
                return self.second(x)

        def backward(self, dy):
            return self.second.backward(dy)

    model, x = Either(), dense(rng, backend, 5, 4)
    y = model(x)
    assert not backend.to_numpy(model.first[0].running_mean).any()
    assert kept_by(model) == 1
    model.backward(y)


# --- a gradient that is refused ---------------------------------------------------------------------------------------

NETS = {
    "swish last": lambda: nn.Sequential(nn.Linear(4, 3), Swish()),
    "nested": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Sequential(nn.Linear(4, 3), Swish()))),
    "in a residual block": lambda: nn.Sequential(nn.Linear(4, 3), nn.Residual(nn.Sequential(nn.Linear(3, 3), Swish()))),
    "chain last": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()),
    "residual chain last": lambda: nn.Sequential(
        nn.Linear(4, 3), nn.Residual(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))), nn.ReLU()
    ),
    "branches": lambda: nn.Sequential(nn.Linear(4, 4), Branches()),
    "flaky last": lambda: nn.Sequential(nn.Linear(4, 3), nn.Sequential(Failing(0))),
}


@pytest.mark.parametrize("name", [name for name in NETS if name != "flaky last"])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_a_refused_gradient_consumes_nothing_anywhere(backend, rng, name, input_gradient):
    net = NETS[name]()
    x, dy = dense(rng, backend, 5, 4), dense(rng, backend, 5, 3)
    net(x)
    expected = net.backward(dy)
    wanted = gradients(net)
    net.zero_grad()
    net(x)
    kept = kept_by(net)
    for _ in range(3):
        with pytest.raises(ShapeError):
            net.backward(dy[:3], input_gradient=input_gradient)
    assert kept_by(net) == kept
    assert_close(net.backward(dy), expected)
    for mine, other in zip(gradients(net), wanted, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_any_error_gives_the_cache_back(backend, rng):
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(Failing()))
    x = dense(rng, backend, 5, 4)
    y = net(x)
    with pytest.raises(ArithmeticError):
        net.backward(y)
    assert_close(net.backward(y), net[0](x) @ net[0].weight.data)


def test_an_error_half_way_drops_the_rest(backend, rng):
    """What later layers have used up is gone: an older forward's caches must not take its place."""
    net = nn.Sequential(nn.Softmax(), Failing(), nn.Linear(3, 3))
    x, other = dense(rng, backend, 5, 3), dense(rng, backend, 5, 3)
    net(other)
    y = net(x)
    with pytest.raises(ArithmeticError):
        net.backward(y)
    twin_of_first = nn.Sequential(net[0], nn.Sequential(), net[2])
    dx = net.backward(y)
    twin_of_first(other)
    assert_close(twin_of_first.backward(y), dx)
    with pytest.raises(StateError):
        net.backward(y)


def test_a_backward_of_a_mixin_is_guarded_too(backend, rng):
    class Half:
        def backward(self, dy):
            self.take()
            raise ArithmeticError

    class Layer(Half, nn.Module):
        def forward(self, x):
            self.keep(x)
            return x

    layer = Layer()
    y = layer(dense(rng, backend, 2, 2))
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            layer.backward(y)
    assert kept_by(layer) == 1


# --- what changes in between ------------------------------------------------------------------------------------------


def _load(net):
    net.load_state_dict({name: net.backend.copy(array) for name, array in net.state_dict().items()})


def _assign(net):
    parameter = net.parameters()[0]
    parameter.data = net.backend.copy(parameter.data)


def _replace(net):
    net[0].weight = nn.Parameter(net.backend.copy(net[0].weight.data), "weight")


def _step(net):
    optim.SGD(net.parameters(), 0.1).step()


CHANGES = {
    "step": (_step, r"SGD\.step"),
    "load_state_dict": (_load, "load_state_dict"),
    ".data": (_assign, r"an assignment to \.data"),
    "in place": (lambda net: setattr(net[0].weight, "data", net[0].weight.data.__iadd__(1)), r"assignment to \.data"),
    "a new parameter": (_replace, "a new Parameter in its place"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(4, 3)),
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Residual(nn.Sequential(nn.Tanh(), nn.BatchNorm1d(3))), nn.ReLU()),
    ],
    ids=["linear", "chain", "residual"],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_parameter_that_the_library_changes_is_named(backend, rng, change, make, training):
    do, by = CHANGES[change]
    net, x = make().train(training), dense(rng, backend, 5, 4)
    y = net(x)
    if not training:
        y = net(x)  # which has kept x alone
    do(net)
    with pytest.raises(StateError, match=rf"expected the parameters that its forward read, got '.*' changed .* {by}"):
        net.backward(y)
    net.forget()
    net.backward(net(x))


def test_moving_a_model_ends_what_its_forwards_kept(backend, rng):
    net = nn.Sequential(nn.Linear(4, 3))
    y = net(dense(rng, backend, 5, 4))
    net.to(dtype="float64")
    with pytest.raises(StateError):
        net.backward(y)


def test_other_models_may_change(backend, rng):
    """A discriminator is trained between forward and backward of a generator."""
    net, other, x = nn.Linear(4, 3), nn.Linear(4, 3), dense(rng, backend, 5, 4)
    update = optim.SGD(other.parameters(), 0.1)
    y = net(x)
    other.backward(other(x))
    update.step()
    net.backward(y)


def test_an_optimiser_that_is_made_in_between_changes_no_value(backend, rng):
    net, x = nn.Linear(4, 3), dense(rng, backend, 5, 4)
    y = net(x)
    expected = net.backward(y)
    net(x)
    optim.SGD(net.parameters(), 0.1, momentum=0.9)
    assert_close(net.backward(y), expected, tolerance=0.0)


@pytest.mark.parametrize("write", ["x", "weight", "y"])
def test_writes_of_the_user_are_found_on_demand(backend, rng, monkeypatch, write):
    monkeypatch.setattr(caches, "checks_writes", True)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    x = backend.asarray(np.ascontiguousarray(values(rng, (4, 5), "float32"))).T  # batch-last: nothing is copied
    y = net(x)
    net.backward(y)
    net(x)
    net.backward(y)
    y = net(x)
    {"x": x, "weight": net[0].weight.data, "y": y}[write][...] += 1
    name = {"x": "cache.x", "weight": r"cache.weight|weight", "y": "cache"}[write]
    with pytest.raises(StateError, match=rf"\w+.backward: expected the arrays .*, got '.*({name}).*' written"):
        net.backward(y)


@pytest.mark.parametrize("name", LAYERS)
def test_that_check_finds_nothing_where_nobody_writes(backend, rng, monkeypatch, name):
    """Several forwards on the stack, batch norm and dropout moving, and operations that are replayed."""
    monkeypatch.setattr(caches, "checks_writes", True)
    layer, x = make(name, rng, "float32")
    x = backend.asarray(x)
    for _ in range(8):
        y = layer(x)
        if layer.training:
            layer(x)
            layer.backward(y)
        layer.backward(y)


def test_the_switch_of_that_check():
    program = (
        "import numpy as np\nfrom xpcnn import nn\nlayer = nn.Tanh()\ny = layer(np.ones((1, 2), 'float32'))\n"
        "y[...] = 0\nprint(layer.backward(y))"
    )
    for value, fails in (("1", True), ("0", False), ("", False)):
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"XPCNN_CHECK": value}, capture_output=True, text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))), check=False,
        )  # fmt: skip
        assert ("StateError: Tanh.backward" in done.stderr) == fails, done.stderr
