"""One convolution and two dense layers: the exercise notebook's network."""

from __future__ import annotations

from functools import partial

from xpcnn.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential, init


def three_layer(
    *,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    num_filters: int = 32,
    filter_size: int = 7,
    hidden_dim: int = 200,
    num_classes: int = 10,
    weight_scale: float = 1e-3,
) -> Sequential:
    """Return the network for images (N, *input_shape): conv that keeps the size, ReLU, pool 2; hidden, ReLU; classes.

    Weights are drawn from N(0, weight_scale^2).
    """
    c, h, w = input_shape
    draw = partial(init.normal, std=weight_scale)
    return Sequential(
        Conv2d(c, num_filters, filter_size, padding="same", weight_init=draw),  # (N, F, H, W)
        ReLU(),
        MaxPool2d(2),  # (N, F, H/2, W/2)
        Flatten(),
        Linear(num_filters * (h // 2) * (w // 2), hidden_dim, weight_init=draw),
        ReLU(),
        Linear(hidden_dim, num_classes, weight_init=draw),
    )
