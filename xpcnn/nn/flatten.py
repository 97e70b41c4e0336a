"""The flatten layer."""

from __future__ import annotations

import math

from xpcnn.backend import Array
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.functional.layout import batch_first, batch_last, check_images, check_like, take
from xpcnn.nn.module import Module


class Flatten(Module):
    """(N, C, H, W) to (N, C*H*W): a view, for batch-last memory is already in that order.

    Parameters
    ----------
    start_dim, end_dim : int
        1 and -1, as PyTorch has them; others are a ConfigError.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.Flatten()(x).shape
    (2, 192)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        if start_dim != 1 or end_dim != -1:
            raise ConfigError(
                f"start_dim, end_dim: expected 1 and -1, got {start_dim!r} and {end_dim!r}; the batch stays an axis"
            )
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Array) -> Array:
        """Return y (N, C*H*W)."""
        backend, x = take("x", x)
        if x.ndim not in (2, 4):
            raise ShapeError(f"x: expected shape (N, C, H, W) or (N, D), got {tuple(x.shape)}")
        if x.ndim == 4:
            check_images("x", tuple(x.shape))
        self.keep(tuple(x.shape))
        if x.ndim == 2:
            return x
        n, *rest = x.shape
        return batch_last(backend, x).reshape(math.prod(rest), n).T  # (N, C*H*W)

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx (N, C, H, W)."""
        n, *rest = self.take()
        backend, dy = take("dy", dy)
        check_like("dy", dy, (n, math.prod(rest)), dy.dtype)
        if not input_gradient:
            return None
        return batch_first(batch_last(backend, dy).reshape(*rest, n))  # (N, C, H, W)
