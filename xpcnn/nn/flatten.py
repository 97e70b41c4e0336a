"""The flatten layer."""

from __future__ import annotations

import math

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ShapeError
from xpcnn.functional.layout import batch_first, batch_last, check_like
from xpcnn.nn.module import Module


class Flatten(Module):
    """(N, C, H, W) to (N, C*H*W): a view, for batch-last memory is already in that order."""

    def forward(self, x: Array) -> Array:
        """Return y (N, C*H*W)."""
        if x.ndim not in (2, 4):
            raise ShapeError(f"x: expected shape (N, C, H, W) or (N, D), got {tuple(x.shape)}")
        self.keep(tuple(x.shape))
        if x.ndim == 2:
            return x
        return batch_last(backend_of(x), x).reshape(-1, x.shape[0]).T  # (N, C*H*W)

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx (N, C, H, W)."""
        n, *rest = self.take()
        check_like("dy", dy, (n, math.prod(rest)), dy.dtype)
        if not input_gradient:
            return None
        return batch_first(batch_last(backend_of(dy), dy).reshape(*rest, n))  # (N, C, H, W)
