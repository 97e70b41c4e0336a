"""The ONNX graph of a model while it is written: values with names and shapes, nodes, arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.nn import Module, Parameter
from xpcnn.onnx.library import onnx

BATCH = "N"  # what files call the first axis, which is of any length


class Value(NamedTuple):
    """An array of the graph.

    Attributes
    ----------
    name : str
    shape : tuple
        Its first entry is None for the batch, which is of any length.
    dtype : dtype or None
        None for the model's.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: Any = None


Exporter = Callable[["Graph", Any, Value], Value]


class Node:
    """One operation: its operator, the names of its inputs ("" for one left out) and outputs, its attributes."""

    __slots__ = ("attributes", "inputs", "name", "op_type", "outputs")

    def __init__(self, op_type: str, name: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]):
        self.op_type, self.name, self.inputs, self.outputs, self.attributes = op_type, name, inputs, outputs, attributes


class Graph:
    """What an exporter writes to; see `register`.

    Attributes
    ----------
    opset : int
        The version of ONNX's operators that the file is for, 18 to 21.
    dtype : dtype
        Of the model.
    """

    def __init__(self, model: Module, input_shape: tuple[int, ...], dtype: Any, opset: int, find: Any) -> None:
        self.opset, self.dtype = opset, np.dtype(dtype)
        self.nodes: list[Node] = []
        self.arrays: dict[str, Any] = {}
        self.input = Value("input", (None, *input_shape))
        self._find: Callable[[Module], Exporter] = find
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._arrays_by_id: dict[int, tuple[str, Array]] = {}
        for name, parameter in model.named_parameters():
            self._arrays_by_id[id(parameter)] = name, parameter.data
        for name, array in model.named_buffers():
            self._arrays_by_id[id(array)] = name, array
        self._model, self._path = model, ""
        self._names = {self.input.name, "output", *(name for name, _ in self._arrays_by_id.values())}

    # --- what exporters call ----------------------------------------------------------------------------------------

    def layer(self, module: Module, x: Value) -> Value:
        """Write a layer inside of the one at work, and return its result."""
        before = self._path
        self._path = self._paths.get(id(module), f"{before}.{type(module).__name__}".lstrip("."))
        try:
            return self._find(module)(self, module, x)
        finally:
            self._path = before

    def node(self, op_type: str, *inputs: Value | None, **attributes: Any) -> Value:
        """Write an operation of ONNX's and return its result; attributes that are None are left out.

        Raises
        ------
        ShapeError
            Its inputs do not fit.
        """
        return self.several(op_type, inputs, 1, attributes)[0]

    def several(
        self, op_type: str, inputs: Sequence[Value | None], count: int, attributes: Mapping[str, Any]
    ) -> list[Value]:
        """Write an operation of several results, and return them."""
        name = self._new_name(f"{self._path}/{op_type}" if self._path else op_type)
        names = [name, *(self._new_name(f"{name}.{i}") for i in range(1, count))]
        given = {key: value for key, value in attributes.items() if value is not None}
        node = Node(op_type, name, ["" if x is None else x.name for x in inputs], names, given)
        results = self._results_of(node, inputs)
        self.nodes.append(node)
        return results

    def parameter(self, value: Parameter | Array | None) -> Value | None:
        """Return a parameter or buffer of the model as a value with its own name; None for None."""
        if value is None:
            return None
        name, array = self._arrays_by_id[id(value)]
        self.arrays[name] = self._host(array)
        return Value(name, tuple(self.arrays[name].shape))

    def constant(self, value: Any, dtype: Any = None) -> Value:
        """Return an array of the host as a value, by default of the model's dtype."""
        array = np.asarray(value, self.dtype if dtype is None else dtype)
        name = self._new_name(f"{self._path}/constant" if self._path else "constant")
        self.arrays[name] = array
        return Value(name, tuple(array.shape), array.dtype)

    def integers(self, *values: int) -> Value:
        """Return numbers as a value (K,) of int64, as ONNX takes shapes and axes."""
        return self.constant(values, np.int64)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _host(self, array: Array) -> Any:
        return np.asarray(backend_of(array).to_numpy(array), order="C")

    def copy_name(self, name: str) -> str:
        """Return a new name for a copy of an array."""
        return self._new_name(name)

    def _new_name(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._names:
            name, number = f"{stem}_{number}", number + 1
        self._names.add(name)
        return name

    def attributes_of(self, op_type: str) -> set[str]:
        """Return the names of an operator's attributes."""
        return set(onnx().defs.get_schema(op_type, self.opset, "").attributes)

    def proto(self, node: Node) -> Any:
        """Return a node as the library has it."""
        return onnx().helper.make_node(node.op_type, node.inputs, node.outputs, name=node.name, **node.attributes)

    def _results_of(self, node: Node, inputs: Sequence[Value | None]) -> list[Value]:
        """Return a node's results with their shapes and types."""
        if node.op_type == "GroupNormalization" and inputs[0] is not None:  # of which the library infers nothing
            return [Value(node.outputs[0], inputs[0].shape)]
        library = onnx()
        helper = library.helper
        types: Any = {}
        data: dict[str, Any] = {}
        for x in inputs:
            if x is None:
                continue
            array = self.arrays.get(x.name)
            own = self.dtype if x.dtype is None else np.dtype(x.dtype)
            kind = helper.np_dtype_to_tensor_dtype(own if array is None else array.dtype)
            dims = [BATCH if size is None else size for size in x.shape]
            types[x.name] = helper.make_tensor_type_proto(kind, dims)
            if array is not None and (array.dtype.kind == "i" or array.size <= 8):
                data[x.name] = library.numpy_helper.from_array(array, x.name)
        schema = library.defs.get_schema(node.op_type, self.opset, "")
        try:
            found = library.shape_inference.infer_node_outputs(
                schema, self.proto(node), types, data, opset_imports=[helper.make_opsetid("", self.opset)]
            )
            types = [found[name].tensor_type for name in node.outputs]
        except Exception as error:  # the library has several classes for it
            reason = " ".join(str(error).split())
            raise ShapeError(
                f"{node.name}: expected inputs that fit, got {[x and x.shape for x in inputs]} ({reason:.200})"
            ) from error
        results = []
        for name, each in zip(node.outputs, types, strict=True):
            shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in each.shape.dim)
            results.append(Value(name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(each.elem_type))))
        return results

    def finish(self, result: Value) -> Value:
        """Call the last value "output", and return it."""
        if result.name == self.input.name or result.name in self.arrays:
            result = self.node("Identity", result)
        for node in self.nodes:
            node.inputs = ["output" if name == result.name else name for name in node.inputs]
            node.outputs = ["output" if name == result.name else name for name in node.outputs]
        return Value("output", result.shape)

    def drop_unread(self) -> None:
        """Drop arrays that no node reads."""
        read = {name for node in self.nodes for name in node.inputs}
        self.arrays = {name: array for name, array in self.arrays.items() if name in read}


def check_opset(opset: Any) -> int:
    """Return the opset; raise ConfigError unless it is 18 to 21."""
    if isinstance(opset, bool) or opset not in range(18, 22):
        raise ConfigError(f"opset: expected 18 to 21, which onnxruntime 1.20 and later read, got {opset!r}")
    return int(opset)
