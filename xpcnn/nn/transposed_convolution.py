"""The transposed 2-D convolution layer."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array
from xpcnn.functional.transposed_convolution import conv_transpose2d, conv_transpose2d_backward
from xpcnn.nn import init
from xpcnn.nn.module import Module
from xpcnn.nn.weights import check_channels, new_parameter
from xpcnn.windows import Padding, Size, pair, transposed_windows


class ConvTranspose2d(Module):
    """Every pixel of x lays down the filters of its channel, `stride` apart; y is their sum: upsampling that learns.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)) or "valid"
        What is cut off the result.
    output_padding : int or (height, width)
        Rows and columns added to its far edges; less than the stride or the dilation.
    groups : int
        Divides both numbers of channels.
    bias : bool
    weight_init, bias_init : callable
        From `nn.init`, or any function of a shape; He normal and zeros by default.
    dtype : str or dtype

    Attributes
    ----------
    weight : Parameter (in_channels, out_channels/groups, KH, KW)
    bias : Parameter (out_channels,) or None

    References
    ----------
    Zeiler et al. 2010, Deconvolutional networks; Dumoulin and Visin 2016, arXiv:1603.07285, chapter 4.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.ConvTranspose2d(3, 5, 2, stride=2)(x).shape
    (2, 5, 16, 16)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        weight_init: init.Initializer = init.he_normal,
        bias_init: init.Initializer = init.zeros,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        kernel = pair("kernel_size", kernel_size, 1)
        sizes = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        transposed_windows(_LARGE, kernel, **sizes)  # type: ignore[arg-type]
        in_channels, out_channels = check_channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.groups, self.dilation = groups, dilation
        self.weight = new_parameter("weight", weight_init, (in_channels, out_channels // groups, *kernel), dtype)
        self.bias = new_parameter("bias", bias_init, (out_channels,), dtype) if bias else None

    def forward(self, x: Array) -> Array:
        """Return y (N, F, OH, OW) for x (N, C, H, W)."""
        y, cache = conv_transpose2d(
            x,
            self.weight.data,
            None if self.bias is None else self.bias.data,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            groups=self.groups,
            dilation=self.dilation,
        )
        self.keep(cache)
        return y

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx (N, C, H, W) for dy (N, F, OH, OW)."""
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        dx, dweight, dbias = conv_transpose2d_backward(
            dy, self.take(), input_gradient=input_gradient, weight_gradient=learns
        )
        if dweight is not None:
            self.weight.accumulate(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.accumulate(dbias)
        return dx

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        """Return those of one image: every input value takes F/groups*KH*KW."""
        return self.weight.size * x_shape[2] * x_shape[3]

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        sizes = f"{self.kernel_size}, stride={self.stride}, padding={self.padding!r}"
        return f"{self.in_channels}, {self.out_channels}, {sizes}, output_padding={self.output_padding}"


_LARGE = (1 << 20, 1 << 20)  # pixels: whatever is cut off such an image leaves some of it
