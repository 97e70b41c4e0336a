"""Batch norm that goes into the convolution or product before it: w' = w gamma / sqrt(var + eps)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from xpcnn.onnx.graph import Graph, Node

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norm(graph: Graph) -> None:
    """Fold each batch norm whose input is a product's result and nothing else reads that.

    Arrays keep the names of the product's own; one that several nodes read is left, and the node gets a copy.
    """
    made = {name: node for node in graph.nodes for name in node.outputs}
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        product = made.get(norm.inputs[0])
        if product is None or product.op_type not in _PRODUCTS or reads[norm.inputs[0]] != 1:
            continue
        _fold(graph, product, norm, reads)
        graph.nodes.remove(norm)
        product.outputs = norm.outputs
        made[norm.outputs[0]] = product


def _fold(graph: Graph, product: Node, norm: Node, reads: Counter[str]) -> None:
    weight = graph.arrays[product.inputs[1]]
    bias = graph.arrays[product.inputs[2]] if len(product.inputs) > 2 else np.zeros((), weight.dtype)
    gamma, beta, mean, variance = (graph.arrays[name].astype(np.float64) for name in norm.inputs[1:5])
    scale = gamma / np.sqrt(variance + norm.attributes["epsilon"])
    folded = _scaled(product, weight.astype(np.float64), scale)
    _put(graph, product, 1, folded.astype(weight.dtype), reads)
    _put(graph, product, 2, ((bias - mean) * scale + beta).astype(weight.dtype), reads)


def _scaled(product: Node, weight: Any, scale: Any) -> Any:
    if product.op_type != "ConvTranspose":
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    groups = product.attributes["group"]
    parts = weight.reshape(groups, -1, *weight.shape[1:])  # (G, C/G, F/G, KH, KW)
    return (parts * scale.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)


def _put(graph: Graph, product: Node, place: int, array: Any, reads: Counter[str]) -> None:
    weight = product.inputs[1]
    if len(product.inputs) == place:
        product.inputs.append("")
    name = product.inputs[place] or weight.removesuffix(".weight") + ".bias"
    if reads[name] > 1 or (not product.inputs[place] and name in graph.arrays):
        name = graph.copy_name(name)
    graph.arrays[name] = np.ascontiguousarray(array)
    product.inputs[place] = name
