"""The layer that brings images to another size."""

from __future__ import annotations

from xpcnn.functional.channelwise import ChannelOp
from xpcnn.functional.resampling import upsample_op
from xpcnn.nn.channelwise import ChannelLayer


class Upsample(ChannelLayer):
    """y = x at another size, pixels repeated or interpolated; formulas and source in `functional.upsample`.

    Parameters
    ----------
    size : int or (height, width), optional
        The output size.
    scale_factor : float or (height, width), optional
        In its place: OH = floor(H * scale_factor).
    mode : str
        "nearest" or "bilinear".
    align_corners : bool, optional
        With "bilinear" alone.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.Upsample(scale_factor=2, mode="bilinear")(x).shape
    (2, 3, 16, 16)
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        super().__init__()
        upsample_op(size, scale_factor, mode, align_corners)
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return upsample_op(self.size, self.scale_factor, self.mode, self.align_corners)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        names = "size", "scale_factor", "mode", "align_corners"
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) is not None)
