"""How each layer of `nn` is written in ONNX's operators, as evaluation mode computes it.

Windows are written with the padding that they have on the input at hand, for what "same" and `ceil_mode` come to is not
read alike everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn import nn
from xpcnn.backend import use_backend
from xpcnn.onnx.graph import Graph, Value
from xpcnn.onnx.registry import register
from xpcnn.windows import Axis, Windows, pair, transposed_windows, windows


def _size(x: Value) -> tuple[int, int]:
    return int(x.shape[2] or 0), int(x.shape[3] or 0)


def _pads(over: Windows) -> list[int]:
    return [over.h.before, over.w.before, over.h.after, over.w.after]


@register(nn.Sequential)
def _sequential(graph: Graph, layer: nn.Sequential, x: Value) -> Value:
    for each in layer:
        x = graph.layer(each, x)
    return x


@register(nn.Residual)
def _residual(graph: Graph, layer: nn.Residual, x: Value) -> Value:
    y = graph.layer(layer.body, x)
    return graph.node("Add", y, x if layer.shortcut is None else graph.layer(layer.shortcut, x))


@register(nn.Concat)
def _concat(graph: Graph, layer: nn.Concat, x: Value) -> Value:
    return graph.node("Concat", *(graph.layer(branch, x) for branch in layer.branches), axis=layer.dim)


@register(nn.ChannelPad)
def _channel_pad(graph: Graph, layer: nn.ChannelPad, x: Value) -> Value:
    rest = [0] * (len(x.shape) - 2)
    return graph.node("Pad", x, graph.integers(0, layer.before, *rest, 0, layer.after, *rest), mode="constant")


@register(nn.Conv2d)
def _convolution(graph: Graph, layer: nn.Conv2d, x: Value) -> Value:
    kernel = layer.weight.shape[2], layer.weight.shape[3]
    over = windows(_size(x), kernel, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    return graph.node(
        "Conv",
        x,
        graph.parameter(layer.weight),
        *([graph.parameter(layer.bias)] if layer.bias is not None else []),
        kernel_shape=list(kernel),
        strides=list(over.stride),
        pads=_pads(over),
        dilations=list(pair("dilation", layer.dilation, 1)),
        group=layer.groups,
    )


@register(nn.ConvTranspose2d)
def _transposed_convolution(graph: Graph, layer: nn.ConvTranspose2d, x: Value) -> Value:
    kernel = layer.weight.shape[2], layer.weight.shape[3]
    settings = {"stride": layer.stride, "output_padding": layer.output_padding, "dilation": layer.dilation}
    over = transposed_windows(_size(x), kernel, padding=layer.padding, **settings)
    return graph.node(
        "ConvTranspose",
        x,
        graph.parameter(layer.weight),
        *([graph.parameter(layer.bias)] if layer.bias is not None else []),
        kernel_shape=list(kernel),
        strides=list(over.stride),
        pads=[over.h.before, over.w.before, over.h.asked_after, over.w.asked_after],
        output_padding=list(pair("output_padding", layer.output_padding, 0)),
        dilations=list(pair("dilation", layer.dilation, 1)),
        group=layer.groups,
    )


@register(nn.Linear)
def _linear(graph: Graph, layer: nn.Linear, x: Value) -> Value:
    bias = [graph.parameter(layer.bias)] if layer.bias is not None else []
    return graph.node("Gemm", x, graph.parameter(layer.weight), *bias, transB=1)


@register(nn.Flatten)
def _flatten(graph: Graph, layer: nn.Flatten, x: Value) -> Value:
    return x if len(x.shape) == 2 else graph.node("Flatten", x, axis=1)


def _norm(graph: Graph, layer: Any, x: Value) -> Value:
    arrays = layer.weight, layer.bias, layer.running_mean, layer.running_var
    momentum = 0.1 if layer.momentum is None else layer.momentum  # ONNX's is the share that stays
    values = [graph.parameter(array) for array in arrays]
    return graph.node("BatchNormalization", x, *values, epsilon=layer.eps, momentum=1.0 - momentum)


register(nn.BatchNorm1d)(_norm)
register(nn.BatchNorm2d)(_norm)


@register(nn.LayerNorm)
def _layer_norm(graph: Graph, layer: nn.LayerNorm, x: Value) -> Value:
    shape = layer.normalized_shape
    weight = graph.parameter(layer.weight) or graph.constant(np.ones(shape))
    bias = [] if layer.bias is None else [graph.parameter(layer.bias)]
    return graph.node("LayerNormalization", x, weight, *bias, axis=-len(shape), epsilon=layer.eps)


@register(nn.GroupNorm)
def _group_norm(graph: Graph, layer: nn.GroupNorm, x: Value) -> Value:
    weight, bias = graph.parameter(layer.weight), graph.parameter(layer.bias)
    count = layer.num_channels
    if graph.opset >= 21 and len(x.shape) > 2:
        weight = weight or graph.constant(np.ones(count))
        bias = bias or graph.constant(np.zeros(count))
        return graph.node("GroupNormalization", x, weight, bias, num_groups=layer.num_groups, epsilon=layer.eps)
    groups = graph.node("Reshape", x, graph.integers(0, layer.num_groups, -1))
    one, zero = graph.constant(np.ones(layer.num_groups)), graph.constant(np.zeros(layer.num_groups))
    normal = graph.node("InstanceNormalization", groups, one, zero, epsilon=layer.eps)
    y = graph.node("Reshape", normal, graph.integers(0, *(int(size or 0) for size in x.shape[1:])))
    if weight is None or bias is None:
        return y
    per_channel = graph.integers(-1, *(1,) * (len(x.shape) - 2))
    y = graph.node("Mul", y, graph.node("Reshape", weight, per_channel))
    return graph.node("Add", y, graph.node("Reshape", bias, per_channel))


# --- pooling ----------------------------------------------------------------------------------------------------------


@register(nn.MaxPool2d)
def _max_pool(graph: Graph, layer: nn.MaxPool2d, x: Value) -> Value:
    over = windows(
        _size(x),
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        ceil_mode=layer.ceil_mode,
    )
    pads = _pads(over)
    if max(over.h.before, over.h.after) >= over.h.kernel or max(over.w.before, over.w.after) >= over.w.kernel:
        # Runtimes take padding below the kernel alone, dilated or not.
        x = _padded(graph, x, over, float("-inf"))
        pads = [0, 0, 0, 0]
    return graph.node(
        "MaxPool",
        x,
        kernel_shape=list(over.kernel),
        strides=list(over.stride),
        pads=pads,
        dilations=list(pair("dilation", layer.dilation, 1)),
    )


@register(nn.AvgPool2d)
def _avg_pool(graph: Graph, layer: nn.AvgPool2d, x: Value) -> Value:
    over = windows(_size(x), layer.kernel_size, stride=layer.stride, padding=layer.padding, ceil_mode=layer.ceil_mode)
    asked = any(axis.before or axis.asked_after for axis in (over.h, over.w))
    pads, counts = _pads(over), layer.count_include_pad and asked
    if counts and (over.h.after > over.h.asked_after or over.w.after > over.w.asked_after):
        # Padding counts, what ceil_mode adds does not: the one becomes pixels, the other padding.
        x = _padded(graph, x, over, 0.0)
        pads, counts = [0, 0, over.h.after - over.h.asked_after, over.w.after - over.w.asked_after], False
    return graph.node(
        "AveragePool",
        x,
        kernel_shape=list(over.kernel),
        strides=list(over.stride),
        pads=pads,
        count_include_pad=int(counts),
    )


def _padded(graph: Graph, x: Value, over: Windows, value: float) -> Value:
    """Return x with its padding, without what `ceil_mode` adds where the value is to count."""

    def after(axis: Axis) -> int:
        return axis.after if value else axis.asked_after

    sizes = graph.integers(0, 0, over.h.before, over.w.before, 0, 0, after(over.h), after(over.w))
    return graph.node("Pad", x, sizes, graph.constant(value), mode="constant")


@register(nn.GlobalAvgPool2d)
def _global_avg_pool(graph: Graph, layer: nn.GlobalAvgPool2d, x: Value) -> Value:
    return graph.node("GlobalAveragePool", x)


# --- other sizes ------------------------------------------------------------------------------------------------------


@register(nn.AdaptiveAvgPool2d)
def _adaptive_avg_pool(graph: Graph, layer: nn.AdaptiveAvgPool2d, x: Value) -> Value:
    sizes = _size(x)
    wanted = layer.output_size if isinstance(layer.output_size, tuple | list) else (layer.output_size,) * 2
    outs = [size if out is None else int(out) for size, out in zip(sizes, wanted, strict=True)]
    if outs == [1, 1]:
        return graph.node("GlobalAveragePool", x)
    if all(size % out == 0 for size, out in zip(sizes, outs, strict=True)):
        kernel = [size // out for size, out in zip(sizes, outs, strict=True)]
        return graph.node("AveragePool", x, kernel_shape=kernel, strides=kernel)
    return _resampled(graph, layer, x)


@register(nn.Upsample)
def _upsample(graph: Graph, layer: nn.Upsample, x: Value) -> Value:
    factor = layer.scale_factor
    factors = [float(each) for each in (factor if isinstance(factor, tuple | list) else (factor or 0.5,) * 2)]
    if not all(each.is_integer() for each in factors):
        return _resampled(graph, layer, x)  # where a runtime's rounding of places may choose other pixels
    where = "align_corners" if layer.align_corners else "half_pixel"
    return graph.node(
        "Resize",
        x,
        None,
        graph.constant([1.0, 1.0, *factors], "float32"),
        mode="nearest" if layer.mode == "nearest" else "linear",
        coordinate_transformation_mode="asymmetric" if layer.mode == "nearest" else where,
        nearest_mode="floor" if layer.mode == "nearest" else None,
    )


def _resampled(graph: Graph, layer: nn.Module, x: Value) -> Value:
    """Write what is linear along the height and along the width as two products with matrices."""
    height, width = _size(x)
    rows = np.eye(height).reshape(height, 1, height, 1)
    columns = np.eye(width).reshape(width, 1, 1, width)
    with use_backend("numpy"), nn.no_grad():
        down = np.asarray(layer(rows))[:, 0, :, 0].T  # (OH, H)
        along = np.asarray(layer(columns))[:, 0, 0, :]  # (W, OW)
    return graph.node("MatMul", graph.node("MatMul", graph.constant(down), x), graph.constant(along))


# --- activations ------------------------------------------------------------------------------------------------------


@register(nn.Dropout)
def _dropout(graph: Graph, layer: nn.Dropout, x: Value) -> Value:
    return x


register(nn.Dropout2d)(_dropout)


@register(nn.Identity)
def _identity(graph: Graph, layer: nn.Identity, x: Value) -> Value:
    return x


@register(nn.ReLU)
def _relu(graph: Graph, layer: nn.ReLU, x: Value) -> Value:
    return graph.node("Relu", x)


@register(nn.LeakyReLU)
def _leaky_relu(graph: Graph, layer: nn.LeakyReLU, x: Value) -> Value:
    return graph.node("LeakyRelu", x, alpha=layer.negative_slope)


@register(nn.Sigmoid)
def _sigmoid(graph: Graph, layer: nn.Sigmoid, x: Value) -> Value:
    return graph.node("Sigmoid", x)


@register(nn.Tanh)
def _tanh(graph: Graph, layer: nn.Tanh, x: Value) -> Value:
    return graph.node("Tanh", x)


@register(nn.GELU)
def _gelu(graph: Graph, layer: nn.GELU, x: Value) -> Value:
    if graph.opset >= 20:
        return graph.node("Gelu", x, approximate="none")
    error = graph.node("Erf", graph.node("Mul", x, graph.constant(0.5**0.5)))
    return graph.node("Mul", graph.node("Mul", x, graph.constant(0.5)), graph.node("Add", error, graph.constant(1.0)))


@register(nn.SiLU)
def _silu(graph: Graph, layer: nn.SiLU, x: Value) -> Value:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


@register(nn.Hardswish)
def _hardswish(graph: Graph, layer: nn.Hardswish, x: Value) -> Value:
    return graph.node("HardSwish", x)


@register(nn.ELU)
def _elu(graph: Graph, layer: nn.ELU, x: Value) -> Value:
    return graph.node("Elu", x, alpha=layer.alpha)


@register(nn.Softmax)
def _softmax(graph: Graph, layer: nn.Softmax, x: Value) -> Value:
    return graph.node("Softmax", x, axis=layer.dim)
