"""The dropout layers."""

from __future__ import annotations

from xpcnn.functional.channelwise import ChannelOp
from xpcnn.functional.dropout import Dropout2dOp, DropoutOp, check_probability
from xpcnn.nn.channelwise import ChannelLayer


class Dropout(ChannelLayer):
    """In training, drop a share p of the values and scale the rest by 1 / (1 - p); in evaluation, change nothing.

    Parameters
    ----------
    p : float
        The share dropped, from 0 to 1.
    inplace : bool
        As in `ReLU`.

    Notes
    -----
    Each call draws the key of its mask from the library's generator (`xpcnn.manual_seed`).

    Examples
    --------
    >>> layer = nn.Dropout(0.5)
    >>> layer.eval()(np.ones(3, "float32"))  # what it draws, it draws in training alone
    array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p, self.inplace = check_probability(p), inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return DropoutOp(self.p if self.training else 0.0)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"p={self.p}"


class Dropout2d(Dropout):
    """In training, drop a share p of the channels of each image whole; x is (N, C, H, W), else as `Dropout`.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.Dropout2d(0.2)(x).shape
    (2, 3, 8, 8)
    """

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return Dropout2dOp(self.p if self.training else 0.0)
