"""ResNets for small images (He et al. 2015, arXiv:1512.03385, section 4.2): 6k + 2 layers, for k of 3, 5 and 9."""

from __future__ import annotations

from xpcnn.models.sizes import check_sizes
from xpcnn.nn import BatchNorm2d, Conv2d, Flatten, GlobalAvgPool2d, Linear, Module, ReLU, Residual, Sequential
from xpcnn.windows import Size

STAGES = 16, 32, 64  # filters


def resnet20(*, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32) -> Sequential:
    """Return ResNet-20 for images (N, in_channels, 32, 32), or of any other size.

    | layer | output for 32x32 |
    |---|---|
    | conv 16@3x3, BN, ReLU | 16x32x32 |
    | three blocks of 16 filters | 16x32x32 |
    | three blocks of 32, the first with stride 2 | 32x16x16 |
    | three blocks of 64, the first with stride 2 | 64x8x8 |
    | global mean, classes | classes |

    A block is conv 3x3, BN, ReLU, conv 3x3, BN, and the sum with its input is followed by ReLU. Where a stage changes
    the size, the shortcut is a 1x1 convolution with batch norm (the paper's option B; its count, 0.27 million, is that
    of option A, which has no parameters there and pads channels with zeros). 272,474 parameters for 10 classes.

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        Any: the net ends in a mean over the image.
    """
    check_sizes("resnet20", num_classes, in_channels, image_size)
    return _resnet(3, num_classes, in_channels)


def resnet32(*, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32) -> Sequential:
    """Return ResNet-32: `resnet20` with five blocks a stage; 466,906 parameters for 10 classes (0.46 million)."""
    check_sizes("resnet32", num_classes, in_channels, image_size)
    return _resnet(5, num_classes, in_channels)


def resnet56(*, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32) -> Sequential:
    """Return ResNet-56: `resnet20` with nine blocks a stage; 855,770 parameters for 10 classes (0.85 million)."""
    check_sizes("resnet56", num_classes, in_channels, image_size)
    return _resnet(9, num_classes, in_channels)


def _resnet(blocks: int, num_classes: int, in_channels: int) -> Sequential:
    """Return the network of so many blocks a stage."""
    layers: list[Module] = [Conv2d(in_channels, STAGES[0], 3, padding=1, bias=False), BatchNorm2d(STAGES[0]), ReLU()]
    channels = STAGES[0]
    for filters in STAGES:
        for _ in range(blocks):
            layers += [_block(channels, filters, stride=1 if channels == filters else 2), ReLU()]
            channels = filters
    return Sequential(*layers, GlobalAvgPool2d(), Flatten(), Linear(channels, num_classes))


def _block(channels: int, filters: int, stride: int) -> Residual:
    body = Sequential(
        Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False),
        BatchNorm2d(filters),
        ReLU(),
        Conv2d(filters, filters, 3, padding=1, bias=False),
        BatchNorm2d(filters),
    )
    if channels == filters:
        return Residual(body)
    return Residual(body, Sequential(Conv2d(channels, filters, 1, stride=stride, bias=False), BatchNorm2d(filters)))
