"""ONNX's own cases, which its wheel carries: of every operator taken, all; those made by PyTorch; eight networks.

A case whose other inputs move is read with these as numbers of the file, for a model has one input.
"""

import glob
import os
import warnings

import numpy as np
import pytest

import xpcnn

onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.parity

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
NATIVE = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13}  # types that NumPy has: no strings, float8, int4, bfloat16
# Their expected values come of one library's random numbers.
RANDOM = {"test_training_dropout", "test_training_dropout_default", "test_training_dropout_mask",
          "test_training_dropout_default_mask"}  # fmt: skip


def parts_of(case):
    """Return a case's model, and its sets of inputs and outputs as arrays."""
    if not case.model_dir:
        return case.model, case.data_sets
    sets = []
    for folder in sorted(glob.glob(os.path.join(case.model_dir, "test_data_set*"))):
        pair = []
        for kind in ("input", "output"):
            found = []
            for i in range(len(glob.glob(os.path.join(folder, f"{kind}_*.pb")))):
                with open(os.path.join(folder, f"{kind}_{i}.pb"), "rb") as file:
                    found.append(onnx.TensorProto.FromString(file.read()))
            pair.append(found)
        sets.append(pair)
    return onnx.load(os.path.join(case.model_dir, "model.onnx")), sets


def is_in_scope(case, supported):
    model = onnx.load(os.path.join(case.model_dir, "model.onnx")) if case.model_dir else case.model
    values = [*model.graph.input, *model.graph.output]
    return (
        case.name not in RANDOM
        and all(node.op_type in supported and node.domain in ("", "ai.onnx") for node in model.graph.node)
        and all(value.type.HasField("tensor_type") for value in values)
        and {value.type.tensor_type.elem_type for value in values} <= NATIVE
    )


def all_cases():
    from onnx.backend.test.loader import load_model_tests

    from xpcnn.onnx.reading import SUPPORTED

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what NumPy says of the cases' own arithmetic
        cases = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    return [case for case in cases if is_in_scope(case, set(SUPPORTED))]


def array(value):
    from onnx import numpy_helper

    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def prepare(model, inputs, path):
    """Write a case's model with all inputs but the first as arrays; return what to call it with."""
    from onnx import helper, numpy_helper

    from xpcnn.onnx.operators import OPERATORS

    model = onnx.ModelProto.FromString(model.SerializeToString())
    known = {each.name for each in model.graph.initializer}
    names = [each.name for each in model.graph.input if each.name not in known]
    hosts = {
        node.input[i]
        for node in model.graph.node
        if node.op_type in OPERATORS
        for i in OPERATORS[node.op_type].host
        if i < len(node.input)
    }
    x, first = (inputs[0], 1) if names and names[0] not in hosts else (np.zeros(1, np.float32), 0)
    if not first:  # all of the case is numbers of the file
        model.graph.input.append(helper.make_tensor_value_info("unread", 1, [1]))
    for name, value in zip(names[first:], inputs[first:], strict=True):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    path.write_bytes(model.SerializeToString())
    return x


def pytest_generate_tests(metafunc):
    """Make the cases, which takes seconds, only where they are asked for."""
    if "case" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("-m") == "parity"
        metafunc.parametrize("case", all_cases() if wanted else [], ids=lambda case: case.name)


def test_case(case, tmp_path):
    model, sets = parts_of(case)
    for given, expected in sets:
        x = prepare(model, [array(each) for each in given], tmp_path / "a.onnx")
        y = xpcnn.onnx.load(tmp_path / "a.onnx")(x)
        results = y if isinstance(y, tuple) else (y,)
        for actual, wanted in zip(results, map(array, expected), strict=True):
            assert actual.dtype == wanted.dtype
            np.testing.assert_allclose(actual, wanted, rtol=case.rtol, atol=max(case.atol, 1e-7))


def test_there_are_as_many_as_there_were():
    """A change that drops an operator drops its cases: this says so."""
    assert len(all_cases()) >= 890


FOLDER = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light")
LIGHT = sorted(os.path.basename(path) for path in glob.glob(os.path.join(FOLDER, "*.onnx")))


@pytest.mark.parametrize("name", LIGHT)
def test_networks_of_the_wheel(name, tmp_path):
    """AlexNet to ShuffleNet as they are, with weights in the place of those that the wheel leaves out."""
    from onnx import numpy_helper

    runtime = pytest.importorskip("onnxruntime")
    model, rng = onnx.load(os.path.join(FOLDER, name)), np.random.default_rng(0)
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type != "ConstantOfShape":
            model.graph.node.append(node)
            continue
        shape = tuple(arrays[node.input[0]])
        scale = np.sqrt(2 / max(1, np.prod(shape[1:]))) if len(shape) > 1 else 0.1
        values = np.abs(rng.normal(size=shape) * 0.1) + 1 if len(shape) == 1 else rng.normal(size=shape) * scale
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    loaded = xpcnn.onnx.load(path)
    known = {each.name for each in model.graph.initializer}
    (entry,) = [each.name for each in model.graph.input if each.name not in known]
    x = rng.normal(size=(1, 3, 224, 224)).astype(np.float32)
    session = runtime.InferenceSession(str(path))
    (expected,) = session.run(None, {entry: x})
    actual = loaded(x)
    assert np.linalg.norm(actual - expected) <= 1e-4 * np.linalg.norm(expected)
    del session
    if path.stat().st_size > 1e8:  # two of a hundred million weights: their gradients would take a minute
        return
    loaded.train()
    y = loaded(np.concatenate([x, x[:, :, ::-1]]))
    dx = loaded.backward(np.ones_like(y))
    assert np.isfinite(dx).all()
