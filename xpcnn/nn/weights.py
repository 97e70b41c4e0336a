"""How a layer makes its parameters: drawn on the host, moved to the active backend."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import get_backend
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.nn.init import Initializer
from xpcnn.nn.parameter import Parameter


def new_parameter(name: str, initializer: Initializer, shape: tuple[int, ...], dtype: Any) -> Parameter:
    """Return a parameter of `shape` on the active backend with values from `initializer`."""
    backend = get_backend()
    values = backend.asarray(initializer(shape), dtype)
    if tuple(values.shape) != tuple(shape):
        raise ShapeError(f"{name}: expected initial values of shape {tuple(shape)}, got {tuple(values.shape)}")
    if values.dtype.kind != "f":
        raise DTypeError(f"dtype: expected a floating type such as float32, got {values.dtype}")
    return Parameter(values, name)
