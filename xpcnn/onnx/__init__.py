"""ONNX files: models out, for phones, browsers and C++, and models in, to run and to train on.

Needs the library onnx: `pip install ".[onnx]"`.
"""

from xpcnn.onnx.exporting import export
from xpcnn.onnx.loading import load
from xpcnn.onnx.registry import register

__all__ = ["export", "load", "register"]
