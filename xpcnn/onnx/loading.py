"""`load`: an ONNX file as a model that runs, is evaluated and trains on."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

from xpcnn.datasets.source import read_file
from xpcnn.nn import Module, Sequential
from xpcnn.onnx.fusing import fuse
from xpcnn.onnx.network import Network, Step
from xpcnn.onnx.operation import MOVING, Operation
from xpcnn.onnx.operators import OPERATORS
from xpcnn.onnx.reading import Graph
from xpcnn.onnx.recognition import Node, recognise

_LEARNED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "PRelu", "BatchNormalization",
            "InstanceNormalization", "LayerNormalization", "GroupNormalization")  # fmt: skip
_WEIGHED = tuple(op for op in _LEARNED if op not in ("Add", "Mul"))
_CALLED = ("input", "weight", "bias", "running_mean", "running_var")
_FIXED = {"BatchNormalization": (3, 4)}  # running statistics


def load(path: str | os.PathLike[str]) -> Module:
    """Read an ONNX file as a model on the active backend, in evaluation mode.

    A plain row of layers becomes a `Sequential` of the layers of `nn`, so that they can be looked at, replaced and
    frozen; another graph becomes a module whose layers have the names of the file's arrays ("conv1.weight" gives
    "conv1"). What `nn` has no layer of runs as ONNX's operator, with its gradient. A file of a fixed batch size takes
    any.

    Parameters
    ----------
    path : str or os.PathLike
        Of a model of one input. Arrays outside of the file must lie in files beside it.

    Returns
    -------
    Module
        With parameters where the file has the weights of convolutions, products, norms, and arrays that are added or
        multiplied; other arrays of the file are buffers. `train()` lets it train on.

    Raises
    ------
    DataError
        The file is missing or damaged, or has an operator that is not supported: the error names it, its node, and all
        that are.
    ConfigError
        The library onnx is not installed.
    """
    source = os.fspath(path)
    graph = Graph(source, read_file(path, "ONNX file"))
    fuse(graph)
    return _Builder(graph).build().eval()


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: dict[str, Module] = {}
        self.steps: list[Step] = []
        self._made: dict[Any, str] = {}
        self._numbers: Counter[str] = Counter()
        batch = None if not graph.sizes else graph.sizes[0]
        self.batch = batch

    def build(self) -> Module:
        graph = self.graph
        for node in graph.nodes:
            self._add(node)
        self._join_rows()
        first = self.steps[0] if self.steps else None
        ndim = None if graph.sizes is None else len(graph.sizes)
        if (
            first is not None
            and len(self.steps) == 1
            and first.inputs == (graph.input,)
            and list(first.outputs) == graph.outputs
            and len(graph.outputs) == 1
            and not first.on_host
        ):
            return Sequential(*(self.layers[name] for name in first.layers))
        if not self.steps and graph.outputs == [graph.input]:
            return Sequential()
        known = {name: graph.constants[name] for name in graph.outputs if name in graph.constants}
        return Network(self.layers, self.steps, graph.input, graph.outputs, ndim, known)

    def _add(self, node: Node) -> None:
        graph = self.graph
        on_host = all(name in graph.on_host for name in node.outputs if name)
        inputs = tuple(node.inputs[i] for i in node.moving())
        key = self._key(node)
        name = self._made.get(key) if key is not None else None
        if name is None:
            with graph.explained(node):
                floats = not on_host and inputs[0] not in graph.on_host and inputs[0] in graph.floats
                layer = recognise(node) if floats else None
                layer = self._operation(node) if layer is None else layer
            name = self._name(node, layer)
            self.layers[name] = layer
            if key is not None:
                self._made[key] = name
        self.steps.append(Step((name,), inputs, tuple(node.outputs), on_host))

    def _key(self, node: Node) -> Any:
        """Return what nodes share that are one layer, used twice; None for those without a matrix of the file.

        Exporters write equal arrays once: norms that nobody has trained yet are alike, and yet several.
        """
        if not any(array.ndim > 1 for array in node.constants.values()):
            return None
        known = tuple((i, node.inputs[i]) for i in sorted(node.constants))
        if not any(name in self.graph.stored for _, name in known):
            return None
        return node.op, known, repr(sorted(node.attributes.items())), len(node.inputs)

    def _operation(self, node: Node) -> Operation:
        graph = self.graph
        learned: list[int] = []
        names: list[str] = []
        fixed = (*OPERATORS[node.op].host, *_FIXED.get(node.op, ()))
        places: list[Any] = []
        for i, name in enumerate(node.inputs):
            places.append(node.constants.get(i, MOVING if name else None))
            own = re.split(r"[./:]", graph.names.get(name, name))[-1]
            names.append(_CALLED[i] if node.op in _WEIGHED and i < len(_CALLED) else own)
            array = node.constants.get(i)
            if array is None or name not in graph.stored or i in fixed or node.op not in _LEARNED:
                continue
            if array.dtype.kind == "f" and array.size > 1:
                learned.append(i)
        batch = self.batch if node.inputs and node.inputs[0] in graph.batched else None
        return Operation(node.op, node.attributes, node.version, places, names, learned, len(node.outputs), batch)

    def _name(self, node: Node, layer: Module) -> str:
        """Return a name for a layer: that which its arrays have in the file, else the node's."""
        graph = self.graph
        arrays = [graph.names.get(node.inputs[i], node.inputs[i]) for i in sorted(node.constants) if node.inputs[i]]
        stems = [name.rpartition(".")[0] for name in arrays if name.endswith((".weight", ".bias", ".running_mean"))]
        number = self._numbers[node.op]
        self._numbers[node.op] += 1
        stem = stems[0] if stems else ""
        if not stem and layer.state_dict():
            stem = re.sub(r"[^\w.]+", "_", node.name).strip("_.")
        stem = stem or f"{node.op.lower()}{number}"
        name, count = stem, 1
        while name in self.layers or not name:
            name, count = f"{stem}_{count}", count + 1
        return name

    def _join_rows(self) -> None:
        """Make one step of layers in a row, each of which takes the one before's result, and nobody else does."""
        reads = Counter(name for step in self.steps for name in step.inputs)
        reads.update(self.graph.outputs)
        joined: list[Step] = []
        at: dict[str, int] = {}  # value -> the step that ends in it
        for step in self.steps:
            previous = at.get(step.inputs[0]) if self._runs_in_a_row(step) else None
            if previous is not None and reads[step.inputs[0]] == 1 and self._runs_in_a_row(joined[previous]):
                before = joined[previous]
                joined[previous] = Step((*before.layers, *step.layers), before.inputs, step.outputs)
                at[step.outputs[0]] = previous
            else:
                joined.append(step)
                at.update(dict.fromkeys(step.outputs, len(joined) - 1))
        self.steps = joined

    def _runs_in_a_row(self, step: Step) -> bool:
        return (
            len(step.inputs) == len(step.outputs) == 1 and not step.on_host and step.inputs[0] not in self.graph.on_host
        )
