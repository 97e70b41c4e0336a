"""How each layer of `nn` is written in ONNX's operators, as evaluation mode computes it.

Windows are written with the padding that they have on the input at hand, for what "same" and `ceil_mode` come to is not
read alike everywhere.
"""

from __future__ import annotations

from typing import Any

from xpcnn import nn
from xpcnn.onnx.graph import Graph, Value
from xpcnn.onnx.registry import register
from xpcnn.windows import Axis, Windows, pair, windows


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


# --- activations ------------------------------------------------------------------------------------------------------


@register(nn.Dropout)
def _dropout(graph: Graph, layer: nn.Dropout, x: Value) -> Value:
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


@register(nn.Softmax)
def _softmax(graph: Graph, layer: nn.Softmax, x: Value) -> Value:
    return graph.node("Softmax", x, axis=layer.dim)
