"""How models that came from a file are written to one again: their operators as they were, at the new file's opset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpcnn.errors import ConfigError
from xpcnn.nn import no_grad
from xpcnn.onnx.graph import Graph, Value
from xpcnn.onnx.network import Network
from xpcnn.onnx.operation import Operation
from xpcnn.onnx.registry import register

# Attributes of older operators that are inputs now, and their places.
_PLACES = {"axes": 1, "split": 1, "shape": 1, "pads": 1, "value": 2, "min": 1, "max": 2, "starts": 1, "ends": 2}
_CHANGED = {"Upsample": 10, "Resize": 11, "Softmax": 13, "LogSoftmax": 13, "GroupNormalization": 21}


@register(Operation)
def _operation(graph: Graph, layer: Operation, x: Value) -> Value:
    return write(graph, layer, [x])[0]


def write(graph: Graph, layer: Operation, moving: Sequence[Value]) -> list[Value]:
    """Write an operation of some values, and return its results.

    Raises
    ------
    ConfigError
        What it does is said otherwise in operators of the new file's opset.
    """
    op, since = layer.operator, _CHANGED.get(layer.operator, 0)
    if since > layer.version or op == "Upsample" or (op == "GroupNormalization" and graph.opset < 21):
        raise ConfigError(
            f"model: expected operators that opset {graph.opset} has too, got {op} of opset {layer.version}"
        )
    if op == "Dropout":
        return list(moving[:1])
    if op == "Gelu" and graph.opset < 20:
        raise ConfigError(f"opset: expected 20 or more for {op}, got {graph.opset}")
    values, rest = layer.values(), iter(moving)
    inputs: list[Value | None] = []
    for i in range(layer.count):
        if i in layer.moving:
            inputs.append(next(rest))
        elif i in values and isinstance(values[i], np.ndarray) and i in layer.hosts:
            inputs.append(graph.constant(_target(layer, values[i]), values[i].dtype))
        else:
            inputs.append(graph.parameter(values.get(i)))
    attributes = {name: value for name, value in layer.attributes.items() if (op, name) != ("Reshape", "allowzero")}
    known = graph.attributes_of(op)
    for name in [name for name in attributes if name not in known]:
        value = attributes.pop(name)
        if name not in _PLACES:
            continue  # such as `consumed_inputs`, which meant nothing
        place = 3 if (op, name) == ("Slice", "axes") else _PLACES[name]
        inputs += [None] * (place + 1 - len(inputs))
        scalar = isinstance(value, float)
        inputs[place] = graph.constant(value, graph.dtype if scalar else np.int64)
    if op == "Split" and len(inputs) == 1:
        attributes.setdefault("num_outputs", layer.outputs)
    return graph.several(op, inputs, layer.outputs, attributes)


def _target(layer: Operation, array: Any) -> Any:
    """Return an array of the host, with a free batch in the place of a file's fixed one."""
    if layer.operator == "Reshape" and layer.batch is not None and array.size and array.reshape(-1)[0] == layer.batch:
        array = array.copy()
        array.reshape(-1)[0] = 0  # as the input has it
    return array


@register(Network)
def _network(graph: Graph, network: Network, x: Value) -> Value:
    if len(network.outputs) != 1:
        raise ConfigError(f"model: expected one output, got {len(network.outputs)}")
    backend = network.backend
    with no_grad():
        sizes = network.shapes(backend.zeros((1, *(int(size or 1) for size in x.shape[1:])), str(graph.dtype)))
    values = {network.input: x}
    for step in network.steps:
        given = [values[name] for name in step.inputs]
        layers = [network.layer(name) for name in step.layers]
        if len(step.inputs) == 1 and isinstance(layers[0], Operation) and len(step.outputs) == 1:
            results = write(graph, layers[0], given)
            layers = layers[1:]
        elif isinstance(layers[0], Operation):
            results = write(graph, layers[0], given)
            layers = []
        else:
            results = given
        for layer in layers:
            results = [graph.layer(layer, results[0])]
        for name, value in zip(step.outputs, results, strict=False):
            shape = value.shape
            if name in sizes and name not in network.hosts and len(sizes[name]) > 1 and None in (shape[1:] or (None,)):
                shape = (None, *sizes[name][1:])
            values[name] = Value(value.name, shape, value.dtype)
    return values[network.outputs[0]]
