"""`export`: a model in evaluation mode as an ONNX file, checked before it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import xpcnn
from xpcnn.data.description import describe_transform
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.nn import Module, no_grad
from xpcnn.onnx import layers, rewriting  # noqa: F401  (they register the library's own)
from xpcnn.onnx.folding import fold_batch_norm
from xpcnn.onnx.graph import BATCH, Graph, Value, check_opset
from xpcnn.onnx.library import onnx
from xpcnn.onnx.registry import find
from xpcnn.training.files import write_bytes
from xpcnn.windows import integer

LARGEST = (1 << 31) - 1  # bytes: a protobuf message ends there


def export(
    model: Module,
    input_shape: Sequence[int],
    path: str | os.PathLike[str],
    *,
    opset: int = 21,
    fold: bool = False,
    classes: Sequence[str] | None = None,
    transform: Any = None,
) -> None:
    """Write a model, as it computes in evaluation mode, to an ONNX file.

    The file has an input "input" (N, *input_shape) with a free batch size, an output "output", and arrays with the
    names of `state_dict`. It is checked by ONNX's own checker, and written whole or not at all.

    Parameters
    ----------
    model : Module
        float32 or float64 (of which onnxruntime has no convolutions on a CPU); stays as it is. Layers of your own: see
        `register`.
    input_shape : (C, H, W) or (D,)
        Of one sample; the sizes of images are fixed in the file.
    path : str or os.PathLike
    opset : int
        18 to 21. 21, with files of IR version 10, is what onnxruntime reads from 1.20 (November 2024) on.
    fold : bool
        Whether batch norm goes into the convolution or dense layer before it. Folded files are smaller and faster in
        plain runtimes; from one that is not, `load` gives back a model that trains on with batch norm.
    classes : sequence of str, optional
        Names of the classes, kept in the file's metadata under "classes" as JSON.
    transform : optional
        What is done to images beforehand, kept under "transform" as JSON: one of `xpcnn.data`, or plain values.

    Raises
    ------
    ConfigError
        `model` is no module or has a layer that cannot be written, `opset` is another, or onnx is not installed.
    ShapeError, DTypeError
        `input_shape` does not fit the model, or the model is float16.
    DataError
        The file cannot be written; what was there before is untouched.
    """
    if not isinstance(model, Module):
        raise ConfigError(f"model: expected an instance of xpcnn.nn.Module, got {type(model).__name__}")
    write_bytes(path, to_bytes(model, input_shape, opset=opset, fold=fold, classes=classes, transform=transform))


def to_bytes(
    model: Module,
    input_shape: Sequence[int],
    *,
    opset: int = 21,
    fold: bool = False,
    classes: Sequence[str] | None = None,
    transform: Any = None,
) -> bytes:
    """Return what `export` writes."""
    library = onnx()
    try:
        shape = tuple(integer("input_shape", size, 1) for size in input_shape)
    except TypeError:
        raise ShapeError(f"input_shape: expected (C, H, W) or (D,), got {input_shape!r:.80}") from None
    dtype = _dtype(model)
    graph = Graph(model, shape, dtype, check_opset(opset), find)
    expected = _output_shape(model, shape, dtype)
    output = graph.finish(graph.layer(model, graph.input))
    if len(output.shape) != len(expected) or any(
        size not in (None, wanted) for size, wanted in zip(output.shape[1:], expected[1:], strict=True)
    ):
        raise ShapeError(f"model: expected an output of shape {expected}, got {output.shape} from what was written")
    if fold:
        fold_batch_norm(graph)
    graph.drop_unread()
    proto = _proto(graph, Value(output.name, (None, *expected[1:])), _metadata(classes, transform))
    if proto.ByteSize() > LARGEST:
        raise ConfigError(f"model: expected at most {LARGEST} bytes, which an ONNX file can hold, got more")
    library.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def _dtype(model: Module) -> str:
    found = sorted({str(parameter.data.dtype) for parameter in model.parameters()}) or ["float32"]
    if len(found) > 1 or found[0] not in ("float32", "float64"):
        raise DTypeError(
            f"model: expected float32 or float64 parameters, got {' and '.join(found)}; "
            "take copy.deepcopy(model).float()"
        )
    return found[0]


def _output_shape(model: Module, shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """Return what the model makes of one sample; an input that does not fit ends here, with the layer's own error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with no_grad():
            return tuple(model(model.backend.zeros((1, *shape), dtype)).shape)
    finally:
        for module, training in modes:
            module.training = training


def _metadata(classes: Sequence[str] | None, transform: Any) -> dict[str, str]:
    found = {}
    if classes is not None:
        names = [classes] if isinstance(classes, str) else list(classes)
        if not names or any(not isinstance(name, str) for name in names) or isinstance(classes, str):
            raise ConfigError(f"classes: expected names of classes, got {classes!r:.80}")
        found["classes"] = json.dumps(names, ensure_ascii=False)
    if transform is not None:
        plain = describe_transform(transform) if callable(transform) else transform
        try:
            found["transform"] = json.dumps(plain, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"transform: expected a transform or what JSON can hold, got {transform!r:.80}"
            ) from error
    return found


def _proto(graph: Graph, output: Value, metadata: dict[str, str]) -> Any:
    library = onnx()
    helper = library.helper

    def declared(value: Value) -> Any:
        dims = [BATCH if i == 0 else size for i, size in enumerate(value.shape)]
        return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(graph.dtype), dims)

    proto = helper.make_model(
        helper.make_graph(
            [graph.proto(node) for node in graph.nodes],
            "xpcnn",
            [declared(graph.input)],
            [declared(output)],
            [library.numpy_helper.from_array(array, name) for name, array in graph.arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", graph.opset)],
        producer_name="xpcnn",
        producer_version=xpcnn.__version__,
    )
    proto.ir_version = 8 if graph.opset == 18 else 9 if graph.opset < 21 else 10
    helper.set_model_props(proto, metadata)
    return proto
