"""The sum of two paths as a part of a chain: what comes before and after it finds its numbers in the cache."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ShapeError
from xpcnn.functional.channelwise import ChannelOp, Shape


class AddOp(ChannelOp):
    """y = x + other, of one shape, batch-last; both gradients are dy, which `gradient` holds after a backward."""

    elementwise = True
    dx_is_dy = True
    passes = 3

    def __init__(self, other: Array) -> None:
        self.other = other

    def out_shape(self, shape: Shape) -> Shape:
        if shape != self.other.shape:
            body, other = ((s[-1], *s[:-1]) for s in (shape, tuple(self.other.shape)))
            raise ShapeError(
                f"shortcut: expected the body's shape {body}, got {other}; "
                "give a shortcut that changes channels and stride alike"
            )
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        backend.xp.add(x, self.other[channels], out=out)

    def make_gradient(self, backend: Backend) -> None:
        """Make the array that backward fills with dy."""
        self.gradient = backend.empty(self.other.shape, self.other.dtype)
