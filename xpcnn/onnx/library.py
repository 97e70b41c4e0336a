"""The library `onnx`, imported when it is asked for: `pip install ".[onnx]"`."""

from __future__ import annotations

import importlib
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.extras import install_line


def onnx() -> Any:
    """Return the library.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    try:
        found = importlib.import_module("onnx")
        for part in ("checker", "defs", "helper", "numpy_helper", "shape_inference"):
            importlib.import_module(f"onnx.{part}")
    except ImportError:
        raise ConfigError(f"ONNX files need the library onnx, which is not installed: {install_line('onnx')}") from None
    return found
