"""One filter and two dense layers: the two-image notebook's network."""

from __future__ import annotations

from functools import partial
from typing import Any

from xpcnn.models.sizes import check_sizes, halved
from xpcnn.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential, init
from xpcnn.windows import Size


def _live(shape: tuple[int, ...]) -> Any:
    """Draw a He uniform filter that ink makes answer.

    The net has one filter. Where its sum is far below 0, ReLU makes nothing of any digit, and it never learns: so one
    of thirty nets did.
    """
    weight = init.he_uniform(shape)
    return -weight if weight.sum() < 0 else weight


def tiny(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: Size = 28,
    weight_scale: float | None = None,
    dtype: Any = "float32",
) -> Sequential:
    """Return the network for images (N, in_channels, 28, 28), or others of 4x4 or more; 11,540 parameters by default.

    conv 1@3x3, ReLU, pool 2: 1x13x13; 64, ReLU; classes. Weights are He uniform, the filter with a sum of 0 or more; or
    N(0, weight_scale^2) where that is given.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.tiny()
    >>> sum(parameter.size for parameter in model.parameters())
    11540
    >>> model.eval()(np.zeros((1, 1, 28, 28), "float32")).shape
    (1, 10)
    """
    height, width = check_sizes("tiny", num_classes, in_channels, image_size, least=4)
    height, width = halved((height - 2, width - 2))
    draw = init.he_uniform if weight_scale is None else partial(init.normal, std=weight_scale)
    return Sequential(
        Conv2d(in_channels, 1, 3, weight_init=_live if weight_scale is None else draw, dtype=dtype),  # (N, 1, 26, 26)
        ReLU(),
        MaxPool2d(2),  # (N, 1, 13, 13)
        Flatten(),
        Linear(height * width, 64, weight_init=draw, dtype=dtype),
        ReLU(),
        Linear(64, num_classes, weight_init=draw, dtype=dtype),
    )
