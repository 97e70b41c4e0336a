"""Calling a network that computes in float16 with what surrounds it in float32."""

from __future__ import annotations

from xpcnn.backend import Array, backend_of
from xpcnn.functional.precision import cast_batch, is_narrow
from xpcnn.nn.module import Module


def computes_in_float16(model: Module) -> bool:
    """Say whether a network has float16 parameters, and so takes and gives float16."""
    return any(is_narrow(parameter.data.dtype) for parameter in model.parameters())


def call(model: Module, x: Array, narrow: bool | None = None) -> Array:
    """Return model(x); of a float16 network too, x may be float32, and the result is.

    `narrow` is `computes_in_float16(model)` where the caller knows it.
    """
    if not (computes_in_float16(model) if narrow is None else narrow):
        return model(x)
    backend = backend_of(x)
    if x.dtype == "float32":
        x = cast_batch(backend, x, "float16")
    y = model(x)
    return cast_batch(backend, y, "float32") if is_narrow(y.dtype) else y
