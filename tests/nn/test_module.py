import copy
import threading

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.backend import use_backend
from xpcnn.errors import BackendError, ConfigError, DTypeError, ShapeError, StateError
from xpcnn.testing import assert_close, gradcheck

from .layers import kept_by


def network():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Residual(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Tanh())),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(48, 4),
    )


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.body.0.weight", "6.weight", "6.bias"]


class Scale(nn.Module):
    """A layer of a user: y = a x, with one parameter and one buffer that counts calls."""

    def __init__(self, backend):
        super().__init__()
        self.a = nn.Parameter(backend.asarray(np.array([2.0], "float32")))
        self.register_buffer("calls", backend.zeros((1,), "int64"))

    def forward(self, x):
        self.keep(x)
        self.calls += 1
        return x * self.a.data

    def backward(self, dy):
        x = self.take()
        self.a.accumulate((dy * x).sum().reshape(1))
        return dy * self.a.data


class TestParametersAndBuffers:
    def test_names_are_paths_in_the_order_of_the_layers(self, backend):
        net = network()
        net[5].register_buffer("drawn", backend.zeros((1,), "uint32"), persistent=False)
        assert [name for name, _ in net.named_parameters()] == NAMES
        assert [parameter.name for parameter in net.parameters()] == NAMES
        assert [name for name, _ in net.named_buffers()] == ["1.running_mean", "1.running_var", "5.drawn"]
        assert list(net.state_dict()) == [*NAMES, "1.running_mean", "1.running_var"]

    def test_modules(self, backend):
        net = network()
        names = [name for name, _ in net.named_modules()]
        assert names == ["", "0", "1", "2", "3", "3.body", "3.body.0", "3.body.1", "4", "5", "6"]
        assert [type(module).__name__ for module in net.modules()][:2] == ["Sequential", "Conv2d"]

    def test_one_module_by_its_path(self, backend):
        net = network()
        for path, module in net.named_modules():
            assert net.get_submodule(path) is module
        with pytest.raises(ConfigError, match=r"target: expected one of 0, 1, 2, 3, 3.body, .*, 6, got '3.tail'"):
            net.get_submodule("3.tail")
        with pytest.raises(ConfigError, match="target: expected none in a lone ReLU, got '0'"):
            nn.ReLU().get_submodule("0")

    def test_a_shared_layer_counts_once(self, backend):
        shared = nn.Linear(4, 4)
        net = nn.Sequential(shared, nn.ReLU(), shared)
        assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
        assert sum(parameter.size for parameter in net.parameters()) == 20

    def test_modules_in_a_list_are_found(self, backend):
        class Stack(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = [nn.Linear(3, 3), nn.Linear(3, 2)]

        assert [name for name, _ in Stack().named_parameters()] == [
            "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias",
        ]  # fmt: skip

    def test_gradients_add_up_until_zero_grad(self, backend, rng):
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        x = backend.asarray(values(rng, (2, 2, 4, 4), "float32"))
        dy = backend.asarray(values(rng, (2, 2), "float32"))
        assert all(np.all(backend.to_numpy(parameter.grad) == 0) for parameter in net.parameters())
        net(x)
        net.backward(dy)
        once = [backend.copy(parameter.grad) for parameter in net.parameters()]
        assert all(np.any(backend.to_numpy(gradient)) for gradient in once)
        net(x)
        net.backward(dy, input_gradient=False)
        for parameter, gradient in zip(net.parameters(), once, strict=True):
            assert_close(parameter.grad, gradient * 2)
        net.zero_grad()
        assert all(np.all(backend.to_numpy(parameter.grad) == 0) for parameter in net.parameters())

    def test_a_module_that_lacks_a_half_says_which(self, backend):
        with pytest.raises(NotImplementedError, match=r"Module needs a forward\(x\)"):
            nn.Module()(backend.zeros((1, 1), "float32"))
        with pytest.raises(NotImplementedError, match=r"Module needs a backward\(dy\)"):
            nn.Module().backward(backend.zeros((1, 1), "float32"))


class TestModes:
    def test_train_and_eval_reach_every_module(self, backend):
        net = network()
        assert all(module.training for module in net.modules())
        assert net.eval() is net
        assert not any(module.training for module in net.modules())
        assert net.train() is net
        assert all(module.training for module in net.modules())

    def test_they_change_batch_norm_and_dropout_only(self, backend, rng):
        x = backend.asarray(values(rng, (3, 2, 6, 6), "float32"))
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
        trained = net.train()(x)
        assert_close(net.eval()(x), trained, tolerance=0.0)
        with_both = network()
        assert not np.array_equal(backend.to_numpy(with_both.train()(x)), backend.to_numpy(with_both.eval()(x)))

    def test_evaluation_still_keeps_caches(self, backend, rng):
        net = network().eval()
        y = net(backend.asarray(values(rng, (3, 2, 6, 6), "float32")))
        assert net.backward(y).shape == (3, 2, 6, 6)

    def test_no_grad_is_of_one_thread_and_nests(self, backend, rng):
        layer = nn.Tanh()
        x = backend.asarray(values(rng, (2, 3), "float32"))
        kept = []
        inside = threading.Event()

        def elsewhere():
            inside.wait(30)
            layer(x)
            kept.append(kept_by(layer))

        thread = threading.Thread(target=elsewhere)
        thread.start()  # a free-threaded Python's begins with a copy of its maker's context
        with nn.no_grad():
            with nn.no_grad():
                layer(x)
            layer(x)
            assert not kept_by(layer)
            inside.set()
            thread.join()
        assert kept == [1]
        layer(x)
        assert kept_by(layer) == 2

    def test_no_grad_ends_with_an_error_inside(self, backend):
        layer = nn.Tanh()
        with pytest.raises(ZeroDivisionError), nn.no_grad():
            raise ZeroDivisionError
        layer.backward(layer(backend.zeros((1, 1), "float32")))

    def test_no_grad_leaves_no_array_anywhere(self, backend, rng):
        net = network()
        with nn.no_grad():
            net(backend.asarray(values(rng, (3, 2, 6, 6), "float32")))
        assert not kept_by(net)

    def test_forget_drops_what_forwards_kept(self, backend, rng):
        net = network()
        for _ in range(2):
            net(backend.asarray(values(rng, (3, 2, 6, 6), "float32")))
        net.forget()
        assert not kept_by(net)


class TestState:
    def test_goes_from_one_model_to_another(self, backend, rng):
        first, second = network(), network()
        x = backend.asarray(values(rng, (3, 2, 6, 6), "float32"))
        first(x)  # moves the running statistics
        second.load_state_dict(first.state_dict())
        assert_close(second.eval()(x), first.eval()(x), tolerance=0.0)

    def test_is_copied_in_place(self, backend):
        net = network()
        before = net.state_dict()
        net.load_state_dict({name: backend.copy(array) + 1 for name, array in before.items()})
        after = net.state_dict()
        assert all(after[name] is before[name] for name in before)
        assert not any(array is net.state_dict()[name] for name, array in network().state_dict().items())

    def test_may_lie_on_the_host_or_another_backend(self, backend):
        other = "fake" if backend.name == "numpy" else "numpy"
        with use_backend(other):
            source = network()
        net = network()
        net.load_state_dict(source.state_dict())
        elsewhere = source.backend
        for name, array in net.state_dict().items():
            assert backend.owns(array)
            assert np.array_equal(backend.to_numpy(array), elsewhere.to_numpy(source.state_dict()[name]))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda state: state.pop("0.weight"), StateError, r"missing \['0.weight'\], unknown none"),
            (lambda state: state.update(more=state["0.bias"]), StateError, r"missing none, unknown \['more'\]"),
            (
                lambda state: state.update({f"a{i}": state["0.bias"] for i in range(20)}),
                StateError,
                r"'a14', 'a15' and 12 more\]; was .*guide exchange",
            ),
            (
                lambda state: state.update({"6.bias": state["6.weight"]}),
                ShapeError,
                r"6.bias: expected shape \(4,\), got \(4, 48\)",
            ),
            (
                lambda state: state.update({"6.bias": state["6.bias"].astype("float64")}),
                DTypeError,
                "6.bias: expected dtype float32, got float64",
            ),
            (
                lambda state: state.update({"6.bias": [0.0] * 4}),
                DTypeError,
                "6.bias: expected an array, got list",
            ),
        ],
    )
    def test_that_does_not_fit_changes_nothing(self, backend, change, error, message):
        net = network()
        before = {name: backend.to_numpy(array).copy() for name, array in net.state_dict().items()}
        state = {name: backend.copy(array) + 1 for name, array in net.state_dict().items()}
        change(state)
        with pytest.raises(error, match=message) as caught:
            net.load_state_dict(state)
        assert "\n" not in str(caught.value)
        for name, array in net.state_dict().items():
            assert np.array_equal(backend.to_numpy(array), before[name])


class TestTo:
    @pytest.mark.parametrize("target", ["numpy", "fake"])
    def test_moves_everything(self, backend, rng, target):
        net = network()
        x = values(rng, (3, 2, 6, 6), "float32")
        net.backward(net(backend.asarray(x)))
        state = {name: backend.to_numpy(array).copy() for name, array in net.state_dict().items()}
        gradients = [backend.to_numpy(parameter.grad).copy() for parameter in net.parameters()]
        assert net.to(target) is net
        with use_backend(target) as there:
            assert net.backend is there
            for name, array in net.state_dict().items():
                assert np.array_equal(there.to_numpy(array), state[name])
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                assert np.array_equal(there.to_numpy(parameter.grad), gradient)
            assert all(there.owns(array) for _, array in net.named_buffers())
            net.backward(net(there.asarray(x)))

    def test_what_is_not_there(self, backend):
        with pytest.raises(BackendError, match=r"name: expected one of numpy, .*, got 'numby'"):
            network().to("numby")

    def test_the_backend_of_a_model_is_where_its_arrays_are(self, backend):
        other = "fake" if backend.name == "numpy" else "numpy"
        net, empty = network(), nn.Sequential(nn.ReLU())
        with use_backend(other):
            assert net.backend is backend
            assert empty.backend.name == other


class TestALayerOfTheUser:
    def test_is_proved_by_gradcheck(self, backend, rng):
        report = gradcheck(Scale(backend), values(rng, (2, 3)))
        assert report, report
        assert [row.name for row in report.rows] == ["input x", "a"]

    def test_a_wrong_one_is_found(self, backend, rng):
        class Wrong(Scale):
            def backward(self, dy):
                return super().backward(dy) * 2

        assert not gradcheck(Wrong(backend), values(rng, (2, 3)))

    def test_takes_part_in_a_network(self, backend, rng):
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), Scale(backend), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2))
        report = gradcheck(net, values(rng, (2, 2, 6, 6)))
        assert report, report
        assert "2.a" in [name for name, _ in net.named_parameters()]
        assert "2.calls" in net.state_dict()

    def test_may_hold_others_and_call_them_in_any_order(self, backend, rng):
        class Branches(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

            def forward(self, x):
                return self.left(x) + self.right(x)

            def backward(self, dy):
                return self.left.backward(dy) + self.right.backward(dy)

        report = gradcheck(nn.Sequential(Branches(), nn.GELU()), values(rng, (5, 4)))
        assert report, report


def test_summary(backend, rng):
    net = network()
    lines = net.summary((2, 6, 6)).splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "multiply-adds"]
    assert lines[1].split() == ["0", "Conv2d", "3x4x4", "57", "864"]
    assert lines[-1].split() == ["total", "268", "1,200"]
    assert len({len(line) for line in lines}) == 1
    assert all(module.training for module in net.modules())
    assert not kept_by(net)


def test_summary_of_what_does_not_fit(backend):
    net = network()
    with pytest.raises(ShapeError, match="x: expected 2 channels"):
        net.summary((1, 6, 6))
    assert all(module.training for module in net.modules())


def test_a_copy_is_a_model_of_its_own(backend, rng):
    net = network().eval()
    x = backend.asarray(values(rng, (3, 2, 6, 6), "float32"))
    twin = copy.deepcopy(net)
    y = net(x)
    twin.parameters()[0].data += 1
    assert_close(net(x), y, tolerance=0.0)
    assert not np.array_equal(backend.to_numpy(twin(x)), backend.to_numpy(y))


def test_what_ported_code_gives_is_taken(backend):
    x = backend.asarray(np.array([[-1.0, 2.0]], "float32"))
    for layer in (nn.ReLU(True), nn.ReLU(inplace=True), nn.LeakyReLU(0.0, True)):
        assert backend.to_numpy(layer(x)).tolist() == [[0, 2]]
        assert backend.to_numpy(x).tolist() == [[-1, 2]]
    assert nn.Dropout(0.3, inplace=True).p == 0.3
    images = backend.zeros((2, 3, 4, 5), "float32")
    assert nn.Flatten(1)(images).shape == nn.Flatten(start_dim=1, end_dim=-1)(images).shape == (2, 60)
    assert nn.GELU(approximate="none")(x).shape == (1, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sigmoid(3), r"^Sigmoid: expected no arguments, got 3; leave them out$"),
        (lambda: nn.Tanh(inplace=True), "^Tanh: expected no arguments, got inplace=True"),
        (lambda: nn.GlobalAvgPool2d(7), "^GlobalAvgPool2d: expected no arguments, got 7"),
        (lambda: nn.Flatten(2), "^start_dim, end_dim: expected 1 and -1, got 2 and -1"),
        (lambda: nn.Flatten(0, -1), "^start_dim, end_dim: expected"),
        (lambda: nn.GELU("tanh"), 'approximate: expected "none"'),
    ],
)
def test_arguments_that_a_layer_has_not_are_its_own_mistake(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
