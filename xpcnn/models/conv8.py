"""Eight filters and one dense layer: the one-image notebook's network."""

from __future__ import annotations

from functools import partial

from xpcnn.nn import Conv2d, Flatten, Linear, MaxPool2d, Sequential, init


def conv8(*, num_classes: int = 10) -> Sequential:
    """Return the network for images (N, 1, 28, 28); 13,610 parameters by default.

    conv 8@3x3 with weights N(0, 1) / 9 and no ReLU, pool 2; classes, with weights N(0, 1) / 1352.
    """
    features = 8 * 13 * 13
    return Sequential(
        Conv2d(1, 8, 3, weight_init=partial(init.normal, std=1 / 9)),  # (N, 8, 26, 26)
        MaxPool2d(2),  # (N, 8, 13, 13)
        Flatten(),
        Linear(features, num_classes, weight_init=partial(init.normal, std=1 / features)),
    )
