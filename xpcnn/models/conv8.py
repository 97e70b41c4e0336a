"""Eight filters and one dense layer: the one-image notebook's network."""

from __future__ import annotations

from functools import partial

from xpcnn.models.sizes import check_sizes, halved
from xpcnn.nn import Conv2d, Flatten, Linear, MaxPool2d, Sequential, init
from xpcnn.windows import Size


def conv8(*, num_classes: int = 10, in_channels: int = 1, image_size: Size = 28) -> Sequential:
    """Return the network for images (N, in_channels, 28, 28), or others of 4x4 or more; 13,610 parameters by default.

    conv 8@3x3 with weights N(0, 1) / 9 and no ReLU, pool 2: 8x13x13; classes, with weights N(0, 1) / 1352, the number
    of features.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.conv8()
    >>> sum(parameter.size for parameter in model.parameters())
    13610
    >>> model.eval()(np.zeros((1, 1, 28, 28), "float32")).shape
    (1, 10)
    """
    height, width = check_sizes("conv8", num_classes, in_channels, image_size, least=4)
    height, width = halved((height - 2, width - 2))
    features = 8 * height * width
    return Sequential(
        Conv2d(in_channels, 8, 3, weight_init=partial(init.normal, std=1 / 9)),  # (N, 8, 26, 26)
        MaxPool2d(2),  # (N, 8, 13, 13)
        Flatten(),
        Linear(features, num_classes, weight_init=partial(init.normal, std=1 / features)),
    )
