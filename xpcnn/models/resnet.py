"""ResNets for small images (He et al. 2015, arXiv:1512.03385, section 4.2): 6k + 2 layers, for k of 3, 5 and 9."""

from __future__ import annotations

from xpcnn.errors import ConfigError
from xpcnn.models.sizes import check_sizes
from xpcnn.nn import (
    AvgPool2d,
    BatchNorm2d,
    ChannelPad,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    Module,
    ReLU,
    Residual,
    Sequential,
)
from xpcnn.windows import Size

STAGES = 16, 32, 64  # filters


def resnet20(
    *, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32, shortcut: str = "projection"
) -> Sequential:
    """Return ResNet-20 for images (N, in_channels, 32, 32), or of any other size.

    | layer | output for 32x32 |
    |---|---|
    | conv 16@3x3, BN, ReLU | 16x32x32 |
    | three blocks of 16 filters | 16x32x32 |
    | three blocks of 32, the first with stride 2 | 32x16x16 |
    | three blocks of 64, the first with stride 2 | 64x8x8 |
    | global mean, classes | classes |

    A block is conv 3x3, BN, ReLU, conv 3x3, BN, and the sum with its input is followed by ReLU. For 10 classes it has
    269,722 parameters with the paper's shortcuts (its table 6: 0.27 million), and 272,474 with projections.

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        Any: the net ends in a mean over the image.
    shortcut : str
        Where a stage changes the size: "padding", every second pixel and channels of zeros (the paper's option A), or
        "projection", a 1x1 convolution with batch norm (option B).

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.resnet20()
    >>> sum(parameter.size for parameter in model.parameters())
    272474
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    check_sizes("resnet20", num_classes, in_channels, image_size)
    return _resnet(3, num_classes, in_channels, shortcut)


def resnet32(
    *, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32, shortcut: str = "padding"
) -> Sequential:
    """Return ResNet-32: `resnet20` with five blocks a stage.

    464,154 parameters for 10 classes (the paper's table 6: 0.46 million), 466,906 with projections.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.resnet32()
    >>> sum(parameter.size for parameter in model.parameters())
    464154
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    check_sizes("resnet32", num_classes, in_channels, image_size)
    return _resnet(5, num_classes, in_channels, shortcut)


def resnet56(
    *, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32, shortcut: str = "padding"
) -> Sequential:
    """Return ResNet-56: `resnet20` with nine blocks a stage.

    853,018 parameters for 10 classes (the paper's table 6: 0.85 million), 855,770 with projections.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.resnet56()
    >>> sum(parameter.size for parameter in model.parameters())
    853018
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    check_sizes("resnet56", num_classes, in_channels, image_size)
    return _resnet(9, num_classes, in_channels, shortcut)


def _resnet(blocks: int, num_classes: int, in_channels: int, shortcut: str) -> Sequential:
    """Return the network of so many blocks a stage."""
    if shortcut not in ("padding", "projection"):
        raise ConfigError(f'shortcut: expected "padding" or "projection", got {shortcut!r}')
    layers: list[Module] = [Conv2d(in_channels, STAGES[0], 3, padding=1, bias=False), BatchNorm2d(STAGES[0]), ReLU()]
    channels = STAGES[0]
    for filters in STAGES:
        for _ in range(blocks):
            layers += [_block(channels, filters, shortcut), ReLU()]
            channels = filters
    return Sequential(*layers, GlobalAvgPool2d(), Flatten(), Linear(channels, num_classes))


def _block(channels: int, filters: int, shortcut: str) -> Residual:
    stride = 1 if channels == filters else 2
    body = Sequential(
        Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False),
        BatchNorm2d(filters),
        ReLU(),
        Conv2d(filters, filters, 3, padding=1, bias=False),
        BatchNorm2d(filters),
    )
    if stride == 1:
        return Residual(body)
    if shortcut == "padding":
        more = (filters - channels) // 2
        return Residual(body, Sequential(AvgPool2d(1, stride=2), ChannelPad(more, more)))
    return Residual(body, Sequential(Conv2d(channels, filters, 1, stride=stride, bias=False), BatchNorm2d(filters)))
