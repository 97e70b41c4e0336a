"""Files become models: what they compute, their gradients, and how they train on."""

import copy
import pickle

import numpy as np
import pytest

import xpcnn
from tests.nn.layers import LAYERS, make
from tests.onnx.conftest import randomise, relative, sizes_of
from xpcnn import models, nn, optim
from xpcnn.onnx.network import Network

pytest.importorskip("onnx")
from tests.onnx.files import RNG, dag, file_of, normal

# --- what was exported comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_comes_back(name, tmp_path, rng):
    layer, x = make(name, rng, "float32")
    randomise(layer).eval()
    xpcnn.onnx.export(layer, x.shape[1:], tmp_path / "a.onnx")
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    assert not loaded.training
    y, expected = loaded(x), layer(x)
    assert relative(y, expected) < 1e-6
    dy = rng.normal(size=y.shape).astype(np.float32)
    dx, wanted = loaded.backward(dy), layer.backward(dy)
    assert relative(dx, wanted) < 2e-6


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", models.names())
def test_every_network_comes_back(name, fold, tmp_path, rng):
    model = models.create(name)
    xpcnn.onnx.export(model, sizes_of(name, model), tmp_path / "a.onnx", fold=fold)
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    x = rng.normal(size=(2, *sizes_of(name, model))).astype(np.float32)
    assert relative(loaded(x), model.eval()(x)) < 1e-5


def test_a_row_of_layers_is_a_sequential_of_them(tmp_path):
    xpcnn.onnx.export(models.create("lenet5"), (1, 32, 32), tmp_path / "a.onnx")
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    assert isinstance(loaded, nn.Sequential)
    kinds = [type(layer).__name__ for layer in loaded]
    assert kinds == [
        *("Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d") * 2, "Conv2d", "BatchNorm2d", "ReLU", "Flatten",
        "Linear", "ReLU", "Linear",
    ]  # fmt: skip
    assert loaded[1].momentum == pytest.approx(0.1)


def test_training_goes_on_as_the_original_would(tmp_path, rng):
    model = models.create("resnet20")
    xpcnn.onnx.export(model, (3, 32, 32), tmp_path / "a.onnx")
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    assert isinstance(loaded, Network)
    x, labels = rng.normal(size=(8, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, 8)
    losses = []
    for each in (model, loaded):
        each.train()
        optimizer, criterion = optim.SGD(each.parameters(), 0.01, momentum=0.9), nn.CrossEntropyLoss()
        found = []
        for _ in range(4):
            found.append(float(criterion(each(x), labels)))
            each.backward(criterion.backward(), input_gradient=False)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(found)
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
    assert losses[1][-1] < losses[1][0]
    assert set(loaded.state_dict()) == set(model.state_dict())


def test_a_trainer_trains_it(tmp_path, rng):
    from xpcnn.data import DataLoader
    from xpcnn.training import Trainer

    xpcnn.onnx.export(models.create("tiny"), (1, 28, 28), tmp_path / "a.onnx")
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    images, labels = rng.integers(0, 256, (64, 28, 28)).astype(np.uint8), rng.integers(0, 10, 64)
    trainer = Trainer(loaded, optim.Adam(loaded.parameters()), nn.CrossEntropyLoss())
    loader = DataLoader(images, labels, 16, seed=0)
    before = trainer.evaluate(loader)
    trainer.fit(loader, epochs=8)
    assert trainer.evaluate(loader).loss < before.loss


def test_on_any_backend(backend, tmp_path):
    model = models.create("resnet20").to("numpy").eval()
    xpcnn.onnx.export(model, (3, 32, 32), tmp_path / "a.onnx")
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    assert loaded.backend is backend
    x = RNG.normal(size=(2, 3, 32, 32)).astype(np.float32)
    assert relative(backend.to_numpy(loaded(backend.asarray(x))), model(x)) < 1e-5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(copied, tmp_path, rng):
    path = dag(tmp_path)
    loaded = xpcnn.onnx.load(path)
    x = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(copied(loaded)(x), loaded(x))


# --- graphs of several ways -------------------------------------------------------------------------------------------


def test_a_graph_and_its_gradients(tmp_path, run_file, rng):
    loaded = xpcnn.onnx.load(dag(tmp_path))
    assert isinstance(loaded, Network)
    assert set(loaded.state_dict()) == {"a.weight", "a.bias", "b.weight"}
    x = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    assert relative(loaded(x), run_file(dag(tmp_path), x)[0]) < 1e-6
    assert xpcnn.testing.gradcheck(loaded, rng.normal(size=(2, 3, 6, 6)))


def test_what_was_read_can_be_written_again(tmp_path, run_file, rng):
    loaded = xpcnn.onnx.load(dag(tmp_path))
    xpcnn.onnx.export(loaded, (3, 6, 6), tmp_path / "again.onnx")
    x = rng.normal(size=(4, 3, 6, 6)).astype(np.float32)
    assert relative(run_file(tmp_path / "again.onnx", x)[0], loaded(x)) < 1e-6
    again = xpcnn.onnx.load(tmp_path / "again.onnx")
    assert set(again.state_dict()) == set(loaded.state_dict())
    np.testing.assert_array_equal(again(x), loaded(x))


def test_old_operators_are_written_as_new_ones(tmp_path, run_file, rng):
    nodes = [
        ("Clip", ("x",), ("c",), {"min": -0.5, "max": 0.5}),
        ("Slice", ("c",), ("s",), {"starts": [0], "ends": [2], "axes": [1]}),
        ("Unsqueeze", ("s",), ("u",), {"axes": [1]}),
        ("Pad", ("u",), ("p",), {"pads": [0, 0, 1, 0, 0, 0], "value": 2.0}),
        ("ReduceSum", ("p",), ("y",), {"axes": [1], "keepdims": 0}),
    ]
    loaded = xpcnn.onnx.load(file_of(nodes, {}, (1, 3), tmp_path / "a.onnx", opset=9))
    xpcnn.onnx.export(loaded, (3,), tmp_path / "again.onnx")
    x = rng.normal(size=(4, 3)).astype(np.float32)
    assert relative(run_file(tmp_path / "again.onnx", x)[0], loaded(x)) < 1e-6


def test_a_compiled_step_is_the_step_as_written(tmp_path, rng):
    x = rng.normal(size=(4, 3, 6, 6)).astype(np.float32)
    results = []
    for compiles in (False, True):
        loaded = xpcnn.onnx.load(dag(tmp_path)).train()
        optimizer = optim.SGD(loaded.parameters(), 0.1)

        def step(x, loaded=loaded, optimizer=optimizer):
            y = loaded(x)
            loaded.backward(y * 0.1)
            optimizer.step()
            optimizer.zero_grad()
            return y

        run = xpcnn.compile(step) if compiles else step
        results.append([run(x).copy() for _ in range(6)])
    for written, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, written, rtol=1e-6, atol=1e-7)


def test_several_outputs(tmp_path, rng):
    nodes = [("Split", ("x",), ("a", "b"), {"axis": 1, "num_outputs": 2}), ("Relu", ("a",), ("y",), {})]
    loaded = xpcnn.onnx.load(file_of(nodes, {}, ("N", 4), tmp_path / "a.onnx", outputs=("y", "b")))
    x = rng.normal(size=(3, 4)).astype(np.float32)
    y, b = loaded(x)
    np.testing.assert_array_equal(y, np.maximum(x[:, :2], 0))
    np.testing.assert_array_equal(b, x[:, 2:])
    dx = loaded.backward((None, np.ones_like(b)))
    np.testing.assert_array_equal(dx, np.repeat([[0, 0, 1, 1]], 3, axis=0))


def test_one_layer_used_twice_stays_one(tmp_path, rng):
    nodes = [("Gemm", ("x", "w"), ("a",), {}), ("Relu", ("a",), ("r",), {}), ("Gemm", ("r", "w"), ("y",), {})]
    loaded = xpcnn.onnx.load(file_of(nodes, {"w": normal(4, 4)}, ("N", 4), tmp_path / "a.onnx"))
    assert len(loaded.parameters()) == 1
    assert xpcnn.testing.gradcheck(loaded, rng.normal(size=(3, 4)))


@pytest.mark.parametrize("target", [[1, -1], [1, 72], [-1, 72], [0, -1]])
def test_a_fixed_batch_becomes_free(target, tmp_path, rng):
    nodes = [("Reshape", ("x", "shape"), ("f",), {}), ("Gemm", ("f", "w"), ("y",), {})]
    arrays = {"shape": np.array(target), "w": normal(72, 5)}
    loaded = xpcnn.onnx.load(file_of(nodes, arrays, (1, 2, 6, 6), tmp_path / "a.onnx"))
    x = rng.normal(size=(3, 2, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(loaded(x), x.reshape(3, 72) @ arrays["w"], rtol=1e-5, atol=1e-5)


def test_shapes_computed_from_the_input(tmp_path, rng):
    nodes = [
        ("Shape", ("x",), ("s",), {}),
        ("Gather", ("s", "zero"), ("n",), {"axis": 0}),
        ("Unsqueeze", ("n", "axes"), ("n1",), {}),
        ("Concat", ("n1", "rest"), ("shape",), {"axis": 0}),
        ("Reshape", ("x", "shape"), ("y",), {}),
    ]
    arrays = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    loaded = xpcnn.onnx.load(file_of(nodes, arrays, ("N", 2, 3, 4), tmp_path / "a.onnx"))
    x = rng.normal(size=(5, 2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), x.reshape(5, -1))
    dy = rng.normal(size=(5, 24)).astype(np.float32)
    np.testing.assert_array_equal(loaded.backward(dy), dy.reshape(5, 2, 3, 4))


def test_what_keras_files_look_like(tmp_path, run_file, rng):
    """tf2onnx: channels last around each convolution, borders as nodes, products and sums apart, weights turned."""
    arrays = {
        "kernel": normal(3, 3, 3, 4),  # (KH, KW, C, F)
        "bias": normal(4),
        "pads": np.array([0, 0, 1, 1, 0, 0, 0, 0]),
        "dense/kernel": normal(36, 5),
        "dense/bias": normal(5),
        "shape": np.array([-1, 36]),
    }
    nodes = [
        ("Transpose", ("x",), ("t",), {"perm": [0, 3, 1, 2]}),
        ("Pad", ("t", "pads"), ("p",), {}),
        ("Transpose", ("kernel",), ("w",), {"perm": [3, 2, 0, 1]}),
        ("Identity", ("w",), ("w2",), {}),
        ("Conv", ("p", "w2", "bias"), ("c",), {"strides": [2, 2], "auto_pad": "VALID"}),
        ("Transpose", ("c",), ("u",), {"perm": [0, 2, 3, 1]}),
        ("Relu", ("u",), ("r",), {}),
        ("Reshape", ("r", "shape"), ("f",), {}),
        ("MatMul", ("f", "dense/kernel"), ("m",), {}),
        ("Add", ("m", "dense/bias"), ("z",), {}),
        ("Softmax", ("z",), ("y",), {}),
    ]
    path = file_of(nodes, arrays, ("N", 6, 6, 3), tmp_path / "a.onnx", opset=18)
    loaded = xpcnn.onnx.load(path)
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in loaded) == 2
    assert len(loaded.parameters()) == 4
    x = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    assert relative(loaded(x), run_file(path, x)[0]) < 1e-6
    assert xpcnn.testing.gradcheck(loaded, rng.normal(size=(1, 6, 6, 3)), max_entries=20)
