"""Small files of ONNX for the tests: nodes, arrays, and a graph of several ways."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(5)


def file_of(nodes, arrays, shape, path, *, outputs=("y",), opset=21, kind=TensorProto.FLOAT):
    """Write a file of nodes (operator, inputs, outputs, attributes)."""
    graph = helper.make_graph(
        [helper.make_node(op, list(given), list(made), name=f"node_{made[0]}", **attributes)
         for op, given, made, attributes in nodes],
        "test",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())
    return path


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


WEIGHTS = {"a.weight": normal(4, 3, 3, 3), "a.bias": normal(4), "b.weight": normal(4, 4, 1, 1)}


def dag(tmp_path, opset=21):
    """Write two ways that meet in a sum, a join, and a product with a gate."""
    nodes = [
        ("Conv", ("x", "a.weight", "a.bias"), ("a",), {"pads": [1, 1, 1, 1]}),
        ("Relu", ("a",), ("r",), {}),
        ("Conv", ("r", "b.weight"), ("b",), {}),
        ("Add", ("b", "r"), ("s",), {}),
        ("Concat", ("s", "a"), ("c",), {"axis": 1}),
        ("GlobalAveragePool", ("c",), ("g",), {}),
        ("Sigmoid", ("g",), ("gate",), {}),
        ("Mul", ("c", "gate"), ("y",), {}),
    ]
    return file_of(nodes, WEIGHTS, ("N", 3, 6, 6), tmp_path / "dag.onnx", opset=opset)
