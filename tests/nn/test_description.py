"""Every layer is described by its constructor's arguments, and made again from them; nothing else can be."""

import inspect
import json

import numpy as np
import pytest

import xpcnn
from xpcnn import models, nn, random
from xpcnn.errors import ConfigError, DataError, XpcnnError
from xpcnn.nn.description import UNTOLD, build, describe, ours

REQUIRED = {
    "in_channels": 4, "out_channels": 6, "in_features": 4, "out_features": 5, "num_features": 4, "kernel_size": 3,
    "num_channels": 4, "num_groups": 2, "normalized_shape": (4,), "output_size": 2, "scale_factor": 2,
}  # fmt: skip
OTHER = {"padding": 1, "groups": 2, "stride": 2, "kernel_size": (3, 1), "momentum": 0.25, "p": 0.25, "dim": 1}


def kinds(model):
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in model.state_dict().items()}


def again(model, layers=()):
    """Return the model that the json of its description gives."""
    return build(json.loads(json.dumps(describe(model))), kinds(model), layers)


def parameters(cls):
    if cls.__init__ is nn.Module.__init__:
        return {}
    return {name: each for name, each in inspect.signature(cls).parameters.items() if name not in UNTOLD}


def make(cls, **options):
    given, rest = dict(options), []
    for name, parameter in parameters(cls).items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = [nn.Conv2d(4, 4, 3), nn.ReLU()]
        elif name == "body":
            given[name] = nn.Conv2d(4, 4, 1)
        elif parameter.default is parameter.empty or (cls is nn.Upsample and name == "scale_factor"):
            assert name in REQUIRED, f"say in REQUIRED of {__file__} what {name} of {cls.__name__} may be"
            given.setdefault(name, REQUIRED[name])
    return cls(*rest, **given)


def others(name, default):
    """Return values that an argument may have besides its default."""
    if name in OTHER:
        return [OTHER[name]]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, (int, float)):
        return [default * 2 + 1, default / 2]
    return [2, "same", nn.Conv2d(4, 4, 1)]


def check(made):
    found = again(made)
    assert type(found) is type(made)
    assert repr(found) == repr(made)
    assert describe(found) == describe(made)
    assert kinds(found) == kinds(made)


@pytest.mark.parametrize("cls", ours().values(), ids=ours())
def test_a_layer_is_what_its_description_says(cls):
    made = make(cls)
    for name, parameter in parameters(cls).items():
        assert hasattr(made, name), f"keep {name} as an attribute of that name"
        if parameter.default is not parameter.empty and not isinstance(getattr(made, name), nn.Parameter):
            assert describe(made)["arguments"][name] is not ...
    check(made)
    for name, parameter in parameters(cls).items():
        for other in others(name, parameter.default):
            try:
                varied = make(cls, **{name: other})
            except (XpcnnError, TypeError):  # not for this layer
                continue
            check(varied)
            if name in OTHER or isinstance(parameter.default, bool):
                assert describe(varied)["arguments"][name] == json.loads(json.dumps(other))


@pytest.mark.parametrize("name", models.names())
def test_the_networks(name):
    model = models.create(name)
    check(model)
    for dtype in ("float16", "float64"):
        found = again(model.to(dtype=dtype))
        assert kinds(found) == kinds(model)


def test_values_are_zeros_and_nothing_is_drawn():
    model = models.create("lenet5")
    described, before = describe(model), random.get_state()
    made = build(described, kinds(model))
    assert random.get_state() == before
    assert not any(np.any(np.asarray(parameter)) for parameter in made.parameters())


def test_scalars_of_numpy_and_pairs():
    made = nn.Sequential(nn.Conv2d(np.int64(2), 4, (np.int32(3), 1), padding=((1, 0), (np.int8(2), 0))))
    assert again(made)[0].padding == ((1, 0), (2, 0))
    assert kinds(again(made)) == kinds(made)


def test_a_layer_that_is_there_twice_is_one_again():
    shared = nn.Conv2d(2, 2, 1)
    model = nn.Sequential(shared, nn.ReLU(), nn.Residual(nn.Sequential(shared, nn.Tanh())), shared)
    found = again(model)
    assert found[0] is found[3] is found[2].body[0]
    assert found[1] is not found[2]
    assert len(found.parameters()) == 2


class Swish(nn.Module):
    def __init__(self, beta=1.0, *, name="swish"):
        super().__init__()
        self.beta, self.name = beta, name


class Block(nn.Module):
    def __init__(self, channels, inner=None):
        super().__init__()
        self.channels, self.inner = channels, inner
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))


class Forgetful(nn.Module):
    def __init__(self, size):
        super().__init__()


class Holder(nn.Module):
    def __init__(self, things):
        super().__init__()
        self.things = things


def test_layers_of_ones_own():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Swish(0.5, name="s"), Block(4, Swish(3)), nn.ReLU())
    found = again(model, [Block, Swish])
    assert (found[1].beta, found[1].name, found[2].inner.beta, found[2].channels) == (0.5, "s", 3, 4)
    assert kinds(found) == kinds(model)
    with pytest.raises(
        DataError, match=r"layer '1' \(Swish\): Swish is not a class of xpcnn.nn; hand it over: layers="
    ):
        again(model)
    with pytest.raises(DataError, match=r"layer '2' \(Block\): Block is not a class"):
        again(model, [Swish])


def test_a_class_of_ones_own_does_not_pass_for_ours():
    class ReLU(nn.Module):
        pass

    model = nn.Sequential(ReLU())
    with pytest.raises(DataError, match=r"layer '0' \(ReLU\): ReLU is not a class of xpcnn.nn"):
        again(model)
    assert type(again(model, [ReLU])[0]) is ReLU


def test_what_cannot_be_described():
    with pytest.raises(ConfigError, match=r"layer '1' \(Forgetful\) to keep its constructor's argument 'size'.*self"):
        describe(nn.Sequential(nn.ReLU(), Forgetful(3)))
    for thing in (object(), {"a": 1}, float("nan"), len, [1, {2}]):
        with pytest.raises(ConfigError, match=r"arguments of Holder to be numbers, strings, modules, or lists of them"):
            describe(Holder(thing))
    check(nn.Sequential())
    graph = type("Network", (nn.Module,), {"__module__": "xpcnn.onnx.network"})
    with pytest.raises(ConfigError, match=r"layer '0' \(Network\) is a graph of an ONNX file, .*keep it as ONNX"):
        describe(nn.Sequential(graph()))
    deep = nn.Sequential()
    for _ in range(102):
        deep = nn.Sequential(deep)
    with pytest.raises(ConfigError, match="at most 100 deep"):
        describe(deep)


def test_layers_are_classes_of_different_names():
    for wrong in (Swish(), int, "Swish"):
        with pytest.raises(ConfigError, match=r"layers: expected subclasses of xpcnn.nn.Module, got"):
            build({}, {}, [wrong])
    with pytest.raises(ConfigError, match="two named Swish"):
        build({}, {}, [Swish, type("Swish", (nn.Module,), {})])


def conv(**arguments):
    return {"layer": "Conv2d", "arguments": {"in_channels": 1, "out_channels": 1, "kernel_size": 1, **arguments}}


def deep(levels):
    found = {"layer": "ReLU", "arguments": {}}
    for _ in range(levels):
        found = {"layer": "Sequential", "arguments": {"layers": [found]}}
    return found


def nested(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("description", "error"),
    [
        (None, "the network: expected a description of a layer, got None"),
        ([], r"the network: expected a description of a layer, got \[\]"),
        ({}, "the network: expected a description of a layer, got the keys"),
        ({"layer": "ReLU"}, "got the keys"),
        ({"layer": "ReLU", "arguments": []}, "got the keys"),
        ({"layer": "ReLU", "arguments": {}, "more": 1}, "got the keys"),
        ({"layer": "Module", "arguments": {}}, r"the network \(Module\): expected a class of xpcnn.nn, got 'Module'"),
        ({"layer": "init", "arguments": {}}, "expected a class of xpcnn.nn"),
        ({"layer": "Inference", "arguments": {}}, "expected a class of xpcnn.nn"),
        ({"layer": ["ReLU"], "arguments": {}}, "expected a class of xpcnn.nn"),
        ({"layer": None, "arguments": {}}, "expected a class of xpcnn.nn"),
        ({"custom": "os.system", "arguments": {}}, "os.system is not a class"),
        ({"custom": 3, "arguments": {}}, "3 is not a class"),
        ({"shared": 0}, "expected the number of a layer before it, got 0"),
        ({"shared": True}, "expected the number of a layer before it"),
        ({"layer": "Sequential", "arguments": {"layers": [{"shared": 0}]}}, "number of a layer before it, got 0"),
        ({"layer": "Sequential", "arguments": {"layers": 3}}, "expected a list as layers, got 3"),
        ({"layer": "Sequential", "arguments": {"layers": [3]}}, "expected instances of xpcnn.nn.Module, got 3"),
        ({"layer": "Sequential", "arguments": {"layers": [conv(x=1)]}}, r"layer '0' \(Conv2d\): .*arguments.* 'x'"),
        (conv(weight_init="eval"), "got 'weight_init'"),
        (conv(dtype="float64"), "got 'dtype'"),
        (conv(in_channels=1 << 40), "expected numbers that its parameters justify, got 1099511627776"),
        (conv(in_channels=-(1 << 99)), "expected numbers that its parameters justify"),
        (conv(in_channels=60_000, out_channels=60_000), r"'weight' of shape \(60000, 60000, 1, 1\), got shape \(1, 1"),
        (conv(kernel_size=0), "kernel_size: expected"),
        (conv(kernel_size="a"), "kernel_size"),
        (conv(groups=0), "groups"),
        (conv(stride=None), "the network"),
        (conv(stride=nested(150)), "deep"),
        (conv(padding={"layer": "ReLU", "arguments": {}}), "padding"),
        ({"layer": "Conv2d", "arguments": {}}, "missing"),
        ({"layer": "BatchNorm2d", "arguments": {"num_features": 65_000}}, r"shape \(65000,\), got shape \(1, 1"),
        ({"layer": "Residual", "arguments": {"body": 3}}, "body"),
        ({"layer": "Residual", "arguments": {"body": None}}, "body"),
        (deep(101), "at most 100 deep"),
    ],
)  # fmt: skip
def test_a_description_that_is_none(description, error):
    one = nn.Conv2d(1, 1, 1)
    with pytest.raises(DataError, match=error) as found:
        build(description, kinds(one))
    assert "\n" not in str(found.value)


def test_what_a_constructor_raises_is_told_in_one_line():
    class Angry(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size
            if size:
                raise OSError("two\nlines")

    with pytest.raises(DataError, match=r"^the network \(Angry\): two lines$"):
        build({"custom": "Angry", "arguments": {"size": 3}}, {}, [Angry])


def test_no_two_layers_take_one_array():
    two = {"layer": "Sequential", "arguments": {"layers": [conv(), conv()]}}
    with pytest.raises(DataError, match=r"layer '1' \(Conv2d\): expected parameters '1.weight' .*, got none"):
        build(two, kinds(nn.Sequential(nn.Conv2d(1, 1, 1))))


def test_on_the_active_backend(backend):
    made = again(models.create("lenet5"))
    assert made.backend is backend
    assert xpcnn.get_backend() is backend
