"""The operators that are no layers of `nn`: gradients against difference quotients, and one answer on every backend."""

import numpy as np
import pytest

import xpcnn
from tests.onnx.conftest import relative
from xpcnn.onnx.operation import MOVING, Operation
from xpcnn.onnx.operators import OPERATORS

pytest.importorskip("onnx")
from tests.onnx.files import normal

INTS = np.array
OPERATIONS = {
    **{op: (op, {}, (2, 3, 4), []) for op in (
        "Abs", "Neg", "Exp", "Reciprocal", "Erf", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "LeakyRelu", "Elu",
        "Celu", "Selu", "HardSigmoid", "HardSwish", "Mish", "Swish", "Gelu", "ThresholdedRelu", "Identity", "Softmax",
        "LogSoftmax", "GlobalAveragePool", "GlobalMaxPool", "Transpose", "Flatten", "Squeeze",
    )},
    "Gelu of tanh": ("Gelu", {"approximate": b"tanh"}, (2, 3), []),
    "Log": ("Log", {}, (2, 3), []),
    "Sqrt": ("Sqrt", {}, (2, 3), []),
    "Elu steep": ("Elu", {"alpha": 0.3}, (2, 3), []),
    "Celu steep": ("Celu", {"alpha": 0.5}, (2, 3), []),
    "Swish steep": ("Swish", {"alpha": 1.7}, (2, 3), []),
    "Add": ("Add", {}, (2, 3, 4), [normal(3, 1)]),
    "Add to less": ("Add", {}, (3, 1), [normal(2, 3, 4)]),
    "Sub": ("Sub", {}, (2, 3), [normal(3)]),
    "Mul": ("Mul", {}, (2, 3), [normal(3)]),
    "Div": ("Div", {}, (2, 3), [normal(3)]),
    "Pow": ("Pow", {}, (2, 3), [np.float32([1.5, 2, 3])]),
    "PRelu": ("PRelu", {}, (2, 3, 4), [normal(3, 1)]),
    "Sum": ("Sum", {}, (2, 3), [normal(3), normal(2, 1)]),
    "Mean": ("Mean", {}, (2, 3), [normal(3), normal(2, 1)]),
    "Max": ("Max", {}, (2, 3), [normal(3)]),
    "Min": ("Min", {}, (2, 3), [normal(3)]),
    "Clip": ("Clip", {}, (2, 3, 4), [np.float32(-0.5), np.float32(0.5)]),
    "Where": ("Where", {}, (2, 3), []),
    "Reshape": ("Reshape", {}, (2, 3, 4), [INTS([4, -1])]),
    "Unsqueeze": ("Unsqueeze", {}, (2, 3), [INTS([0, -1])]),
    "Concat": ("Concat", {"axis": 1}, (2, 3), [normal(2, 2)]),
    "Split": ("Split", {"axis": 1}, (2, 3), [INTS([3])]),
    "Slice": ("Slice", {}, (4, 5), [INTS([-1, 1]), INTS([-9, 4]), INTS([1, 0]), INTS([-2, 2])]),
    "Gather": ("Gather", {"axis": 1}, (2, 4), [INTS([[0, -1], [2, 0]])]),
    "Expand": ("Expand", {}, (3, 1), [INTS([2, 1, 4])]),
    "Tile": ("Tile", {}, (2, 3), [INTS([2, 3])]),
    "Pad": ("Pad", {}, (2, 3), [INTS([1, -1, 2, 2]), np.float32(1.5)]),
    "Pad by reflection": ("Pad", {"mode": b"reflect"}, (3, 4), [INTS([1, 2, 2, 3])]),
    "Pad by edges": ("Pad", {"mode": b"edge"}, (3, 4), [INTS([1, 2, 2, 3])]),
    "Pad by wrapping": ("Pad", {"mode": b"wrap"}, (3, 4), [INTS([1, 2, 2, 3])]),
    "DepthToSpace": ("DepthToSpace", {"blocksize": 2}, (1, 8, 2, 3), []),
    "DepthToSpace by columns": ("DepthToSpace", {"blocksize": 2, "mode": b"CRD"}, (1, 8, 2, 3), []),
    "SpaceToDepth": ("SpaceToDepth", {"blocksize": 2}, (1, 2, 4, 6), []),
    **{op: (op, {"axes": [1], "keepdims": 0}, (2, 3, 4), []) for op in (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    )},
    "MatMul": ("MatMul", {}, (2, 3, 4), [normal(4, 5)]),
    "MatMul of batches": ("MatMul", {}, (3, 4), [normal(2, 4, 5)]),
    "MatMul of a vector": ("MatMul", {}, (4,), [normal(2, 4, 5)]),
    "Gemm": ("Gemm", {"transA": 1, "alpha": 0.5, "beta": 2.0}, (4, 3), [normal(4, 5), normal(1, 5)]),
    "Softmax of old": ("Softmax", {"axis": 1}, (2, 3, 4), []),
    "Conv of a line": ("Conv", {"auto_pad": b"SAME_LOWER", "strides": [2], "group": 2}, (2, 4, 7),
                       [normal(6, 2, 3), normal(6)]),
    "Conv of a body": ("Conv", {"pads": [1, 0, 1, 0, 1, 1], "dilations": [1, 2, 1]}, (1, 2, 4, 5, 4),
                       [normal(3, 2, 2, 2, 2)]),
    "ConvTranspose": ("ConvTranspose", {"strides": [2, 3], "group": 2, "output_shape": [9, 10],
                                        "auto_pad": b"SAME_UPPER"}, (2, 4, 4, 4), [normal(4, 2, 3, 3), normal(4)]),
    "AveragePool dilated": ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 1], "pads": [1, 0, 0, 1],
                                            "ceil_mode": 1, "strides": [2, 2]}, (1, 2, 6, 7), []),
    "AveragePool of a line": ("AveragePool", {"kernel_shape": [3], "auto_pad": b"SAME_LOWER", "strides": [2]},
                              (1, 2, 6), []),
    "MaxPool of a line": ("MaxPool", {"kernel_shape": [3], "pads": [1, 1], "strides": [2]}, (2, 2, 7), []),
    "BatchNormalization of a line": ("BatchNormalization", {}, (2, 3, 4),
                                     [normal(3), normal(3), normal(3), np.abs(normal(3)) + 1]),
    "InstanceNormalization": ("InstanceNormalization", {}, (2, 3, 5), [normal(3), normal(3)]),
    "LayerNormalization": ("LayerNormalization", {"axis": 1}, (2, 3, 4), [normal(3, 4), normal(3, 4)]),
    "GroupNormalization": ("GroupNormalization", {"num_groups": 2}, (2, 4, 3), [normal(4), normal(4)]),
    "LRN": ("LRN", {"size": 3, "alpha": 0.5}, (2, 4, 2, 2), []),
    "Resize": ("Resize", {"mode": b"cubic"}, (1, 2, 4, 5), [None, None, INTS([1, 2, 7, 3])]),
    "Resize sharp": ("Resize", {"mode": b"linear", "antialias": 1}, (1, 1, 6, 6), [None, np.float32([1, 1, 0.5, 0.6])]),
    "Dropout": ("Dropout", {}, (2, 3), []),
    "Cast": ("Cast", {"to": 11}, (2, 3), []),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_of_operators(name):
    """In float64 against difference quotients, by the input and by every array that training changes."""
    op, attributes, shape, others = OPERATIONS[name]
    rng = np.random.default_rng(3)
    x = rng.normal(size=shape)
    x = np.abs(x) + 0.3 if op in ("Log", "Sqrt", "Pow") else x
    places = [MOVING, *(a if a is None or a.dtype.kind != "f" else a.astype(np.float64) for a in others)]
    if op == "Where":
        places = [x > 0, MOVING, rng.normal(size=(3,))]
    fixed = {"Pow": (1,), "BatchNormalization": (3, 4)}.get(op, ())
    arrays = [i for i, a in enumerate(places) if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size > 1]
    learned = [i for i in arrays if i not in (*OPERATORS[op].host, *fixed)]
    version = 12 if name.endswith("of old") else 13 if op.startswith("Reduce") else 21
    layer = Operation(op, attributes, version, places, learned=learned).eval()
    report = xpcnn.testing.gradcheck(layer, x)
    assert report, str(report)
    assert len(report.rows) == 1 + len(learned)


def test_every_operator_with_a_gradient_is_met():
    without = {  # steps, comparisons, and what computes shapes
        "Floor", "Ceil", "Sign", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or",
        "ArgMax", "Shape", "Size", "ConstantOfShape", "Range", "ReduceProd",
    }  # fmt: skip
    layers = {"MaxPool", "AveragePool", "Conv", "BatchNormalization", "Upsample"}
    assert set(OPERATORS) - without - layers <= {op for op, *_ in OPERATIONS.values()}


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Where"])
def test_operators_on_any_backend(name, backend):
    op, attributes, shape, others = OPERATIONS[name]
    x = np.abs(np.random.default_rng(4).normal(size=shape)).astype(np.float32) + 0.2
    version = 12 if name.endswith("of old") else 13 if op.startswith("Reduce") else 21
    results = []
    for where in ("numpy", backend.name):
        with xpcnn.use_backend(where) as active:
            layer = Operation(op, attributes, version, [MOVING, *others]).eval()
            y = layer(active.asarray(x))
            dy = np.random.default_rng(6).normal(size=y.shape).astype(str(y.dtype))
            dx = layer.backward(active.asarray(dy))
            results.append((active.to_numpy(y), active.to_numpy(dx)))
    for here, there in zip(*results, strict=True):
        assert relative(there, here) < 1e-5
