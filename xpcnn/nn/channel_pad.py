"""The layer that puts channels of zeros around its input's."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.functional.channel_padding import pad_channels, pad_channels_backward
from xpcnn.nn.module import Module
from xpcnn.windows import integer


class ChannelPad(Module):
    """y = [0, x, 0] along the channels, as in shortcuts without parameters.

    Parameters
    ----------
    before, after : int
        Channels of zeros.

    References
    ----------
    He et al. 2015, arXiv:1512.03385, section 3.3, option A.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.ChannelPad(1, 2)(x).shape
    (2, 6, 8, 8)
    """

    def __init__(self, before: int = 0, after: int = 0) -> None:
        super().__init__()
        self.before, self.after = integer("before", before, 0), integer("after", after, 0)

    def forward(self, x: Array) -> Array:
        """Return y (N, before + C + after, ...) for x (N, C, ...)."""
        y, cache = pad_channels(x, self.before, self.after)
        self.keep(cache)
        return y

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx (N, C, ...)."""
        dx = pad_channels_backward(dy, self.take())
        return dx if input_gradient else None

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"{self.before}, {self.after}"
