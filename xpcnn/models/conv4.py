"""Four convolutions of 3x3 in the manner of VGG, for digits (after Simonyan and Zisserman 2014, arXiv:1409.1556)."""

from __future__ import annotations

from xpcnn.models.sizes import check_sizes
from xpcnn.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from xpcnn.windows import Size, windows

FILTERS = (16, 32, 32, 64)
POOLED = (True, True, False, True)  # whether a pooling of 2x2 follows


def vgg4(*, num_classes: int = 10, in_channels: int = 1, image_size: Size = 28, dropout: float = 0.0) -> Sequential:
    """Return the network for images (N, in_channels, 28, 28), or of another size; 42,938 parameters by default.

    conv 16, pool 2; conv 32, pool 2; conv 32, conv 64, pool 2; dropout; classes. Each convolution is a 3x3 with padding
    1, without bias and followed by batch norm and ReLU; the last pooling pads odd sizes at the far edge.

    Parameters
    ----------
    num_classes, in_channels : int
    image_size : int or (height, width)
        5 pixels or more a side.
    dropout : float
        The share dropped before the classes.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.vgg4()
    >>> sum(parameter.size for parameter in model.parameters())
    42938
    >>> model.eval()(np.zeros((1, 1, 28, 28), "float32")).shape
    (1, 10)
    """
    size = check_sizes("vgg4", num_classes, in_channels, image_size, least=5)
    layers: list[Module] = []
    channels = in_channels
    for filters, is_pooled in zip(FILTERS, POOLED, strict=True):
        layers += [Conv2d(channels, filters, 3, padding=1, bias=False), BatchNorm2d(filters), ReLU()]
        channels = filters
        if is_pooled:
            layers.append(MaxPool2d(2, ceil_mode=True))
            size = windows(size, 2, stride=2, ceil_mode=True).out
    last: list[Module] = [Dropout(dropout)] if dropout else []
    return Sequential(*layers, Flatten(), *last, Linear(channels * size[0] * size[1], num_classes))
