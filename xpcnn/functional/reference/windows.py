"""Sizes, padding and windows, for convolution and pooling as plain loops."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Size: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = Size | tuple[tuple[int, int], tuple[int, int]] | Literal["same", "valid"]
Sides: TypeAlias = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))


def pair(size: Size) -> tuple[int, int]:
    """Return (height, width) of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else size


def sides(padding: Padding, shape: tuple[int, ...], kernel: Size, stride: Size, dilation: Size = 1) -> Sides:
    """Return the padding of images of shape (N, C, H, W) as ((top, bottom), (left, right)).

    "same" is ONNX's SAME_UPPER: ceil(input / stride) outputs; of an odd number of padded lines one more at the end.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        both = []
        for size, k, s, d in zip(shape[2:], pair(kernel), pair(stride), pair(dilation), strict=True):
            total = max(0, (math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size)
            both.append((total // 2, total - total // 2))
        return both[0], both[1]
    vertical, horizontal = pair(padding)  # type: ignore[arg-type]  # each a number or (before, after)
    return pair(vertical), pair(horizontal)


def output_size(size: int, kernel: int, stride: int, side: tuple[int, int], dilation: int, ceil_mode: bool) -> int:
    """Return how many windows fit along one axis.

    With `ceil_mode` a last window may reach over the end, but must start inside the image or the padding before it.
    """
    room = size + sum(side) - (dilation * (kernel - 1) + 1)
    if not ceil_mode:
        return room // stride + 1
    count = math.ceil(room / stride) + 1
    return count - 1 if (count - 1) * stride >= size + side[0] else count


class Windows:
    """The windows of a convolution over images of shape (N, C, H, W): where each lies in the padded image."""

    def __init__(self, shape: tuple[int, ...], kernel: Size, stride: Size, padding: Padding, dilation: Size) -> None:
        self.shape, self.kernel, self.stride, self.dilation = shape, pair(kernel), pair(stride), pair(dilation)
        (self.top, self.bottom), (self.left, self.right) = both = sides(padding, shape, kernel, stride, dilation)
        self.rows, self.columns = (
            output_size(shape[2 + axis], self.kernel[axis], self.stride[axis], both[axis], self.dilation[axis], False)
            for axis in (0, 1)
        )

    def pad(self, x: Array) -> Array:
        """Return x with its padding of zeros."""
        return np.pad(x, ((0, 0), (0, 0), (self.top, self.bottom), (self.left, self.right)))

    def crop(self, padded: Array) -> Array:
        """Return the image without its padding."""
        return padded[:, :, self.top : self.top + self.shape[2], self.left : self.left + self.shape[3]]

    def __call__(self, oh: int, ow: int) -> tuple[slice, slice]:
        """Return the rows and columns of the padded image that the window (oh, ow) covers."""
        first = oh * self.stride[0], ow * self.stride[1]
        last = (first[axis] + self.dilation[axis] * (self.kernel[axis] - 1) for axis in (0, 1))
        rows, columns = (slice(f, e + 1, d) for f, e, d in zip(first, last, self.dilation, strict=True))
        return rows, columns
