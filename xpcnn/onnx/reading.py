"""From the bytes of a file to its nodes: checked, constants folded, what the result does not need left out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from xpcnn.datasets.formats import PEEK, describe
from xpcnn.errors import DataError, XpcnnError
from xpcnn.onnx.library import onnx
from xpcnn.onnx.operators import OPERATORS, Call
from xpcnn.onnx.recognition import Node
from xpcnn.onnx.tensors import Tensors

SUPPORTED = ("Constant", *OPERATORS)
ROOM = 1 << 16  # bytes that folded constants may take beyond twice the file's own
# Numbers of these come from the file's own arrays, and keep their names.
_RENAMED = ("Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze")


class Graph:
    """A file's graph.

    Attributes
    ----------
    nodes : list of Node
        In the file's order, without those whose result is known.
    constants : dict of str to array
    stored : set of str
        Constants that are arrays of the file, or one of them turned about: what a training may change.
    input, outputs : str, list of str
    sizes : list of int or None
        Of the input, None for any; or None where the file does not say.
    on_host : set of str
        Values that come of shapes alone.
    batched : set of str
        Values whose first axis is the batch.
    floats : set of str
        Values that are floating numbers.
    """

    def __init__(self, source: str, content: bytes) -> None:
        self.source, self.tensors = source, Tensors(source)
        self.nodes: list[Node] = []
        self.constants: dict[str, Any] = {}
        self.stored: set[str] = set()
        self.names: dict[str, str] = {}  # of a folded array: that of the array which it comes of
        self.on_host: set[str] = set()
        self.ndims: dict[str, int | None] = {}
        self._aliases: dict[str, str] = {}
        self._room = 2 * len(content) + ROOM
        proto = self._parse(content)
        self.version = self._opset(proto)
        self._read(proto.graph)

    # --- the file -----------------------------------------------------------------------------------------------------

    def _parse(self, content: bytes) -> Any:
        library = onnx()
        found = describe(content[:PEEK])
        try:
            proto = library.ModelProto.FromString(content)
            if proto.HasField("graph") and proto.ir_version > 0:
                return proto
            reason = "it has no graph"
        except Exception as error:  # of protobuf, which is not imported here
            reason = " ".join(str(error).split())[:80]
        if found:
            raise DataError(f"{self.source}: expected an ONNX file, got {found}")
        raise DataError(f"{self.source}: expected an ONNX file, got a damaged one or another ({reason})")

    def _opset(self, proto: Any) -> int:
        versions = [each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")]
        newest = onnx().defs.onnx_opset_version()
        if not versions or not 1 <= versions[0] <= newest:
            raise DataError(f"{self.source}: expected operators of version 1 to {newest}, got {versions or 'none'}")
        return int(versions[0])

    def _read(self, graph: Any) -> None:
        self._check_words(*(each.name for part in (graph.initializer, graph.input, graph.output) for each in part))
        for tensor in graph.initializer:
            if not tensor.name or tensor.name in self.constants:
                raise self.damaged(f"expected arrays with names of their own, got {tensor.name!r:.40}")
            self.constants[tensor.name] = self.tensors.array(tensor)
            self.stored.add(tensor.name)
        if len(graph.sparse_initializer):
            raise DataError(f"{self.source}: it holds sparse arrays, which are not supported")
        inputs = [each for each in graph.input if each.name not in self.constants]
        if len(inputs) != 1:
            names = ", ".join(f"{each.name:.40}" for each in inputs[:5])
            raise DataError(f"{self.source}: expected a model of one input, got {len(inputs)}: {names or 'none'}")
        self.input, self.sizes = inputs[0].name, self._sizes(inputs[0])
        self.outputs = [each.name for each in graph.output]
        self.floats = {self.input} if inputs[0].type.tensor_type.elem_type in (1, 10, 11) else set()
        self.batched = {self.input}
        self.ndims[self.input] = None if self.sizes is None else len(self.sizes)
        self.known = {self.input, *self.constants}
        for node in graph.node:
            with self.explained(node):
                self._add(node)
        self.outputs = [self._aliases.get(name, name) for name in self.outputs]
        for name in self.outputs:
            if name not in self.known:
                raise self.damaged(f"expected outputs that a node gives, got {name!r:.40}")
        if not self.outputs:
            raise self.damaged("it has no output")
        self._drop_unread()

    def _sizes(self, value: Any) -> list[int | None] | None:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            return None
        sizes = [int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
        if len(sizes) > 8:
            raise self.damaged(f"expected an input of at most 8 axes, got {len(sizes)}")
        return sizes

    def damaged(self, reason: str) -> DataError:
        """Return the error that says so."""
        return DataError(f"{self.source}: damaged: {reason}")

    def refused(self, node: Any, reason: str) -> DataError:
        """Return the error that names a node."""
        op, outputs = (node.op, node.outputs) if isinstance(node, Node) else (node.op_type, node.output)
        name = node.name or next((each for each in outputs if each), "")
        return DataError(f"{self.source}: node {name!r:.80} ({op:.40}): {reason}")

    def _check_words(self, *words: Any) -> None:
        """Refuse names that are no text: protobuf gives them as bytes."""
        for word in words:
            if not isinstance(word, str) or "\n" in word:
                raise self.damaged(f"expected names that are text, got {word[:40]!r}")

    @contextlib.contextmanager
    def explained(self, node: Any) -> Iterator[None]:
        """Turn what numbers that do not fit a node lead to into the error that names it."""
        try:
            yield
        except XpcnnError as error:
            text = str(error)
            if text.startswith(self.source):
                raise
            raise self.refused(node, text) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self.refused(node, f"its numbers do not fit ({' '.join(str(error).split())[:80]})") from error

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _add(self, proto: Any) -> None:
        words = (proto.op_type, proto.domain, proto.name, *proto.input, *proto.output)
        self._check_words(*words, *(each.name for each in proto.attribute))
        if proto.domain not in ("", "ai.onnx") or proto.op_type not in SUPPORTED:
            domain = f" of {proto.domain:.40}" if proto.domain not in ("", "ai.onnx") else ""
            known = ", ".join(SUPPORTED)
            raise self.refused(proto, f"operator {proto.op_type:.40}{domain} is not supported; supported are {known}")
        inputs = [self._aliases.get(name, name) for name in proto.input]
        for name in inputs:
            if name and name not in self.known:
                raise self.refused(proto, f"expected inputs of nodes before it, got {name!r:.40}")
        for name in proto.output:
            if name and name in self.known:
                raise self.refused(proto, f"expected results with names of their own, got {name!r:.40}")
        self.known.update(proto.output)
        attributes = self.tensors.attributes(proto)
        node = Node(proto.op_type, proto.name, inputs, list(proto.output), attributes, self.version)
        if not node.outputs:
            raise self.refused(proto, "it has no result")
        if node.op == "Constant":
            self.constants[node.outputs[0]] = self._constant(node)
        elif node.op == "Identity" and inputs and inputs[0] in self.constants:  # as PyTorch writes equal arrays
            self.constants[node.outputs[0]] = self.constants[inputs[0]]
            self.stored.update(node.outputs[:1] if inputs[0] in self.stored else ())
        elif node.op == "Identity" and inputs and inputs[0] and node.outputs[0] not in self.outputs:
            self._aliases[node.outputs[0]] = inputs[0]
        elif all(name in self.constants for name in inputs if name):
            self._fold(node)
        else:
            self._keep(node)

    def _constant(self, node: Node) -> Any:
        for name, kind in (("value", None), ("value_float", "float32"), ("value_floats", "float32"),
                           ("value_int", "int64"), ("value_ints", "int64")):  # fmt: skip
            if name in node.attributes:
                value = node.attributes[name]
                if kind is None and not isinstance(value, np.ndarray):
                    break
                return value if kind is None else np.asarray(value, kind)
        raise self.refused(node, "expected an array, a number or numbers")

    def _fold(self, node: Node) -> None:
        """Compute a node whose inputs are all known, within memory that the file's own size justifies."""
        arrays = [self.constants[name] if name else None for name in node.inputs]
        self._room -= _bytes_of(node, arrays)
        if self._room < 0:
            raise self.refused(node, "its result is larger than a file of this size justifies")
        with np.errstate(all="ignore"):
            call = Call(node.attributes, node.version, len(node.outputs), None)
            result, _ = OPERATORS[node.op].function(call, *arrays)
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                self.constants[name] = np.asarray(value)
        first = node.inputs[0] if node.inputs else ""
        if node.op in _RENAMED and first in self.stored:
            self.stored.add(node.outputs[0])
            self.names[node.outputs[0]] = self.names.get(first, first)

    def _keep(self, node: Node) -> None:
        for i, name in enumerate(node.inputs):
            if name in self.constants:
                node.constants[i] = self.constants[name]
            elif name and i in OPERATORS[node.op].host and name not in self.on_host:
                raise self.refused(node, f"its input {i} comes of the values of the model's input, not of shapes alone")
        node.ndim = self.ndims.get(node.inputs[0]) if node.inputs else None
        on_host = node.op in ("Shape", "Size") or all(node.inputs[i] in self.on_host for i in node.moving())
        if on_host:
            self.on_host.update(name for name in node.outputs if name)
        if node.inputs and not on_host and self._keeps_batch(node):
            self.batched.update(node.outputs)
        if self._gives_floats(node):
            self.floats.update(node.outputs)
        for name in node.outputs:
            self.ndims[name] = self._ndim(node)
        self.nodes.append(node)

    def _keeps_batch(self, node: Node) -> bool:
        """Whether the first axis of a node's results is the batch."""
        if not any(node.inputs[i] in self.batched for i in node.moving()):
            return False
        axes = node.constants.get(1) if len(node.inputs) > 1 else node.get("axes")
        ndim = max(1, node.ndim or 1)
        match node.op:
            case "Transpose":
                return bool((node.get("perm") or [1])[0] == 0)
            case "Reshape":
                shape = node.constants.get(1, node.get("shape"))
                first = None if shape is None or not np.size(shape) else int(np.asarray(shape).reshape(-1)[0])
                return first is None or first in (0, -1) or first == (self.sizes or [None])[0]
            case "Flatten":
                return bool(node.get("axis", 1) != 0)
            case "Gather" | "Concat" | "Split":
                return bool(node.get("axis", 0) % ndim != 0)
            case "Squeeze" | "Unsqueeze":
                return axes is not None and 0 not in [int(each) % ndim for each in np.asarray(axes).reshape(-1)]
        if node.op.startswith("Reduce"):
            return axes is not None and 0 not in [int(each) % ndim for each in np.asarray(axes).reshape(-1)]
        return True

    def _gives_floats(self, node: Node) -> bool:
        if node.op == "Cast":
            return node.get("to") in (1, 10, 11)
        return any(name in self.floats for name in node.inputs) and node.op not in ("Shape", "Size", "ArgMax")

    def ndim_of(self, name: str) -> int | None:
        """Return how many axes a value has; None where that is not known."""
        return self.constants[name].ndim if name in self.constants else self.ndims.get(name)

    def _ndim(self, node: Node) -> int | None:
        """Return how many axes a node's results have."""
        ndim = self.ndim_of(node.inputs[0])
        match node.op:
            case "Flatten" | "Gemm":
                return 2
            case "Shape":
                return 1
            case "Reshape":
                shape = node.constants.get(1) if len(node.inputs) > 1 else node.get("shape")
                return None if shape is None else int(np.size(shape))
            case "Squeeze" | "Unsqueeze":
                axes = node.constants.get(1) if len(node.inputs) > 1 else node.get("axes")
                if axes is None or ndim is None:
                    return None
                return ndim + int(np.size(axes)) * (1 if node.op == "Unsqueeze" else -1)
            case "Gather":
                indices = node.constants.get(1)
                return None if ndim is None or indices is None else ndim - 1 + np.ndim(indices)
            case "ArgMax":
                return ndim if ndim is None or node.get("keepdims", 1) else ndim - 1
            case "Expand" | "MatMul" | "Where" | "Tile":
                ndims = [self.ndim_of(name) for name in node.inputs]
                return ndim if set(ndims) == {2} else None
        if node.op.startswith("Reduce"):
            axes = node.constants.get(1) if len(node.inputs) > 1 else node.get("axes")
            if ndim is None or node.get("keepdims", 1):
                return ndim
            return None if axes is None else ndim - int(np.size(axes))
        known = [self.ndim_of(name) for name in node.inputs if name]
        if node.op in ("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Max", "Min", "Mean"):
            return None if None in known else max(each for each in known if each is not None)
        return ndim

    def _drop_unread(self) -> None:
        read = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if read.intersection(name for name in node.outputs if name):
                read.update(name for name in node.inputs if name)
                node.outputs = [name if name in read else "" for name in node.outputs]
                while not node.outputs[-1] and node.op != "Split":  # whose results are counted
                    node.outputs.pop()
                kept.append(node)
        self.nodes = kept[::-1]


def _bytes_of(node: Node, arrays: list[Any]) -> int:
    """Return how many bytes the result of a node may take."""
    given: list[Any] = [each for each in arrays if each is not None]
    item = max([8 if node.op in ("Cast", "Shape", "Range") else 1, *(int(each.itemsize) for each in given)])
    sizes = [int(each.size) for each in given]
    match node.op:
        case "ConstantOfShape":
            return 8 * _product(given[0])
        case "Expand":
            return item * math.prod(np.broadcast_shapes(given[0].shape, tuple(int(n) for n in given[1].reshape(-1))))
        case "Tile":
            return item * sizes[0] * _product(given[1])
        case "Range":
            start, limit, delta = (float(each.reshape(-1)[0]) for each in given)
            return int(8 * max(0.0, math.ceil((limit - start) / delta)))
        case "Gather":
            return item * max(1, sizes[0]) * max(1, sizes[1])
        case "Concat":
            return item * sum(sizes)
        case "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "Cast" | "Slice" | "Shape" | "Split":
            return item * sizes[0]
    if len(given) > 1 and all(each.ndim <= 8 for each in given):
        if node.op in ("MatMul", "Gemm"):
            return item * sizes[0] * (int(given[1].shape[-1]) if given[1].ndim else 1)
        if node.op in _ELEMENTWISE:
            return item * math.prod(np.broadcast_shapes(*(each.shape for each in given)))
    if node.op in _ELEMENTWISE or node.op.startswith("Reduce") or (len(given) == 1 and node.op in _ONE):
        return item * max(sizes, default=1)
    raise DataError("it is not computed from numbers of the file alone")


def _product(array: Any) -> int:
    return math.prod(max(0, int(n)) for n in array.reshape(-1))


_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Pow", "Sum", "Max", "Min", "Mean", "Where", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "And", "Or", "PRelu", "Clip",
)  # fmt: skip
_ONE = (
    "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Sign", "Not", "Identity", "Erf", "Relu",
    "Sigmoid", "Tanh", "Softplus", "Softmax", "Size",
)  # fmt: skip
