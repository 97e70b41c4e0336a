"""Four convolutions that narrow an image to one place, for digits: most of the work is where the image is small."""

from __future__ import annotations

from xpcnn.models.sizes import check_sizes
from xpcnn.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from xpcnn.windows import Size, windows

LAYERS = ((16, 5, True), (32, 3, False), (64, 3, True), (128, 4, False))  # filters, kernel, whether pooled


def conv4(*, num_classes: int = 10, in_channels: int = 1, image_size: Size = 28, dropout: float = 0.0) -> Sequential:
    """Return the network for images (N, in_channels, 28, 28), or of another size; 156,282 parameters by default.

    conv 16@5x5, pool 2; conv 32@3x3; conv 64@3x3, pool 2; conv 128@4x4; dropout; classes. Convolutions are not padded,
    have no bias and are followed by batch norm and ReLU. A pooling pads odd sizes at the far edge. Where fewer than 4x4
    pixels are left, the last convolution takes them all.

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        15 pixels or more a side.
    dropout : float
        The share dropped before the classes.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.conv4()
    >>> sum(parameter.size for parameter in model.parameters())
    156282
    >>> model.eval()(np.zeros((1, 1, 28, 28), "float32")).shape
    (1, 10)
    """
    size = check_sizes("conv4", num_classes, in_channels, image_size, least=15)
    layers: list[Module] = []
    channels = in_channels
    for filters, widest, is_pooled in LAYERS:
        kernel = (min(widest, size[0]), min(widest, size[1]))
        layers += [Conv2d(channels, filters, kernel, bias=False), BatchNorm2d(filters), ReLU()]
        channels, size = filters, windows(size, kernel).out
        if is_pooled:
            layers.append(MaxPool2d(2, ceil_mode=True))
            size = windows(size, 2, stride=2, ceil_mode=True).out
    last: list[Module] = [Dropout(dropout)] if dropout else []
    return Sequential(*layers, Flatten(), *last, Linear(channels * size[0] * size[1], num_classes))
