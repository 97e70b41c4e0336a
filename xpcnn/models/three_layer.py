"""One convolution and two dense layers: the exercise notebook's network."""

from __future__ import annotations

from functools import partial

from xpcnn.errors import ShapeError
from xpcnn.models.sizes import check_sizes, halved
from xpcnn.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential, init
from xpcnn.windows import Size


def three_layer(
    *,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    num_filters: int = 32,
    filter_size: int = 7,
    hidden_dim: int = 200,
    num_classes: int = 10,
    weight_scale: float = 1e-3,
    in_channels: int | None = None,
    image_size: Size | None = None,
) -> Sequential:
    """Return the network for images (N, *input_shape): conv that keeps the size, ReLU, pool 2; hidden, ReLU; classes.

    Weights are drawn from N(0, weight_scale^2). `in_channels` and `image_size` say what `input_shape` does, and replace
    it. 1,645,346 parameters by default.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.three_layer()
    >>> sum(parameter.size for parameter in model.parameters())
    1645346
    >>> model.eval()(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 10)
    """
    if len(input_shape) != 3:
        raise ShapeError(f"input_shape: expected (channels, height, width), got {tuple(input_shape)}")
    c = input_shape[0] if in_channels is None else in_channels
    size: Size = (input_shape[1], input_shape[2]) if image_size is None else image_size
    height, width = halved(check_sizes("three-layer", num_classes, c, size, least=2))
    draw = partial(init.normal, std=weight_scale)
    return Sequential(
        Conv2d(c, num_filters, filter_size, padding="same", weight_init=draw),  # (N, F, H, W)
        ReLU(),
        MaxPool2d(2),  # (N, F, H/2, W/2)
        Flatten(),
        Linear(num_filters * height * width, hidden_dim, weight_init=draw),
        ReLU(),
        Linear(hidden_dim, num_classes, weight_init=draw),
    )
