"""What a network is built to: how many classes, channels and pixels, checked once for all networks."""

from __future__ import annotations

from xpcnn.errors import ShapeError
from xpcnn.windows import Size, integer, pair, windows


def check_sizes(name: str, num_classes: int, in_channels: int, image_size: Size, least: int = 1) -> tuple[int, int]:
    """Return `image_size` as (height, width).

    Raises
    ------
    ShapeError, DTypeError
        A number is no integer of 1 or more, or images have less than `least` pixels a side, of which nothing would be
        left in the network.
    """
    integer("num_classes", num_classes, 1)
    integer("in_channels", in_channels, 1)
    height, width = pair("image_size", image_size, 1)
    if min(height, width) < least:
        raise ShapeError(
            f"image_size: {name} expects images of {least}x{least} pixels or more, for its layers would leave nothing "
            f"of less, got {height}x{width}; enlarge or pad the images, or take a smaller network"
        )
    return height, width


def halved(size: tuple[int, int], times: int = 1, *, ceil_mode: bool = False) -> tuple[int, int]:
    """Return the size of an image after so many poolings of 2x2."""
    for _ in range(times):
        size = windows(size, 2, stride=2, ceil_mode=ceil_mode).out
    return size
