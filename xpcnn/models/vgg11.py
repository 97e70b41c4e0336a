"""VGG-11, configuration A of Simonyan and Zisserman 2014 (arXiv:1409.1556)."""

from __future__ import annotations

from xpcnn.models.sizes import check_sizes, halved
from xpcnn.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from xpcnn.windows import Size, integer

STAGES = (64,), (128,), (256, 256), (512, 512), (512, 512)  # filters of the convolutions before each pooling


def vgg11(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: Size = 32,
    hidden_dim: int = 0,
    dropout: float = 0.5,
    batch_norm: bool = False,
) -> Sequential:
    """Return VGG-11 for images (N, in_channels, 32, 32), or larger ones.

    | layer | output for 32x32 |
    |---|---|
    | conv 64@3x3, pool 2 | 64x16x16 |
    | conv 128@3x3, pool 2 | 128x8x8 |
    | conv 256@3x3, conv 256@3x3, pool 2 | 256x4x4 |
    | conv 512@3x3, conv 512@3x3, pool 2 | 512x2x2 |
    | conv 512@3x3, conv 512@3x3, pool 2 | 512x1x1 |
    | classes | classes |

    Each convolution has padding 1 and is followed by ReLU. 9,225,610 parameters for 10 classes. The paper's network is
    that of `image_size=224, num_classes=1000, hidden_dim=4096`: 132,863,336 parameters (its table 2: 133 million).

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        32 pixels or more: five poolings halve it.
    hidden_dim : int
        Of two dense layers before the last, each with ReLU and dropout; 0 for none.
    dropout : float
        The share that these drop.
    batch_norm : bool
        Whether batch norm follows each convolution.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.vgg11()
    >>> sum(parameter.size for parameter in model.parameters())
    9225610
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    height, width = halved(check_sizes("vgg11", num_classes, in_channels, image_size, least=32), 5)
    layers: list[Module] = []
    channels = in_channels
    for stage in STAGES:
        for filters in stage:
            layers.append(Conv2d(channels, filters, 3, padding=1))
            layers += [BatchNorm2d(filters), ReLU()] if batch_norm else [ReLU()]
            channels = filters
        layers.append(MaxPool2d(2))
    layers.append(Flatten())
    features = channels * height * width
    for _ in range(2 if integer("hidden_dim", hidden_dim, 0) else 0):
        layers += [Linear(features, hidden_dim), ReLU(), Dropout(dropout)]
        features = hidden_dim
    return Sequential(*layers, Linear(features, num_classes))
