"""Files that are refused: by an error that says what and where, without memory beyond their size."""

import os
import sys

import numpy as np
import pytest

import xpcnn
from tests.mutations import check_reader
from xpcnn.errors import ConfigError, DataError, ShapeError, StateError, XpcnnError

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from tests.onnx.files import dag, file_of, normal  # noqa: E402


def test_an_operator_that_is_not_supported(tmp_path):
    path = file_of(
        [("LSTM", ("x", "w", "r"), ("y",), {})], {"w": normal(2), "r": normal(2)}, ("N", 3), tmp_path / "a.onnx"
    )
    with pytest.raises(
        DataError, match=r"a\.onnx: node 'node_y' \(LSTM\): .*LSTM is not supported; supported are .*Conv,"
    ):
        xpcnn.onnx.load(path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Relu", ("z",), ("y",), {})], "expected inputs of nodes before it, got 'z'"),
        ([("Relu", ("x",), ("x",), {})], "expected results with names of their own, got 'x'"),
        ([("Relu", ("x",), ("z",), {})], "expected outputs that a node gives, got 'y'"),
        ([("Reshape", ("x", "x"), ("y",), {})], "its input 1 comes of the values of the model's input"),
        ([("Tile", ("w", "big"), ("t",), {}), ("Add", ("x", "t"), ("y",), {})], "larger than a file of this size"),
        ([("ConstantOfShape", ("big",), ("t",), {}), ("Add", ("x", "t"), ("y",), {})], "larger than a file"),
        ([("Conv", ("x", "w"), ("y",), {"group": 0})], "expected"),
        ([("Cast", ("w",), ("t",), {"to": 99}), ("Add", ("x", "t"), ("y",), {})], "expected a type that NumPy has"),
    ],
)  # fmt: skip
def test_graphs_that_make_no_sense(nodes, message, tmp_path):
    arrays = {"w": normal(2, 3), "big": np.array([1 << 20, 1 << 20])}
    path = file_of(nodes, arrays, ("N", 3), tmp_path / "a.onnx")
    with pytest.raises(XpcnnError, match=message):
        xpcnn.onnx.load(path)(normal(2, 3))


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        xpcnn.onnx.load(tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(DataError, match="expected an ONNX file"):
        xpcnn.onnx.load(tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(DataError, match="expected an ONNX file, got a PNG"):
        xpcnn.onnx.load(tmp_path / "a.onnx")


def test_two_inputs(tmp_path):
    path = file_of([("Relu", ("x",), ("y",), {})], {}, ("N", 3), tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="expected a model of one input, got 2: x, z"):
        xpcnn.onnx.load(path)


def test_an_input_of_other_axes(tmp_path):
    with pytest.raises(ShapeError, match=r"x: expected 4 axes, got shape \(2, 3\)"):
        xpcnn.onnx.load(dag(tmp_path))(normal(2, 3))


def test_a_backward_without_a_gradient(tmp_path):
    nodes = [("ReduceProd", ("x",), ("y",), {})]
    loaded = xpcnn.onnx.load(file_of(nodes, {}, ("N", 3), tmp_path / "a.onnx", opset=13))
    y = loaded(normal(2, 3))
    with pytest.raises((StateError, DataError), match=r"no gradient|without"):
        loaded.backward(y)


def external(tmp_path, location, *, offset="0", length=None, link=None):
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    weight = normal(3, 4)
    path = file_of([("Gemm", ("x", "w"), ("y",), {})], {"w": weight}, ("N", 3), folder / "a.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length or str(len(data)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    (folder / "data.bin").write_bytes(data)
    (tmp_path / "outside.bin").write_bytes(data)
    if link:
        os.symlink(tmp_path / "outside.bin", folder / link)
    return path, weight


def test_data_beside_the_file(tmp_path):
    path, weight = external(tmp_path, "data.bin")
    x = normal(2, 3)
    np.testing.assert_allclose(xpcnn.onnx.load(path)(x), x @ weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"location": "../outside.bin"}, "expected its data in a file beside this one"),
        ({"location": "/etc/passwd"}, "expected its data in a file beside this one"),
        ({"location": "C:\\data.bin"}, "expected its data in a file beside this one"),
        ({"location": "..\\outside.bin"}, "expected its data in a file beside this one"),
        ({"location": ""}, "expected its data in a file beside this one"),
        ({"location": "none.bin"}, "no such file"),
        ({"location": "."}, "expected its data in"),
        ({"location": "linked.bin", "link": "linked.bin"}, "got a link elsewhere"),
        ({"location": "data.bin", "offset": "8"}, "expected 48 bytes"),
        ({"location": "data.bin", "offset": "-8"}, "expected a place in its data"),
        ({"location": "data.bin", "length": "99999999999999"}, "expected 48 bytes"),
    ],
)
def test_data_elsewhere(options, message, tmp_path):
    path, _ = external(tmp_path, **options)
    with pytest.raises(DataError, match=message):
        xpcnn.onnx.load(path)


def test_damaged_files(tmp_path):
    content = dag(tmp_path).read_bytes()
    check_reader("ONNX files", xpcnn.onnx.load, content, tmp_path / "a.onnx")


def test_damaged_files_of_our_own(tmp_path):
    from tests.onnx.test_export import small

    xpcnn.onnx.export(small(), (2, 6, 6), tmp_path / "b.onnx", classes=["a", "b", "c"])
    content = (tmp_path / "b.onnx").read_bytes()
    check_reader("ONNX files of our own", xpcnn.onnx.load, content, tmp_path / "a.onnx", seed=1)


def test_damaged_files_of_shapes(tmp_path):
    """One whose shapes are computed, where damage makes sizes."""
    nodes = [
        ("Constant", (), ("k",), {"value_ints": [2, 3]}),
        ("ConstantOfShape", ("k",), ("c",), {}),
        ("Tile", ("c", "k"), ("t",), {}),
        ("Expand", ("w", "k"), ("e",), {}),
        ("Reshape", ("x", "shape"), ("r",), {}),
        ("Add", ("r", "e"), ("y",), {}),
    ]
    arrays = {"w": normal(1, 3), "shape": np.array([-1, 3])}
    content = file_of(nodes, arrays, ("N", 3), tmp_path / "b.onnx").read_bytes()
    check_reader("ONNX files that compute shapes", xpcnn.onnx.load, content, tmp_path / "a.onnx")


def test_without_the_library(tmp_path, monkeypatch):
    path = dag(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r'not installed: pip install "\.\[onnx\]"'):
        xpcnn.onnx.load(path)
