"""ResNet-20 for small images (He et al. 2015, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from xpcnn.nn import BatchNorm2d, Conv2d, Flatten, GlobalAvgPool2d, Linear, Module, ReLU, Residual, Sequential


def resnet20(*, num_classes: int = 10, in_channels: int = 3) -> Sequential:
    """Return the network for images (N, in_channels, 32, 32).

    conv 16@3x3, BN, ReLU; three stages of three blocks of 16, 32 and 64 channels; global mean; classes. Where a stage
    changes the size, the shortcut is a 1x1 convolution with batch norm.
    """
    blocks: list[Module] = []
    channels = 16
    for stage in (16, 32, 64):
        for block in range(3):
            stride = 2 if block == 0 and stage != 16 else 1
            blocks += [_block(channels, stage, stride), ReLU()]
            channels = stage
    return Sequential(
        Conv2d(in_channels, 16, 3, padding=1, bias=False),
        BatchNorm2d(16),
        ReLU(),
        *blocks,
        GlobalAvgPool2d(),
        Flatten(),
        Linear(64, num_classes),
    )


def _block(channels: int, filters: int, stride: int) -> Residual:
    body = Sequential(
        Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False),
        BatchNorm2d(filters),
        ReLU(),
        Conv2d(filters, filters, 3, padding=1, bias=False),
        BatchNorm2d(filters),
    )
    if stride == 1 and channels == filters:
        return Residual(body)
    return Residual(body, Sequential(Conv2d(channels, filters, 1, stride=stride, bias=False), BatchNorm2d(filters)))
