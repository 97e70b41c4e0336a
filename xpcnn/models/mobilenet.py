"""MobileNet for small images (Howard et al. 2017, arXiv:1704.04861)."""

from __future__ import annotations

from xpcnn.errors import ConfigError
from xpcnn.models.sizes import check_sizes
from xpcnn.nn import BatchNorm2d, Conv2d, Flatten, GlobalAvgPool2d, Linear, Module, ReLU, Sequential
from xpcnn.windows import Size

# Filters and stride of each pair of convolutions, table 1 of the paper.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet(
    *, num_classes: int = 10, in_channels: int = 3, image_size: Size = 32, width: float = 1.0, stem_stride: int = 1
) -> Sequential:
    """Return MobileNet's first version for images (N, in_channels, 32, 32), or of any other size.

    A convolution is a depthwise one, a filter for each channel, and a 1x1 that mixes the channels. Each is without bias
    and followed by batch norm and ReLU. The paper's 224x224 images are halved by the first convolution too
    (`stem_stride=2`); 32x32 ones are not.

    | layer | output for 32x32 |
    |---|---|
    | conv 32@3x3 | 32x32x32 |
    | depthwise 3x3, conv 64@1x1 | 64x32x32 |
    | depthwise 3x3 stride 2, conv 128@1x1; depthwise 3x3, conv 128@1x1 | 128x16x16 |
    | the same with 256 | 256x8x8 |
    | the same with 512; five times depthwise 3x3, conv 512@1x1 in all after the first | 512x4x4 |
    | depthwise 3x3 stride 2, conv 1024@1x1; depthwise 3x3, conv 1024@1x1 | 1024x2x2 |
    | global mean, classes | classes |

    4,231,976 parameters for the paper's 1000 classes (its table 8: 4.2 million), 3,217,226 for 10.

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        Any: the net ends in a mean over the image.
    width : float
        The paper's alpha: all numbers of channels inside are multiplied by it.
    stem_stride : int
        Stride of the first convolution.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.mobilenet()
    >>> sum(parameter.size for parameter in model.parameters())
    3217226
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    check_sizes("mobilenet", num_classes, in_channels, image_size)
    if not (isinstance(width, (int, float)) and 1 / 32 <= width <= 8) or isinstance(width, bool):
        raise ConfigError(f"width: expected a factor of the numbers of channels from 1/32 to 8, got {width!r}")
    channels = round(32 * width)
    layers: list[Module] = _conv(in_channels, channels, 3, stem_stride)
    for filters, stride in BLOCKS:
        layers += _conv(channels, channels, 3, stride, groups=channels)
        layers += _conv(channels, round(filters * width), 1)
        channels = round(filters * width)
    return Sequential(*layers, GlobalAvgPool2d(), Flatten(), Linear(channels, num_classes))


def _conv(channels: int, filters: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Module]:
    conv = Conv2d(channels, filters, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, BatchNorm2d(filters), ReLU()]
