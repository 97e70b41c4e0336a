"""Which nodes are layers of `nn`: those become them, with everything that the file says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xpcnn import nn
from xpcnn.onnx.operators.registry import Call
from xpcnn.onnx.operators.windows import auto_pad


class Node:
    """A node of a file.

    Attributes
    ----------
    op, name : str
    inputs, outputs : list of str
        "" for one left out.
    attributes : dict
    constants : dict of int to array
        The inputs that are known.
    ndim : int or None
        Axes of its first input.
    version : int
    """

    __slots__ = ("attributes", "constants", "inputs", "name", "ndim", "op", "outputs", "version")

    def __init__(
        self, op: str, name: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any], version: int
    ) -> None:
        self.op, self.name, self.inputs, self.outputs = op, name, inputs, outputs
        self.attributes, self.version = attributes, version
        self.constants: dict[int, Any] = {}
        self.ndim: int | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    @property
    def call(self) -> Call:
        """The node as operators see it."""
        return Call(self.attributes, self.version, len(self.outputs), None)

    def moving(self) -> list[int]:
        """Return the places of the inputs that are there and not known."""
        return [i for i, name in enumerate(self.inputs) if name and i not in self.constants]


Recognise = Callable[[Node], nn.Module | None]
_LAYERS: dict[str, Recognise] = {}


def _is(*ops: str) -> Callable[[Recognise], Recognise]:
    def add(function: Recognise) -> Recognise:
        _LAYERS.update(dict.fromkeys(ops, function))
        return function

    return add


def recognise(node: Node) -> nn.Module | None:
    """Return the layer that a node is; None where `nn` has none that does the same."""
    find = _LAYERS.get(node.op)
    if find is None or node.moving() != [0] or any(node.outputs[1:]):
        return None
    return find(node)


def _given(array: Any) -> Callable[[tuple[int, ...]], Any]:
    """Return an initializer that gives an array."""
    return lambda shape: array


def _floats(*arrays: Any) -> bool:
    kinds = {str(each.dtype) for each in arrays if each is not None}
    return len(kinds) == 1 and kinds <= {"float32", "float64"}


def _plain(values: list[int]) -> Any:
    """Return sizes as one number where they are equal."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def _padding(node: Node) -> Any:
    """Return the padding of windows as `nn` takes it; None where it depends on the image in a way of ONNX's own."""
    mode = auto_pad(node.call)
    strides = node.get("strides") or [1, 1]
    if mode == "SAME_UPPER":
        return "same"
    if mode == "VALID":
        return 0
    kernel, dilations = node.get("kernel_shape") or [], node.get("dilations") or [1, 1]
    if mode == "SAME_LOWER":
        if set(strides) != {1} or len(kernel) != 2:
            return None
        totals = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        return tuple((total - total // 2, total // 2) for total in totals)
    pads = list(node.get("pads") or [0, 0, 0, 0])
    if mode != "NOTSET" or len(pads) != 4 or min(pads) < 0:
        return None
    if pads[:2] == pads[2:]:
        return _plain(pads[:2])
    return (pads[0], pads[2]), (pads[1], pads[3])


def _two(node: Node, name: str) -> Any:
    values = node.get(name) or [1, 1]
    return _plain(values) if len(values) == 2 else None


@_is("Conv")
def _conv(node: Node) -> nn.Module | None:
    weight, bias = node.constants.get(1), node.constants.get(2)
    if weight is None or weight.ndim != 4 or not _floats(weight, bias):
        return None
    node.attributes.setdefault("kernel_shape", list(weight.shape[2:]))
    if list(node.attributes["kernel_shape"]) != list(weight.shape[2:]):
        return None  # which the operator says in its own words
    padding, stride, dilation = _padding(node), _two(node, "strides"), _two(node, "dilations")
    if padding is None or stride is None or dilation is None:
        return None
    groups = node.get("group", 1)
    return nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        stride,
        padding,
        dilation,
        groups,
        bias is not None,
        weight_init=_given(weight),
        bias_init=_given(bias),
        dtype=weight.dtype,
    )


@_is("Gemm")
def _gemm(node: Node) -> nn.Module | None:
    weight, bias = node.constants.get(1), node.constants.get(2)
    if weight is None or weight.ndim != 2 or node.get("transA", 0) or not _floats(weight, bias):
        return None
    weight = weight if node.get("transB", 0) else weight.T
    if node.get("alpha", 1.0) != 1:
        weight = weight * weight.dtype.type(node.get("alpha"))
    if bias is not None:
        if bias.size not in (1, weight.shape[0]) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            return None
        bias = np.broadcast_to(bias.reshape(-1), weight.shape[:1]) * bias.dtype.type(node.get("beta", 1.0))
    return linear(weight, bias)


def linear(weight: Any, bias: Any) -> nn.Linear:
    """Return the dense layer of weights (out, in) and a bias (out,) or None."""
    return nn.Linear(
        weight.shape[1],
        weight.shape[0],
        bias is not None,
        weight_init=_given(np.ascontiguousarray(weight)),
        bias_init=_given(None if bias is None else np.ascontiguousarray(bias)),
        dtype=weight.dtype,
    )


@_is("MatMul")
def _matmul(node: Node) -> nn.Module | None:
    weight = node.constants.get(1)
    if weight is None or weight.ndim != 2 or node.ndim != 2 or not _floats(weight):
        return None
    return linear(weight.T, None)


@_is("BatchNormalization")
def _batch_norm(node: Node) -> nn.Module | None:
    arrays: list[Any] = [node.constants.get(i) for i in range(1, 5)]
    if node.ndim not in (2, 4) or any(np.ndim(each) != 1 for each in arrays) or not _floats(*arrays):
        return None
    if node.get("training_mode", 0) or len({np.shape(each) for each in arrays}) > 1 or not node.get("spatial", 1):
        return None
    kind = nn.BatchNorm2d if node.ndim == 4 else nn.BatchNorm1d
    gamma: Any = arrays[0]
    layer = kind(gamma.size, node.get("epsilon", 1e-5), 1.0 - node.get("momentum", 0.9), dtype=gamma.dtype)
    layer.load_state_dict(dict(zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=True)))
    return layer


@_is("ConvTranspose")
def _conv_transpose(node: Node) -> nn.Module | None:
    weight, bias = node.constants.get(1), node.constants.get(2)
    if weight is None or weight.ndim != 4 or not _floats(weight, bias) or node.get("output_shape") is not None:
        return None
    padding, stride, dilation = _padding(node), _two(node, "strides"), _two(node, "dilations")
    extra = list(node.get("output_padding") or [0, 0])
    if auto_pad(node.call).startswith("SAME") or padding is None or stride is None or dilation is None:
        return None
    kernel, groups = list(weight.shape[2:]), node.get("group", 1)
    limits = zip(extra, node.get("strides") or [1, 1], node.get("dilations") or [1, 1], strict=True)
    if list(node.get("kernel_shape") or kernel) != kernel or any(more >= max(a, b) for more, a, b in limits):
        return None
    return nn.ConvTranspose2d(
        weight.shape[0],
        weight.shape[1] * groups,
        weight.shape[2:],
        stride,
        padding,
        tuple(extra),
        groups,
        bias is not None,
        dilation,
        weight_init=_given(weight),
        bias_init=_given(bias),
        dtype=weight.dtype,
    )


@_is("LayerNormalization")
def _layer_norm(node: Node) -> nn.Module | None:
    weight, bias = node.constants.get(1), node.constants.get(2)
    if weight is None or node.ndim is None or not _floats(weight, bias) or not weight.ndim:
        return None
    if node.get("axis", -1) % node.ndim != node.ndim - weight.ndim or (bias is not None and bias.shape != weight.shape):
        return None
    layer = nn.LayerNorm(weight.shape, node.get("epsilon", 1e-5), bias=bias is not None, dtype=weight.dtype)
    return _with(layer, weight, bias)


@_is("InstanceNormalization", "GroupNormalization")
def _group_norm(node: Node) -> nn.Module | None:
    weight, bias = node.constants.get(1), node.constants.get(2)
    if weight is None or bias is None or weight.ndim != 1 or bias.shape != weight.shape or not _floats(weight, bias):
        return None
    groups = weight.size if node.op == "InstanceNormalization" else node.get("num_groups", 0)
    if node.op == "GroupNormalization" and (node.version < 21 or groups < 1 or weight.size % groups):
        return None
    return _with(nn.GroupNorm(groups, weight.size, node.get("epsilon", 1e-5), dtype=weight.dtype), weight, bias)


def _with(layer: nn.Module, weight: Any, bias: Any) -> nn.Module:
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


@_is("MaxPool")
def _max_pool(node: Node) -> nn.Module | None:
    kernel, padding = node.get("kernel_shape") or [], _padding(node)
    stride, dilation = _two(node, "strides"), _two(node, "dilations")
    if len(kernel) != 2 or padding is None or stride is None or dilation is None or not _fits(node, kernel):
        return None
    return nn.MaxPool2d(_plain(kernel), stride, padding, dilation, ceil_mode=bool(node.get("ceil_mode", 0)))


@_is("AveragePool")
def _avg_pool(node: Node) -> nn.Module | None:
    kernel, padding, stride = node.get("kernel_shape") or [], _padding(node), _two(node, "strides")
    if len(kernel) != 2 or padding is None or stride is None or _two(node, "dilations") != 1:
        return None
    if not _fits(node, kernel):
        return None
    counts = bool(node.get("count_include_pad", 0))
    return nn.AvgPool2d(_plain(kernel), stride, padding, bool(node.get("ceil_mode", 0)), counts)


def _fits(node: Node, kernel: list[int]) -> bool:
    """Whether the padding is below the window, as `nn` has it."""
    pads, dilations = node.get("pads") or [0] * 4, node.get("dilations") or [1, 1]
    return all(max(pads[i], pads[i + 2]) <= (kernel[i] - 1) * dilations[i] for i in range(2))


@_is("GlobalAveragePool")
def _global(node: Node) -> nn.Module | None:
    return nn.GlobalAvgPool2d() if node.ndim == 4 else None


@_is("ReduceMean")
def _mean(node: Node) -> nn.Module | None:
    axes = node.constants.get(1) if len(node.inputs) > 1 else node.get("axes")
    if node.ndim != 4 or axes is None or not node.get("keepdims", 1):
        return None
    found = sorted(int(axis) % 4 for axis in np.asarray(axes).reshape(-1))
    return nn.GlobalAvgPool2d() if found == [2, 3] else None


@_is("Flatten")
def _flatten(node: Node) -> nn.Module | None:
    return nn.Flatten() if node.get("axis", 1) == 1 and node.ndim in (2, 4) else None


@_is("Reshape")
def _reshape(node: Node) -> nn.Module | None:
    shape = node.constants.get(1) if len(node.inputs) > 1 else node.get("shape")
    if shape is None or node.ndim not in (2, 4) or node.get("allowzero", 0):
        return None
    return nn.Flatten() if [int(n) for n in np.asarray(shape).reshape(-1)] == [0, -1] else None


@_is("Dropout")
def _dropout(node: Node) -> nn.Module | None:
    share = node.constants.get(1) if len(node.inputs) > 1 and node.inputs[1] else node.get("ratio", 0.5)
    training = node.constants.get(2)
    if share is None or (training is not None and bool(training)):
        return None
    return nn.Dropout(float(share))


@_is("Relu")
def _relu(node: Node) -> nn.Module | None:
    return nn.ReLU()


@_is("LeakyRelu")
def _leaky_relu(node: Node) -> nn.Module | None:
    return nn.LeakyReLU(node.get("alpha", 0.01))


@_is("Sigmoid")
def _sigmoid(node: Node) -> nn.Module | None:
    return nn.Sigmoid()


@_is("Tanh")
def _tanh(node: Node) -> nn.Module | None:
    return nn.Tanh()


@_is("Elu")
def _elu(node: Node) -> nn.Module | None:
    return nn.ELU(node.get("alpha", 1.0))


@_is("HardSwish")
def _hard_swish(node: Node) -> nn.Module | None:
    return nn.Hardswish()


@_is("Swish")
def _swish(node: Node) -> nn.Module | None:
    return nn.SiLU() if node.get("alpha", 1.0) == 1 else None


@_is("Gelu")
def _gelu(node: Node) -> nn.Module | None:
    return nn.GELU() if node.get("approximate", b"none") == b"none" else None


@_is("Softmax")
def _softmax(node: Node) -> nn.Module | None:
    axis = node.get("axis", 1 if node.version < 13 else -1)
    if node.version < 13 and (node.ndim is None or axis % node.ndim != node.ndim - 1):
        return None
    return nn.Softmax(axis)


@_is("Resize")
def _resize(node: Node) -> nn.Module | None:
    scales, given = node.constants.get(2), {name for name in node.attributes if name != "cubic_coeff_a"}
    if node.ndim != 4 or node.version < 11 or scales is None or any(node.inputs[3:]) or node.get("antialias", 0):
        return None
    factors = [float(each) for each in np.asarray(scales).reshape(-1)]
    if len(factors) != 4 or factors[:2] != [1, 1] or not all(each >= 1 and each.is_integer() for each in factors[2:]):
        return None
    if given - {"mode", "nearest_mode", "coordinate_transformation_mode", "extrapolation_value", "exclude_outside"}:
        return None
    if node.get("exclude_outside", 0):
        return None
    mode, where = node.get("mode", b"nearest"), node.get("coordinate_transformation_mode", b"half_pixel")
    factor = (factors[2], factors[3])
    if (mode, where, node.get("nearest_mode")) == (b"nearest", b"asymmetric", b"floor"):
        return nn.Upsample(scale_factor=factor)
    if mode == b"linear" and where in (b"half_pixel", b"pytorch_half_pixel", b"align_corners"):
        return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=where == b"align_corners")
    return None
