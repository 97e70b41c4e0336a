"""Sequential runs neighbours that keep channels apart as one chain, and nobody can tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpcnn
from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.errors import ConfigError, DTypeError, ShapeError, StateError
from xpcnn.functional.addition import AddOp
from xpcnn.nn import fusion
from xpcnn.nn.contexts import trace
from xpcnn.testing import gradcheck


def one_by_one(layers, x, dy):
    """Return y and dx of layers called in turn, without a container."""
    for layer in layers:
        x = layer(x)
    y = x
    for layer in reversed(layers):
        dy = layer.backward(dy)
    return y, dy


LINKS = {
    "bn": lambda: nn.BatchNorm2d(3),
    "bn in evaluation": lambda: nn.BatchNorm2d(3).eval(),
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "max": lambda: nn.MaxPool2d(2, stride=1),
    "overlapping max": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "mean": lambda: nn.AvgPool2d(2, ceil_mode=True),
    "global": nn.GlobalAvgPool2d,
    "dropout": lambda: nn.Dropout(0.3),
}


def build(names):
    """Return new layers, each with parameters of its own but the same at every call."""
    rng = np.random.default_rng(len(names))
    layers = [LINKS[name]() for name in names]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data[...] = layer.backend.asarray(values(rng, parameter.shape, "float32"))
    return layers


@given(
    names=st.lists(st.sampled_from(list(LINKS)), min_size=1, max_size=6),
    batch=st.integers(2, 4),
    size=st.tuples(st.integers(6, 9), st.integers(6, 9)),
    slab_bytes=st.sampled_from([1, 1 << 20]),
    seed=st.integers(0, 1 << 16),
)
def test_a_chain_gives_the_bits_of_its_layers(backend, names, batch, size, slab_bytes, seed):
    rng = np.random.default_rng(seed)
    x = backend.asarray(np.round(values(rng, (batch, 3, *size), "float32"), 1))  # rounded, so that windows have ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "slab_bytes", slab_bytes)
        layers, chained = build(names), nn.Sequential(*build(names))
        try:
            xpcnn.manual_seed(seed)  # the same masks
            y = chained(x)
        except ShapeError:  # pooled away, or batch norm of one value
            return
        dy = backend.asarray(values(rng, y.shape, "float32"))
        xpcnn.manual_seed(seed)
        expected = one_by_one(layers, x, dy)
        dx = chained.backward(dy)
    for actual, wanted in zip((y, dx), expected, strict=True):
        assert np.array_equal(backend.to_numpy(actual), backend.to_numpy(wanted))
    for mine, theirs in zip(chained, layers, strict=True):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert np.array_equal(backend.to_numpy(one.grad), backend.to_numpy(other.grad))
        for (_, one), (_, other) in zip(mine.named_buffers(), theirs.named_buffers(), strict=True):
            assert np.array_equal(backend.to_numpy(one), backend.to_numpy(other))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d(2, stride=1)])
@pytest.mark.parametrize("window", ["negative", "ties", "zeros", "mixed", "nan", "infinite"])
def test_pooling_before_relu_is_exact(backend, rng, pool, window):
    x = np.round(values(rng, (4, 3, 7, 6), "float32") * 2)
    if window == "negative":
        x = -np.abs(x) - 1
    elif window == "ties":
        x = np.abs(x) // 2
    elif window == "zeros":
        x = np.minimum(x, 0)
    elif window == "nan":
        x[0, 0, 2, 2] = np.nan
    elif window == "infinite":
        x[0, 0, 2, 2], x[1, 1, 3, 3] = np.inf, -np.inf
    device = backend.asarray(x)
    net = nn.Sequential(nn.ReLU(), pool)
    y = net(device)
    dy = backend.asarray(values(rng, y.shape, "float32"))
    expected = one_by_one([nn.ReLU(), pool], device, dy)
    for actual, wanted in zip((y, net.backward(dy)), expected, strict=True):
        assert np.array_equal(backend.to_numpy(actual), backend.to_numpy(wanted), equal_nan=True)
        if window == "nan":  # y keeps it; what its gradient would be means nothing
            break


def test_a_layer_used_twice(backend, rng):
    shared, relu = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
    net = nn.Sequential(shared, relu, shared, nn.BatchNorm2d(2), relu, nn.MaxPool2d(2), relu, shared)
    report = gradcheck(net, values(rng, (2, 2, 6, 6)))
    assert report, report


def test_a_net_used_twice_keeps_a_stack(backend, rng):
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh())
    twice = nn.Sequential(net, nn.MaxPool2d(2), net)
    report = gradcheck(twice, values(rng, (2, 2, 6, 6)))
    assert report, report
    assert [name for name, _ in twice.named_parameters()] == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]


def test_a_subclass_with_a_forward_of_its_own_is_called(backend, rng):
    class Doubled(nn.ReLU):
        def forward(self, x):
            return super().forward(x) * 2

        def backward(self, dy):
            return super().backward(dy * 2)

    x = backend.asarray(values(rng, (2, 3), "float32"))
    net = nn.Sequential(nn.Tanh(), Doubled(), nn.Tanh())
    assert np.array_equal(backend.to_numpy(net(x)), backend.to_numpy(one_by_one(list(net), x, x)[0]))
    report = gradcheck(net, values(rng, (2, 3)))
    assert report, report


def test_layers_can_be_added_counted_and_looked_at(backend, rng):
    net = nn.Sequential(nn.Linear(4, 3))
    relu = nn.ReLU()
    assert net.append(relu) is net
    assert len(net) == 2
    assert net[1] is net[-1] is relu
    assert list(net)[1] is relu
    x = backend.asarray(values(rng, (5, 4), "float32"))
    assert backend.to_numpy(net(x)).min() == 0.0
    assert repr(net) == "Sequential(\n  (0): Linear(4, 3)\n  (1): ReLU()\n)"


def test_only_layers_are_taken(backend):
    for wrong in (nn.ReLU, [nn.ReLU()], None):
        with pytest.raises(ConfigError, match=r"expected instances of xpcnn.nn.Module, got"):
            nn.Sequential(wrong)
    with pytest.raises(ConfigError, match=r"expected instances of xpcnn.nn.Module, got"):
        nn.Sequential().append(nn.ReLU)


def test_layers_are_not_exchanged_behind_its_back(backend):
    net = nn.Sequential(nn.Tanh(), nn.ReLU())
    with pytest.raises(TypeError):
        net.layers[1] = nn.Sigmoid()
    with pytest.raises(AttributeError):
        net.layers = [nn.Sigmoid()]


def test_an_empty_one_is_the_identity(backend):
    x = backend.zeros((2, 3), "float32")
    net = nn.Sequential()
    assert net(x).shape == (2, 3)
    assert net.backward(x).shape == (2, 3)
    assert net(x) is not None
    assert net.backward(x, input_gradient=False) is None


def test_traced_calls_go_layer_by_layer_and_back(backend, rng):
    net = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
    x = backend.asarray(values(rng, (2, 2, 4, 4), "float32"))
    with trace() as calls:
        y = net(x)
    assert [type(module).__name__ for module, _, _ in calls] == ["BatchNorm2d", "ReLU", "MaxPool2d", "Sequential"]
    traced = net.backward(y)
    net(x)
    assert np.array_equal(backend.to_numpy(net.backward(y)), backend.to_numpy(traced))


def test_a_batch_that_does_not_fit_leaves_a_working_net(backend, rng):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    x, dy = (backend.asarray(values(rng, shape, "float32")) for shape in ((2, 2, 4, 4), (2, 2)))
    net(x)
    expected = net.backward(dy)
    with pytest.raises(ShapeError, match=r"x: expected 12 features .*, got 27"):
        net(backend.zeros((2, 2, 5, 5), "float32"))
    with pytest.raises(StateError):
        net.backward(dy)
    net(x)
    assert np.array_equal(backend.to_numpy(net.backward(dy)), backend.to_numpy(expected))


@pytest.mark.parametrize(
    ("net", "shape", "error", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3), (1, 2, 5, 5), ShapeError, "x: expected 3 channels .*, got 2 in shape"),
        (lambda: nn.Conv2d(3, 4, 3), (3, 5, 5), ShapeError, r"x: expected shape \(N, C, H, W\), got \(3, 5, 5\)"),
        (lambda: nn.Conv2d(3, 4, 5), (1, 3, 4, 6), ShapeError,
         "kernel_size: expected a window of at most the padded height 4, got 5"),
        (lambda: nn.Conv2d(3, 4, (3, 5), padding=1), (1, 3, 6, 2), ShapeError,
         "kernel_size: expected a window of at most the padded width 4, got 5"),
        (lambda: nn.MaxPool2d(5), (1, 3, 4, 6), ShapeError,
         "kernel_size: expected a window of at most the padded height 4, got 5"),
        (lambda: nn.Linear(3, 4), (2, 5), ShapeError, "x: expected 3 features .*, got 5 in shape"),
        (lambda: nn.Linear(3, 4), (2, 3, 1, 1), ShapeError, r"x: expected shape \(N, in_features\), got"),
        (lambda: nn.BatchNorm2d(4), (2, 3, 5, 5), ShapeError, r"x: expected 4 channels, got 3 in shape \(2, 3, 5, 5\)"),
        (lambda: nn.BatchNorm2d(4), (2, 4), ShapeError, r"x: expected shape \(N, C, H, W\), got \(2, 4\)"),
        (lambda: nn.BatchNorm1d(4), (2, 4, 3, 3), ShapeError, r"x: expected shape \(N, C\), got \(2, 4, 3, 3\)"),
        (lambda: nn.GlobalAvgPool2d(), (2, 4), ShapeError, r"x: expected shape \(N, C, H, W\), got \(2, 4\)"),
        (lambda: nn.Flatten(), (2, 3, 4), ShapeError, r"x: expected shape \(N, C, H, W\) or \(N, D\), got \(2, 3, 4\)"),
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()), (2, 3, 5, 5), ShapeError,
         "expected 4 channels"),
        (lambda: nn.Residual(nn.Conv2d(2, 3, 3)), (2, 2, 5, 5), ShapeError,
         r"shortcut: expected the body's shape \(2, 3, 3, 3\), got \(2, 2, 5, 5\); give a shortcut"),
    ],
)  # fmt: skip
def test_input_that_does_not_fit(backend, net, shape, error, message):
    with pytest.raises(error, match=message) as caught:
        net()(backend.zeros(shape, "float32"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "net", [lambda: nn.Conv2d(3, 4, 3), lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), lambda: nn.BatchNorm2d(3)]
)
def test_float64_into_a_float32_model(backend, net):
    with pytest.raises(DTypeError, match=r"expected .*, got .*; convert one of them"):
        net()(backend.zeros((2, 3, 5, 5), "float64"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.Conv2d(4, 6, 3, groups=4),
            ShapeError,
            "groups: expected a divisor of in_channels and out_channels",
        ),
        (lambda: nn.Conv2d(0, 6, 3), ShapeError, "in_channels: expected 1 or more, got 0"),
        (lambda: nn.Conv2d(4, 6, 0), ShapeError, "kernel_size: expected 1 or more, got 0"),
        (lambda: nn.Conv2d(4, 6, 3.5), DTypeError, "kernel_size: expected integers, got 3.5"),
        (lambda: nn.Conv2d(4, 6, 3, dtype="int32"), DTypeError, "dtype: expected a floating type such as float32"),
        (lambda: nn.Linear(0, 6), ShapeError, "in_features: expected 1 or more, got 0"),
        (lambda: nn.BatchNorm2d(0), ShapeError, "num_features: expected 1 or more, got 0"),
        (lambda: nn.Dropout(1.5), ConfigError, "p: expected the share dropped, from 0 to 1, got 1.5"),
        (lambda: nn.MaxPool2d(0), ShapeError, "kernel_size: expected 1 or more, got 0"),
        (lambda: nn.Conv2d(2.5, 6, 3), DTypeError, "in_channels: expected integers, got 2.5"),
        (lambda: nn.Linear("4", 6), DTypeError, "in_features: expected integers, got '4'"),
        (lambda: nn.Conv2d(4, 6, 3, stride=0), ShapeError, "stride: expected 1 or more, got 0"),
        (lambda: nn.Conv2d(4, 6, 3, padding="reflect"), ShapeError, 'padding: expected integers, "same" or "valid"'),
        (lambda: nn.MaxPool2d(2, stride=0), ShapeError, "stride: expected 1 or more, got 0"),
    ],
)
def test_arguments_that_do_not_fit(backend, make, error, message):
    with pytest.raises(error, match=message):
        make()


BODIES = {
    "conv": lambda: [nn.Conv2d(3, 3, 3, padding=1)],
    "conv, norm": lambda: [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)],
    "norm": lambda: [nn.BatchNorm2d(3)],
    "conv, norm, tanh, dropout": lambda: [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.2)],
    "nothing": list,
}
FOLLOWERS = {
    "relu": lambda: [nn.ReLU()],
    "relu, pool": lambda: [nn.ReLU(), nn.MaxPool2d(2)],
    "dropout, norm": lambda: [nn.Dropout(0.3), nn.BatchNorm2d(3)],
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("followers", FOLLOWERS)
@pytest.mark.parametrize("shortcut", [None, lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))])
@pytest.mark.parametrize("slab_bytes", [1, 1 << 20])
def test_a_residual_block_in_a_chain_gives_the_bits_of_its_layers(
    backend, rng, monkeypatch, body, followers, shortcut, slab_bytes
):
    monkeypatch.setattr(backend, "slab_bytes", slab_bytes)

    def build():
        xpcnn.manual_seed(1)
        block = nn.Residual(nn.Sequential(*BODIES[body]()), None if shortcut is None else shortcut())
        return nn.Sequential(nn.Conv2d(3, 3, 1), block, *FOLLOWERS[followers](), nn.Flatten())

    chained, apart = build(), build()
    x = [backend.asarray(values(rng, (4, 3, 6, 6), "float32")) for _ in range(2)]
    xpcnn.manual_seed(2)  # the same masks
    with trace():
        wanted = [apart(each) for each in x]
    sums = []
    monkeypatch.setattr(fusion, "AddOp", lambda other: sums.append(other) or AddOp(other))
    xpcnn.manual_seed(2)
    got = [chained(each) for each in x]
    assert len(sums) == (0 if body in ("conv", "nothing") else 2)
    dy = backend.asarray(values(rng, got[0].shape, "float32"))
    wanted += [apart.backward(dy), apart.backward(dy)]  # the last forward's first
    with pytest.raises(ShapeError):
        chained.backward(dy[:1])
    got += [chained.backward(dy), chained.backward(dy)]
    wanted += [p.grad for p in apart.parameters()] + [b for _, b in apart.named_buffers()]
    got += [p.grad for p in chained.parameters()] + [b for _, b in chained.named_buffers()]
    for mine, theirs in zip(got, wanted, strict=True):
        assert np.array_equal(backend.to_numpy(mine), backend.to_numpy(theirs))
    chained(x[0])
    chained.forget()
    with pytest.raises(StateError):
        chained.backward(dy)


def test_a_residual_block_in_a_chain_sees_layers_added_later(backend, rng):
    body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    net = nn.Sequential(nn.Residual(body), nn.ReLU())
    x = backend.asarray(values(rng, (4, 3, 5, 5), "float32"))
    before = net(x)
    body.append(nn.Tanh())
    after = net(x)
    assert not np.array_equal(backend.to_numpy(before), backend.to_numpy(after))
    with nn.no_grad():
        assert np.array_equal(backend.to_numpy(after), np.maximum(backend.to_numpy(body(x) + x), 0))
    for _ in range(2):
        net.backward(backend.asarray(values(rng, after.shape, "float32")))


def test_a_residual_block_in_a_chain_calls_a_body_with_a_forward_of_its_own(backend, rng):
    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    net = nn.Sequential(nn.Residual(Doubled(nn.Conv2d(3, 3, 1), nn.Tanh())), nn.ReLU())
    x = backend.asarray(values(rng, (4, 3, 5, 5), "float32"))
    got = net(x)
    with trace():
        wanted = net(x)
    assert np.array_equal(backend.to_numpy(got), backend.to_numpy(wanted))


def test_a_residual_block_in_a_chain_names_a_shortcut_that_does_not_fit(backend, rng):
    net = nn.Sequential(nn.Residual(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), nn.ReLU())
    with pytest.raises(ShapeError, match=r"shortcut: expected the body's shape \(2, 4, 5, 5\), got \(2, 3, 5, 5\)"):
        net(backend.asarray(values(rng, (2, 3, 5, 5), "float32")))
