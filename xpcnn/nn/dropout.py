"""The dropout layer."""

from __future__ import annotations

from xpcnn import random
from xpcnn.backend import Array, backend_of, get_backend
from xpcnn.functional.channelwise import ChannelOp
from xpcnn.functional.dropout import DropoutOp, check_probability
from xpcnn.nn.channelwise import ChannelLayer


class Dropout(ChannelLayer):
    """In training, drop a share p of the values and scale the rest by 1 / (1 - p); in evaluation, change nothing.

    Parameters
    ----------
    p : float
        The share dropped, from 0 to 1.
    inplace : bool
        As in `ReLU`.

    Attributes
    ----------
    key : array (1,), uint32
        Names the last mask; drawn at construction, one more for each call. It lies on the backend and changes in
        place, so that a captured step moves it too.
    """

    key: Array

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p = check_probability(p)
        self.register_buffer("key", get_backend().asarray([random.draw_key()], "uint32"), persistent=False)

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        if not self.training:
            return DropoutOp(0.0, self.key)
        backend_of(self.key).xp.add(self.key, 1, out=self.key)
        return DropoutOp(self.p, self.key)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"p={self.p}"
