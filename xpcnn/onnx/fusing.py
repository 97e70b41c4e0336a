"""Nodes that together are one layer: a product and its bias, a border and its convolution, x times its sigmoid."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from xpcnn.onnx.operators.windows import auto_pad
from xpcnn.onnx.reading import Graph
from xpcnn.onnx.recognition import Node


def fuse(graph: Graph) -> None:
    """Join neighbours of a graph, where nobody else reads what lies between them."""
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    reads.update(graph.outputs)
    made: dict[str, Node] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        with graph.explained(node):
            gone = _joined(graph, node, made, reads)
        for each in gone:
            kept.remove(each)
        kept.append(node)
        made.update({name: node for name in node.outputs if name})
    graph.nodes = kept


def _joined(graph: Graph, node: Node, made: dict[str, Node], reads: Counter[str]) -> list[Node]:
    """Take into a node what comes before it; return the nodes that go."""
    moving = node.moving()
    before = [made.get(node.inputs[i]) for i in moving]
    if node.op in ("Conv", "AveragePool") and before and before[0] is not None and before[0].op == "Pad":
        pads = _border(node, before[0])
        if pads is not None and reads[node.inputs[0]] == 1:
            node.attributes["pads"], node.inputs[0] = pads, before[0].inputs[0]
            return [before[0]]
    if node.op == "Add" and len(moving) == 1 and before[0] is not None and reads[node.inputs[moving[0]]] == 1:
        return _with_bias(graph, node, before[0], 1 - moving[0])
    if node.op == "Mul" and len(moving) == 2:
        for i in (0, 1):
            gate, x = before[i], node.inputs[1 - i]
            if gate is not None and gate.op == "Sigmoid" and gate.inputs == [x] and reads[node.inputs[i]] == 1:
                node.op, node.inputs, node.attributes = "Swish", [x], {}
                return [gate]
    return []


def _border(node: Node, pad: Node) -> list[int] | None:
    """Return the padding of a convolution with the zeros before it."""
    amounts = pad.constants.get(1) if len(pad.inputs) > 1 else pad.get("pads")
    value = (
        pad.constants.get(2, pad.get("value", 0.0))
        if len(pad.inputs) < 3 or not pad.inputs[2]
        else pad.constants.get(2)
    )
    if pad.get("mode", b"constant") != b"constant" or any(pad.inputs[3:]) or amounts is None or value is None:
        return None
    given = [int(each) for each in np.asarray(amounts).reshape(-1)]
    if (
        len(given) != 8
        or given[:2] != [0, 0]
        or given[4:6] != [0, 0]
        or min(given) < 0
        or np.any(np.asarray(value) != 0)
    ):
        return None
    own = node.get("pads") or [0, 0, 0, 0]
    if auto_pad(node.call) not in ("NOTSET", "VALID") or len(own) != 4:
        return None
    if auto_pad(node.call) == "VALID":
        own = [0, 0, 0, 0]
    border = [*given[2:4], *given[6:8]]
    if node.op == "AveragePool":
        if any(own) or node.get("ceil_mode", 0):
            return None
        node.attributes["count_include_pad"] = 1
    node.attributes.pop("auto_pad", None)
    return [a + b for a, b in zip(own, border, strict=True)]


def _with_bias(graph: Graph, node: Node, product: Node, place: int) -> list[Node]:
    """Make a product of a node that adds a constant to one."""
    bias, weight = node.constants[place], product.constants.get(1)
    if weight is None or len(product.inputs) != 2 or product.moving() != [0] or node.get("broadcast"):
        return []
    if product.op == "MatMul" and product.ndim == 2 and weight.ndim == 2:
        count, shape, op = weight.shape[1], (weight.shape[1],), "Gemm"
    elif product.op == "Conv":
        count, shape, op = weight.shape[0], (weight.shape[0], *(1,) * (weight.ndim - 2)), "Conv"
    else:
        return []
    trimmed = bias.reshape(bias.shape[max(0, bias.ndim - len(shape)) :]) if _ones_before(bias, len(shape)) else bias
    if trimmed.shape != shape or bias.dtype != weight.dtype:
        return []
    name = node.inputs[place]
    node.op, node.attributes, node.ndim = op, dict(product.attributes), product.ndim
    node.name = product.name or node.name
    node.inputs = [product.inputs[0], product.inputs[1], name]
    node.constants = {1: weight, 2: trimmed.reshape(count)}
    return [product]


def _ones_before(array: Any, ndim: int) -> bool:
    return all(n == 1 for n in array.shape[: max(0, array.ndim - ndim)])
