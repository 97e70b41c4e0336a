"""The layer that does nothing."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.functional.identity import identity, identity_backward
from xpcnn.nn.module import Module


class Identity(Module):
    """y = x, of any shape and dtype, for where a network needs a layer that does nothing.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.Identity()(x).shape
    (2, 3, 8, 8)
    """

    def forward(self, x: Array) -> Array:
        """Return x itself."""
        y, cache = identity(x)
        self.keep(cache)
        return y

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dy itself."""
        dx = identity_backward(dy, self.take())
        return dx if input_gradient else None
