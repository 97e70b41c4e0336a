"""U-Net, a class for each pixel (Ronneberger et al. 2015, arXiv:1505.04597)."""

from __future__ import annotations

from xpcnn.errors import ShapeError
from xpcnn.models.sizes import check_sizes
from xpcnn.nn import BatchNorm2d, Concat, Conv2d, ConvTranspose2d, Identity, MaxPool2d, Module, ReLU, Sequential
from xpcnn.windows import Size, integer


def unet(
    *,
    num_classes: int = 2,
    in_channels: int = 1,
    image_size: Size = 512,
    width: int = 64,
    depth: int = 4,
    batch_norm: bool = False,
) -> Sequential:
    """Return U-Net for images (N, in_channels, H, W): logits (N, num_classes, H, W).

    | level | on the way down | on the way up |
    |---|---|---|
    | 1 | two conv 64@3x3, pool 2 | beside what went down: two conv 64@3x3; conv classes@1x1 |
    | 2 | two conv 128@3x3, pool 2 | two conv 128@3x3, up-conv 64@2x2 |
    | 3 | two conv 256@3x3, pool 2 | two conv 256@3x3, up-conv 128@2x2 |
    | 4 | two conv 512@3x3, pool 2 | two conv 512@3x3, up-conv 256@2x2 |
    | 5 | two conv 1024@3x3 | up-conv 512@2x2 |

    Each 3x3 convolution is followed by ReLU; an up-conv is a transposed one of stride 2. 31,030,658 parameters, as the
    paper's; but convolutions are padded, where the paper's lose their border and what went down is cropped.

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        Multiples of 2^depth: what comes up must meet what went down.
    width : int
        Filters of the first level; each level has twice as many.
    depth : int
        Poolings.
    batch_norm : bool
        Whether batch norm follows each 3x3 convolution, which then has no bias.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.unet(image_size=32, width=8, depth=2)
    >>> model(np.zeros((1, 1, 32, 32), "float32")).shape
    (1, 2, 32, 32)
    """
    height, wide = check_sizes("unet", num_classes, in_channels, image_size)
    integer("width", width, 1)
    multiple = 2 ** integer("depth", depth, 1)
    if height % multiple or wide % multiple:
        raise ShapeError(
            f"image_size: unet expects multiples of {multiple}, for {depth} poolings halve them, got {height}x{wide}; "
            "resize or pad the images, or give a smaller depth"
        )
    level = Sequential(*_two_convolutions(width << (depth - 1), width << depth, batch_norm))
    for i in range(depth - 1, -1, -1):
        filters = width << i
        below = Sequential(MaxPool2d(2), level, ConvTranspose2d(2 * filters, filters, 2, stride=2))
        level = Sequential(
            *_two_convolutions(in_channels if i == 0 else filters // 2, filters, batch_norm),
            Concat(Identity(), below),
            *_two_convolutions(2 * filters, filters, batch_norm),
        )
    return level.append(Conv2d(width, num_classes, 1))


def _two_convolutions(channels: int, filters: int, batch_norm: bool) -> list[Module]:
    layers: list[Module] = []
    for inputs in (channels, filters):
        layers.append(Conv2d(inputs, filters, 3, padding=1, bias=not batch_norm))
        layers += [BatchNorm2d(filters), ReLU()] if batch_norm else [ReLU()]
    return layers
