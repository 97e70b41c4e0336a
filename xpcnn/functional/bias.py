"""The bias of a convolution or dense layer, and its gradient."""

from __future__ import annotations

from xpcnn.backend import Array, Backend
from xpcnn.functional.primitive import primitive


@primitive
def add_bias(backend: Backend, y: Array, bias: Array) -> None:
    """Add bias (F,) to y (F, ..., N) in place."""
    backend.xp.add(y, bias.reshape(-1, *(1,) * (y.ndim - 1)), out=y)


@primitive
def channel_sums(backend: Backend, dy: Array) -> Array:
    """Return the sum of dy (F, ..., N) over all but its first axis."""
    return backend.row_sums(dy.reshape(dy.shape[0], -1))
