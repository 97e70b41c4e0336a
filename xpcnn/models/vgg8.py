"""A VGG-like network for small images (after Simonyan and Zisserman 2014, arXiv:1409.1556)."""

from __future__ import annotations

from xpcnn.models.sizes import check_sizes, halved
from xpcnn.nn import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from xpcnn.windows import Size

STAGES = 64, 128, 256  # filters of the two convolutions before each pooling


def vgg8(*, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32) -> Sequential:
    """Return the network for images (N, in_channels, 32, 32), or others of 8x8 or more.

    | layer | output for 32x32 |
    |---|---|
    | conv 64@3x3, conv 64@3x3, pool 2 | 64x16x16 |
    | conv 128@3x3, conv 128@3x3, pool 2 | 128x8x8 |
    | conv 256@3x3, conv 256@3x3, pool 2 | 256x4x4 |
    | classes | classes |

    Each convolution has padding 1 and no bias, and is followed by batch norm and ReLU. 1,187,274 parameters by default.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.vgg8()
    >>> sum(parameter.size for parameter in model.parameters())
    1187274
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    height, width = halved(check_sizes("vgg8", num_classes, in_channels, image_size, least=8), 3)
    layers: list[Module] = []
    channels = in_channels
    for filters in STAGES:
        for _ in range(2):
            layers += [Conv2d(channels, filters, 3, padding=1, bias=False), BatchNorm2d(filters), ReLU()]
            channels = filters
        layers.append(MaxPool2d(2))
    return Sequential(*layers, Flatten(), Linear(channels * height * width, num_classes))
