"""The 2-D convolution layer."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array
from xpcnn.functional.convolution import conv2d_backward, convolve
from xpcnn.nn import init
from xpcnn.nn.module import Module
from xpcnn.nn.weights import check_channels, new_parameter
from xpcnn.windows import Padding, Size, check_windows, pair


class Conv2d(Module):
    """y[n,f] = b[f] + sum over c of w[f,c] correlated with x[n,c].

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"
    groups : int
        Divides both numbers of channels.
    bias : bool
    weight_init, bias_init : callable
        From `nn.init`, or any function of a shape; He normal and zeros by default.
    dtype : str or dtype

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels/groups, KH, KW)
    bias : Parameter (out_channels,) or None

    References
    ----------
    LeCun et al. 1998, Gradient-based learning applied to document recognition.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> layer = nn.Conv2d(3, 16, 3, padding=1)
    >>> y = layer(x)
    >>> y.shape
    (2, 16, 8, 8)
    >>> layer.backward(np.ones_like(y)).shape, layer.weight.grad.shape
    ((2, 3, 8, 8), (16, 3, 3, 3))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        weight_init: init.Initializer = init.he_normal,
        bias_init: init.Initializer = init.zeros,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        kernel = pair("kernel_size", kernel_size, 1)
        check_windows(kernel, stride=stride, padding=padding, dilation=dilation)
        in_channels, out_channels = check_channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = new_parameter("weight", weight_init, (out_channels, in_channels // groups, *kernel), dtype)
        self.bias = new_parameter("bias", bias_init, (out_channels,), dtype) if bias else None

    def forward(self, x: Array) -> Array:
        """Return y (N, F, OH, OW) for x (N, C, H, W)."""
        return self.forward_with_sums(x, False)[0]

    def forward_with_sums(self, x: Array, with_sums: bool = True) -> tuple[Array, Array | None]:
        """Return y, and what the backend has summed up of it for a batch norm that follows, or None."""
        y, cache, sums = convolve(
            x,
            self.weight.data,
            None if self.bias is None else self.bias.data,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            with_sums=with_sums,
        )
        self.keep(cache)
        return y, sums

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx (N, C, H, W) for dy (N, F, OH, OW)."""
        dx, dweight, dbias = conv2d_backward(
            dy,
            self.take(),
            input_gradient=input_gradient,
            weight_gradient=self._learns(),
            dweight=self.weight.gradient_target(),
            dbias=None if self.bias is None else self.bias.gradient_target(),
        )
        if dweight is not None:
            self.weight.accumulate(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.accumulate(dbias)
        return dx

    def _learns(self) -> bool:
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        """Return those of one image: every output value takes C/groups*KH*KW."""
        return self.weight.size * y_shape[2] * y_shape[3]

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        f, c, kh, kw = self.weight.shape
        return f"{c * self.groups}, {f}, ({kh}, {kw}), stride={self.stride}, padding={self.padding!r}"
