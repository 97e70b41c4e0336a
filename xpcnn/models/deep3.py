"""Three stages of convolution, ReLU and pooling: the three-stage notebook's network."""

from __future__ import annotations

from xpcnn.errors import ConfigError
from xpcnn.models.sizes import check_sizes, halved
from xpcnn.nn import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from xpcnn.windows import Size


def deep3(*, num_classes: int = 10, in_channels: int = 1, image_size: Size = 28, pooling: str = "max") -> Sequential:
    """Return the network for images (N, in_channels, 28, 28), or others of 5x5 or more; 113,162 parameters by default.

    | layer | output for 28x28 |
    |---|---|
    | conv 32@3x3, ReLU, pool 2 | 32x14x14 |
    | conv 64@3x3, ReLU, pool 2 | 64x7x7 |
    | conv 128@3x3, ReLU, pool 2 | 128x4x4 |
    | classes | classes |

    Padding 1; the pooling ("max" or "average") pads odd sizes at the far edge.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.deep3()
    >>> sum(parameter.size for parameter in model.parameters())
    113162
    >>> model.eval()(np.zeros((1, 1, 28, 28), "float32")).shape
    (1, 10)
    """
    height, width = halved(check_sizes("deep3", num_classes, in_channels, image_size, least=5), 3, ceil_mode=True)
    if pooling not in ("max", "average"):
        raise ConfigError(f'pooling: expected "max" or "average", got {pooling!r}')

    def pool() -> Module:
        return MaxPool2d(2, ceil_mode=True) if pooling == "max" else AvgPool2d(2, ceil_mode=True)

    return Sequential(
        Conv2d(in_channels, 32, 3, padding=1),  # (N, 32, 28, 28)
        ReLU(),
        pool(),  # (N, 32, 14, 14)
        Conv2d(32, 64, 3, padding=1),
        ReLU(),
        pool(),  # (N, 64, 7, 7)
        Conv2d(64, 128, 3, padding=1),
        ReLU(),
        pool(),  # (N, 128, 4, 4)
        Flatten(),
        Linear(128 * height * width, num_classes),
    )
