"""Pooling layers."""

from __future__ import annotations

from xpcnn.functional.channelwise import ChannelOp
from xpcnn.functional.pooling import GLOBAL_AVG_POOL, avg_pool_op, max_pool_op
from xpcnn.functional.resampling import OutputSize, adaptive_avg_pool_op, check_output_size
from xpcnn.nn.channelwise import ChannelLayer
from xpcnn.windows import Padding, Size, check_windows


class MaxPool2d(ChannelLayer):
    """y = maximum of every window; arguments as for `functional.max_pool2d`.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.MaxPool2d(2)(x).shape
    (2, 3, 4, 4)
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode
        check_windows(kernel_size, stride=self.stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return max_pool_op(self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return (
            f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(ChannelLayer):
    """y = mean of every window; arguments as for `functional.avg_pool2d`.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.AvgPool2d(3, stride=2, padding=1)(x).shape
    (2, 3, 4, 4)
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode, self.count_include_pad = padding, ceil_mode, count_include_pad
        check_windows(kernel_size, stride=self.stride, padding=padding, ceil_mode=ceil_mode)

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return avg_pool_op(self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return (
            f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, ceil_mode={self.ceil_mode}, "
            f"count_include_pad={self.count_include_pad}"
        )


class GlobalAvgPool2d(ChannelLayer):
    """y = mean over height and width: (N, C, H, W) to (N, C, 1, 1).

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.GlobalAvgPool2d()(x).shape
    (2, 3, 1, 1)
    """

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return GLOBAL_AVG_POOL


class AdaptiveAvgPool2d(ChannelLayer):
    """y = means over windows that share out the image: (N, C, H, W) to (N, C, OH, OW), whatever H and W.

    Parameters
    ----------
    output_size : int, or (height, width) of which None keeps the input's

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.AdaptiveAvgPool2d(3)(x).shape
    (2, 3, 3, 3)
    """

    def __init__(self, output_size: OutputSize) -> None:
        super().__init__()
        check_output_size(output_size)
        self.output_size = output_size

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return adaptive_avg_pool_op(check_output_size(self.output_size))

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"{self.output_size}"
