"""Exported files compute in onnxruntime what the model computes in evaluation mode; onnxruntime is the oracle."""

import inspect
import json
import sys

import numpy as np
import pytest

import xpcnn
from tests.nn.layers import LAYERS, make
from tests.onnx.conftest import randomise, relative, sizes_of
from xpcnn import models, nn
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError

onnx = pytest.importorskip("onnx")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
BOUND = 1e-5


def small():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)
    )


def test_every_layer_is_met_here():
    """A layer without an exporter fails in the next test; one without an example, here."""
    layers = {name for name in nn.__all__ if inspect.isclass(kind := getattr(nn, name)) and issubclass(kind, nn.Module)}
    assert {type(make_layer()).__name__ for make_layer, _ in LAYERS.values()} >= layers - {"Module"}


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, opset, tmp_path, run_file, rng):
    layer, x = make(name, rng, "float32")
    randomise(layer)
    xpcnn.onnx.export(layer, x.shape[1:], tmp_path / "a.onnx", opset=opset)
    layer.eval()
    for batch in (x, x[:1]):
        (y,) = run_file(tmp_path / "a.onnx", batch)
        assert relative(y, layer(batch)) < BOUND


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", models.names())
def test_every_network(name, fold, tmp_path, run_file, rng):
    model = randomise_norms(models.create(name))
    xpcnn.onnx.export(model, sizes_of(name, model), tmp_path / "a.onnx", fold=fold)
    x = rng.normal(size=(2, *sizes_of(name, model))).astype(np.float32)
    (y,) = run_file(tmp_path / "a.onnx", x)
    assert relative(y, model.eval()(x)) < BOUND
    operators = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    if fold and name in ("lenet5", "resnet20", "vgg8"):
        assert "BatchNormalization" not in operators


def randomise_norms(model):
    for module in model.modules():
        if hasattr(module, "running_var"):
            randomise(module)
    return model


@pytest.mark.parametrize("padding", [0, 1, ((0, 1), (2, 1)), "same"])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("counts", [False, True])
def test_windows_of_a_mean(padding, ceil_mode, counts, tmp_path, run_file, rng):
    layer = nn.AvgPool2d(3, stride=(2, 3), padding=padding, ceil_mode=ceil_mode, count_include_pad=counts)
    x = rng.normal(size=(2, 3, 8, 9)).astype(np.float32)
    xpcnn.onnx.export(layer, x.shape[1:], tmp_path / "a.onnx")
    assert relative(run_file(tmp_path / "a.onnx", x)[0], layer(x)) < BOUND


@pytest.mark.parametrize("padding", [0, 1, 2, ((0, 1), (2, 1)), "same"])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_windows_of_a_maximum(padding, ceil_mode, tmp_path, run_file, rng):
    layer = nn.MaxPool2d(2, stride=(2, 3), padding=padding, dilation=2, ceil_mode=ceil_mode)
    x = -np.abs(rng.normal(size=(2, 3, 8, 9))).astype(np.float32) - 1  # padding must never win
    xpcnn.onnx.export(layer, x.shape[1:], tmp_path / "a.onnx")
    assert relative(run_file(tmp_path / "a.onnx", x)[0], layer(x)) == 0


def test_float64(tmp_path, rng):
    """Of onnx itself, for onnxruntime has no convolution of float64 on a CPU."""
    model = randomise(small()).to(dtype="float64")
    xpcnn.onnx.export(model, (2, 6, 6), tmp_path / "a.onnx", fold=True)
    x = rng.normal(size=(3, 2, 6, 6))
    (y,) = ReferenceEvaluator(str(tmp_path / "a.onnx")).run(None, {"input": x})
    assert relative(y, model.eval()(x)) < 1e-13


def test_names_opset_and_metadata(tmp_path):
    model = small()
    xpcnn.onnx.export(
        model, (2, 6, 6), tmp_path / "a.onnx", classes=["cat", "dog", "ÿ"], transform={"mean": [0.5], "size": 6}
    )
    file = onnx.load(tmp_path / "a.onnx")
    assert file.opset_import[0].version == 21
    assert file.ir_version == 10
    assert {each.name for each in file.graph.initializer} == set(model.state_dict())
    assert [node.name for node in file.graph.node][:2] == ["0/Conv", "1/BatchNormalization"]
    assert [each.name for each in (*file.graph.input, *file.graph.output)] == ["input", "output"]
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    metadata = {each.key: json.loads(each.value) for each in file.metadata_props}
    assert metadata == {"classes": ["cat", "dog", "ÿ"], "transform": {"mean": [0.5], "size": 6}}
    onnx.checker.check_model(file, full_check=True)


def test_folded_arrays_have_the_names_of_their_layers(tmp_path):
    xpcnn.onnx.export(small(), (2, 6, 6), tmp_path / "a.onnx", fold=True)
    names = {each.name for each in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert names == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_a_layer_that_is_used_twice_is_folded_into_copies(tmp_path, run_file, rng):
    shared = nn.Conv2d(2, 2, 3, padding=1)
    model = randomise(nn.Sequential(shared, nn.BatchNorm2d(2), shared, nn.BatchNorm2d(2), shared))
    x = rng.normal(size=(2, 2, 5, 5)).astype(np.float32)
    for fold in (False, True):
        xpcnn.onnx.export(model, (2, 5, 5), tmp_path / "a.onnx", fold=fold)
        model.train()
        assert relative(run_file(tmp_path / "a.onnx", x)[0], model.eval()(x)) < BOUND


def test_a_norm_stays_where_its_input_has_other_readers(tmp_path, run_file, rng):
    model = randomise(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Residual(nn.BatchNorm2d(2))))
    x = rng.normal(size=(2, 2, 5, 5)).astype(np.float32)
    xpcnn.onnx.export(model, (2, 5, 5), tmp_path / "a.onnx", fold=True)
    assert relative(run_file(tmp_path / "a.onnx", x)[0], model.eval()(x)) < BOUND


def test_the_model_stays_as_it_is(tmp_path):
    model = small()
    model[1].eval()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    xpcnn.onnx.export(model, (2, 6, 6), tmp_path / "a.onnx", fold=True)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_from_any_backend(backend, tmp_path):
    model = randomise_norms(small())
    xpcnn.onnx.export(model, (2, 6, 6), tmp_path / "here.onnx")
    xpcnn.onnx.export(model.to("numpy"), (2, 6, 6), tmp_path / "host.onnx")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "host.onnx").read_bytes()


class Swish(nn.Module):
    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def forward(self, x):
        return x / (1 + np.exp(-self.beta * x))


class Block(nn.Sequential):
    """One that computes as its base does."""


def test_layers_of_the_users_own(tmp_path, run_file, rng):
    model = Block(nn.Conv2d(2, 3, 3), Swish(2.0))
    with pytest.raises(ConfigError, match=r"got Swish.*@xpcnn\.onnx\.register\(Swish\)"):
        xpcnn.onnx.export(model, (2, 6, 6), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())

    @xpcnn.onnx.register(Swish)
    def write_swish(graph, layer, x):
        return graph.node("Mul", x, graph.node("Sigmoid", graph.node("Mul", x, graph.constant(layer.beta))))

    xpcnn.onnx.export(model, (2, 6, 6), tmp_path / "a.onnx")
    x = rng.normal(size=(2, 2, 6, 6)).astype(np.float32)
    assert relative(run_file(tmp_path / "a.onnx", x)[0], model(x)) < BOUND


class Halved(nn.ReLU):
    def channel_op(self):
        return nn.LeakyReLU(0.5).channel_op()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("layer", [lambda: Halved(), lambda: Doubled(3, 3)])
def test_a_subclass_that_computes_something_else_is_no_base(layer, tmp_path):
    with pytest.raises(ConfigError, match=r"expected layers that can be written to ONNX, got (Halved|Doubled)"):
        xpcnn.onnx.export(layer(), (3,), tmp_path / "a.onnx")


class Bad(nn.Module):
    def forward(self, x):
        return x[:, :1]


def test_a_function_that_writes_something_else(tmp_path):
    xpcnn.onnx.register(Bad)(lambda graph, layer, x: graph.node("Relu", x))
    with pytest.raises(ShapeError, match=r"expected an output of shape \(1, 1\), got \(None, 3\)"):
        xpcnn.onnx.export(Bad(), (3,), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, ConfigError, r"model: expected an instance of xpcnn\.nn\.Module, got int"),
        ({"input_shape": (3, 6, 6)}, ShapeError, r"layer '0' \(Conv2d\): x: expected 2 channels"),
        ({"input_shape": 4}, ShapeError, r"input_shape: expected \(C, H, W\) or \(D,\), got 4"),
        ({"input_shape": (2, 0, 6)}, ShapeError, r"input_shape: expected 1 or more, got 0"),
        ({"opset": 17}, ConfigError, r"opset: expected 18 to 21"),
        ({"opset": 22}, ConfigError, r"opset: expected 18 to 21"),
        ({"opset": True}, ConfigError, r"opset: expected 18 to 21"),
        ({"classes": "cat"}, ConfigError, r"classes: expected names of classes, got 'cat'"),
        ({"classes": [1]}, ConfigError, r"classes: expected names of classes, got \[1\]"),
    ],
)
def test_mistakes(change, error, message, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_text("before")
    given = {"model": small(), "input_shape": (2, 6, 6), "path": path} | change
    with pytest.raises(error, match=message):
        xpcnn.onnx.export(**given)
    assert path.read_text() == "before"


def test_float16_says_what_to_do(tmp_path):
    with pytest.raises(DTypeError, match=r"expected float32 or float64 parameters, got float16.*float\(\)"):
        xpcnn.onnx.export(small().half(), (2, 6, 6), tmp_path / "a.onnx")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="expected to write it"):
        xpcnn.onnx.export(small(), (2, 6, 6), tmp_path / "no" / "a.onnx")


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r'not installed: pip install "\.\[onnx\]"'):
        xpcnn.onnx.export(small(), (2, 6, 6), tmp_path / "a.onnx")


@pytest.mark.parametrize("layer", [3, int, nn.ReLU()])
def test_register_takes_layers_alone(layer):
    with pytest.raises(ConfigError, match=r"layer: expected a subclass of xpcnn\.nn\.Module"):
        xpcnn.onnx.register(layer)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "corners"])
@pytest.mark.parametrize("factor", [1, 2, (3, 4), 2.5])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 1, 3)])
def test_other_sizes(mode, factor, shape, tmp_path, run_file, rng):
    options = {"mode": "bilinear", "align_corners": True} if mode == "corners" else {"mode": mode}
    layer = nn.Upsample(scale_factor=factor, **options)
    x = rng.normal(size=shape).astype(np.float32)
    xpcnn.onnx.export(layer, x.shape[1:], tmp_path / "a.onnx")
    assert relative(run_file(tmp_path / "a.onnx", x)[0], layer(x)) < BOUND
