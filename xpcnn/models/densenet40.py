"""DenseNet for small images (Huang et al. 2016, arXiv:1608.06993, section 3)."""

from __future__ import annotations

from xpcnn.errors import ConfigError
from xpcnn.models.sizes import check_sizes
from xpcnn.nn import (
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    Module,
    ReLU,
    Sequential,
)
from xpcnn.windows import Size, integer

BLOCKS = 3


def densenet40(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: Size = 32,
    growth_rate: int = 12,
    depth: int = 40,
    dropout: float = 0.0,
) -> Sequential:
    """Return DenseNet (depth 40, growth rate 12) for images (N, in_channels, 32, 32), or others of 4x4 or more.

    | layer | output for 32x32 |
    |---|---|
    | conv 16@3x3 | 16x32x32 |
    | 12 dense layers; BN, ReLU, conv 160@1x1, mean pool 2 | 160x16x16 |
    | 12 dense layers; BN, ReLU, conv 304@1x1, mean pool 2 | 304x8x8 |
    | 12 dense layers; BN, ReLU | 448x8x8 |
    | global mean, classes | classes |

    A dense layer is BN, ReLU, conv 12@3x3, and its result is put beside its input. No bias but the last layer's.
    1,019,722 parameters for 10 classes (the paper's table 2: 1.0 million).

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        4 pixels or more: two poolings halve it, and the net ends in a mean over the image.
    growth_rate : int
        Channels that a dense layer adds.
    depth : int
        Layers with weights, 3k + 4: k dense layers a block.
    dropout : float
        The share dropped after each convolution of a dense layer (the paper: 0.2 where images are not augmented).

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.densenet40()
    >>> sum(parameter.size for parameter in model.parameters())
    1019722
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    check_sizes("densenet40", num_classes, in_channels, image_size, least=4)
    per_block, rest = divmod(integer("depth", depth, 7) - 4, BLOCKS)
    if rest:
        raise ConfigError(f"depth: expected 3k + 4 (three blocks of k layers, such as 22, 40, 100), got {depth}")
    integer("growth_rate", growth_rate, 1)
    channels = 16
    layers: list[Module] = [Conv2d(in_channels, channels, 3, padding=1, bias=False)]
    for block in range(BLOCKS):
        for _ in range(per_block):
            layers.append(Concat(Identity(), _dense_layer(channels, growth_rate, dropout)))
            channels += growth_rate
        layers += [BatchNorm2d(channels), ReLU()]
        if block < BLOCKS - 1:
            layers += [Conv2d(channels, channels, 1, bias=False), AvgPool2d(2)]
    return Sequential(*layers, GlobalAvgPool2d(), Flatten(), Linear(channels, num_classes))


def _dense_layer(channels: int, growth_rate: int, dropout: float) -> Sequential:
    layers: list[Module] = [
        BatchNorm2d(channels), ReLU(), Conv2d(channels, growth_rate, 3, padding=1, bias=False)
    ]  # fmt: skip
    return Sequential(*layers, Dropout(dropout)) if dropout else Sequential(*layers)
