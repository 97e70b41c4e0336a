"""The sum of two paths as a part of a chain: what comes before and after it finds its numbers in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ShapeError
from xpcnn.functional.channelwise import ChannelOp, Shape
from xpcnn.functional.precision import cast


def check_paths(body: Shape, other: Shape) -> None:
    """Raise ShapeError unless a body and its shortcut give one shape, (N, ...)."""
    if body != other:
        raise ShapeError(
            f"shortcut: expected the body's shape {body}, got {other}; "
            "give a shortcut that changes channels and stride alike"
        )


class AddOp(ChannelOp):
    """y = x + other, of one shape, batch-last; both gradients are dy, which `gradient` holds after a backward."""

    elementwise = True
    dx_is_dy = True
    stores_float16 = True
    passes = 3
    signature = "add"

    def __init__(self, other: Array) -> None:
        self.other = other
        self.arrays = (other,)

    @property
    def gradients(self) -> Sequence[Array]:
        """What `make_gradient` has made."""
        return (self.gradient,)

    def begin(self, backend: Backend, dtype: Any) -> None:
        """Bring `other` to the dtype that a chain computes in."""
        if self.other.dtype != dtype:
            self.other = cast(backend, self.other, dtype)
            self.arrays = (self.other,)

    def out_shape(self, shape: Shape) -> Shape:
        other = self.other.shape
        check_paths((shape[-1], *shape[:-1]), (other[-1], *other[:-1]))
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        backend.xp.add(x, self.other[channels], out=out)

    def make_gradient(self, backend: Backend) -> None:
        """Make the array that backward fills with dy."""
        self.gradient = backend.empty(self.other.shape, self.other.dtype)
