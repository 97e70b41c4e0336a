"""ONNX's operators over an array module, each with its gradient: what a file holds beyond the layers of `nn`."""

from xpcnn.onnx.operators import elementwise, normalization, reductions, resize, shapes, windows  # noqa: F401
from xpcnn.onnx.operators.registry import OPERATORS, Call, Operator

__all__ = ["OPERATORS", "Call", "Operator"]
