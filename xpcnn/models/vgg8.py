"""A VGG-like network for small images (after Simonyan and Zisserman 2014, arXiv:1409.1556)."""

from __future__ import annotations

from xpcnn.nn import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential


def vgg8(*, num_classes: int = 10, in_channels: int = 3) -> Sequential:
    """Return the network for images (N, in_channels, 32, 32): 64-64-pool-128-128-pool-256-256-pool, classes.

    Each number is a 3x3 convolution with padding 1, batch norm and ReLU.
    """
    layers: list[Module] = []
    channels = in_channels
    for filters in (64, 128, 256):
        for _ in range(2):
            layers += [Conv2d(channels, filters, 3, padding=1, bias=False), BatchNorm2d(filters), ReLU()]
            channels = filters
        layers.append(MaxPool2d(2))
    return Sequential(*layers, Flatten(), Linear(256 * 4 * 4, num_classes))
