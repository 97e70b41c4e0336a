"""The geometry of sliding windows, once, for convolution and pooling: sizes, padding, and which pixels a tap meets.

A window of `kernel` taps moves over the image by `stride`; tap k of output o reads pixel `o*stride + k*dilation -
padding`, and nothing where that lies outside the image. Everything here is plain integers: no arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import Any, Literal, TypeVar, cast

from xpcnn.errors import DTypeError, ShapeError

F = TypeVar("F", bound=Callable[..., Any])
Size = int | tuple[int, int]
Padding = Size | tuple[tuple[int, int], tuple[int, int]] | Literal["same", "valid"]


def pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """Return `value` as (height, width), each `least` or more."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ShapeError(f"{name}: expected an integer or (height, width), got {value!r}")
    return integer(name, both[0], least), integer(name, both[1], least)


def integer(name: str, value: Any, least: int) -> int:
    """Return `value` as an integer of `least` or more."""
    try:
        number = operator.index(value)
    except TypeError:
        raise DTypeError(f"{name}: expected integers, got {value!r}") from None
    if number < least or isinstance(value, bool):
        raise ShapeError(f"{name}: expected {least} or more, got {value!r}")
    return number


def remembers_geometry(function: F) -> F:
    """Make a function of sizes keep its results; it takes lists for tuples."""
    # True is 1 to a cache that does not look at types
    remembering = lru_cache(maxsize=1024, typed=True)(function)

    @wraps(function)
    def call(*sizes: Any) -> Any:
        try:
            return remembering(*sizes)
        except TypeError:  # a list cannot be a key
            plain = tuple(map(_plain, sizes))
            return (remembering if _is_hashable(plain) else function)(*plain)

    return cast("F", call)


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@dataclass(frozen=True)
class Axis:
    """One direction of a window: sizes in pixels, output size in windows."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    out: int
    asked_after: int = 0  # padding without what ceil_mode adds

    @property
    def extent(self) -> int:
        """How many pixels a window spans."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def transposed(self) -> Axis | None:
        """The windows over the outputs whose taps give the pixels' gradients; None where they do not line up."""
        before, after = self.extent - 1 - self.before, self.extent - 1 - self.after
        if self.stride != 1 or before < 0 or after < 0:
            return None
        return Axis(self.out, self.kernel, 1, self.dilation, before, after, self.size)

    def overlap(self, tap: int, first: int, last: int) -> tuple[slice, slice]:
        """Return which of the windows `first` to `last` meet the image with this tap, and the pixels they meet.

        The first slice counts from `first`; both are empty where no window does.
        """
        shift = tap * self.dilation - self.before
        low = max(first, -(shift // self.stride) if shift < 0 else 0)
        high = min(last, (self.size - 1 - shift) // self.stride + 1)
        if high <= low:
            return slice(0, 0), slice(0, 0)
        pixel = low * self.stride + shift
        return slice(low - first, high - first), slice(pixel, pixel + (high - low - 1) * self.stride + 1, self.stride)


@dataclass(frozen=True)
class Windows:
    """The windows over an image: one `Axis` for the height, one for the width."""

    h: Axis
    w: Axis

    @cached_property
    def _hash(self) -> int:
        return hash((self.h, self.w))

    def __hash__(self) -> int:
        return self._hash

    @property
    def kernel(self) -> tuple[int, int]:
        """Taps in (height, width)."""
        return self.h.kernel, self.w.kernel

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels between windows in (height, width)."""
        return self.h.stride, self.w.stride

    @property
    def out(self) -> tuple[int, int]:
        """Windows in (height, width)."""
        return self.h.out, self.w.out

    @property
    def is_pointwise(self) -> bool:
        """Whether every window is one pixel and every pixel one window."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not self.is_padded

    @property
    def is_whole(self) -> bool:
        """Whether there is one window, and it is the image."""
        return self.kernel == (self.h.size, self.w.size) and not self.is_padded

    @property
    def is_padded(self) -> bool:
        """Whether any side is padded."""
        return bool(self.h.before or self.h.after or self.w.before or self.w.after)

    @property
    def is_inside(self) -> bool:
        """Whether every window lies inside the image."""
        return all(
            not axis.before and (axis.out - 1) * axis.stride + axis.extent <= axis.size for axis in (self.h, self.w)
        )

    @cached_property
    def transposed(self) -> Windows | None:
        """The windows of a convolution of the outputs that gives the pixels' gradients (see `Axis.transposed`)."""
        h, w = self.h.transposed, self.w.transposed
        return None if h is None or w is None else Windows(h, w)

    @property
    def gather_pays(self) -> bool:
        """Whether there are not many more pixels than windows: else to work for every pixel costs too much."""
        return 2 * self.h.size * self.w.size < 3 * self.h.out * self.w.out

    def taps(self) -> list[tuple[int, int]]:
        """Return every (row, column) of a window, row by row."""
        return [(i, j) for i in range(self.h.kernel) for j in range(self.w.kernel)]


@lru_cache(maxsize=1024)
def _axis(name: str, size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int], ceil: bool) -> Axis:
    before, after = padding
    room = size + before + after - ((kernel - 1) * dilation + 1)
    if room < 0:
        raise ShapeError(
            f"kernel_size: expected a window of at most the padded {name} {size + before + after}, "
            f"got {(kernel - 1) * dilation + 1} (kernel {kernel}, dilation {dilation}); pad more or take a smaller one"
        )
    out = room // stride + 1
    if ceil and room % stride and out * stride < size + before:
        out += 1  # the far edge is padded, but no window lies wholly in that padding
        after += stride - room % stride
    return Axis(size, kernel, stride, dilation, before, after, out, padding[1])


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """ONNX's SAME_UPPER: output = ceil(size / stride), the odd pixel at the far edge."""
    total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


def windows(
    size: tuple[int, int],
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Windows:
    """Return the windows over an image of `size` (height, width).

    Parameters
    ----------
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"
    ceil_mode : bool
        Keep a last window that reaches over the far edge, as long as it begins inside the image or its near padding.

    Raises
    ------
    ShapeError
        A size is out of range, or the window is larger than the padded image.
    DTypeError
        A size is no integer.
    """
    return _windows(size, kernel_size, stride, padding, dilation, ceil_mode)


def transposed_windows(
    out: tuple[int, int],
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Windows:
    """Return the windows over the image that a transposed convolution makes: `out` (height, width) of them.

    The image has (out - 1) * stride - padding on both sides + dilation * (kernel - 1) + output_padding + 1 pixels; the
    last `output_padding` belong to no window.

    Parameters
    ----------
    kernel_size, stride, output_padding, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)) or "valid"

    Raises
    ------
    ShapeError
        A size is out of range, no pixel is left, or `output_padding` is not below the stride or the dilation.
    DTypeError
        A size is no integer.
    """
    return _transposed_windows(out, kernel_size, stride, padding, output_padding, dilation)


@remembers_geometry
def _transposed_windows(
    out: tuple[int, int], kernel_size: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any
) -> Windows:
    kernels, strides = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
    dilations, extras = pair("dilation", dilation, 1), pair("output_padding", output_padding, 0)
    if padding == "same":
        raise ShapeError('padding: expected integers or "valid" for a transposed convolution, got "same"')
    axes = []
    for i, (name, pads) in enumerate(zip(("height", "width"), _sides(padding), strict=True)):
        if extras[i] >= max(strides[i], dilations[i]):
            raise ShapeError(
                f"output_padding: expected less than the stride {strides[i]} or the dilation {dilations[i]}, "
                f"got {extras[i]}"
            )
        extent = (kernels[i] - 1) * dilations[i] + 1
        size = (out[i] - 1) * strides[i] + extent - sum(pads) + extras[i]
        if size < 1:
            raise ShapeError(
                f"padding: expected less than the {name} of the unpadded result, {size + sum(pads)}, got {sum(pads)} "
                "on both sides together"
            )
        # Windows reach the padding behind the image only as far as no pixels were added there.
        axes.append(Axis(size, kernels[i], strides[i], dilations[i], pads[0], pads[1] - extras[i], out[i], pads[1]))
    return Windows(axes[0], axes[1])


def _sides(padding: Any) -> list[tuple[int, int]]:
    """Return ((top, bottom), (left, right)) for any padding but "same"."""
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if isinstance(padding, str):
        raise ShapeError(f'padding: expected integers, "same" or "valid", got {padding!r}')
    if isinstance(padding, tuple) and any(isinstance(side, tuple) for side in padding):
        if len(padding) != 2:
            raise ShapeError(f"padding: expected ((top, bottom), (left, right)), got {padding!r}")
        return [pair("padding", side, 0) for side in padding]
    return [(side, side) for side in pair("padding", padding, 0)]


def check_windows(
    kernel_size: Size, *, stride: Size = 1, padding: Padding = 0, dilation: Size = 1, ceil_mode: bool = False
) -> Windows:
    """Raise what `windows` raises for arguments that fit no image; return the windows over a smallest one."""
    pairs = zip(pair("kernel_size", kernel_size, 1), pair("dilation", dilation, 1), strict=True)
    height, width = (reach * (kernel - 1) + 1 for kernel, reach in pairs)
    return windows((height, width), kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)


@remembers_geometry
def _windows(size: tuple[int, int], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Windows:
    kernels = pair("kernel_size", kernel_size, 1)
    strides = pair("stride", stride, 1)
    dilations = pair("dilation", dilation, 1)
    if padding == "same":
        pads = [_same(*axis) for axis in zip(size, kernels, strides, dilations, strict=True)]
    else:
        pads = _sides(padding)
    axes = [
        _axis(name, *sizes, pads[i], ceil)
        for i, (name, *sizes) in enumerate(zip(("height", "width"), size, kernels, strides, dilations, strict=True))
    ]
    return Windows(axes[0], axes[1])
