"""LeNet-5 of the LeNet notebook, after LeCun et al. 1998, with batch norm and dropout."""

from __future__ import annotations

from xpcnn.models.sizes import check_sizes, halved
from xpcnn.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from xpcnn.windows import Size


def lenet5(*, num_classes: int = 10, in_channels: int = 1, image_size: Size = 32, dropout: float = 0.1) -> Sequential:
    """Return the network for images (N, in_channels, 32, 32), or others of 16x16 or more; 61,990 parameters by default.

    | layer | output for 32x32 |
    |---|---|
    | conv 6@5x5, BN, ReLU, pool 2 | 6x14x14 |
    | conv 16@5x5, BN, ReLU, pool 2 | 16x5x5 |
    | conv 120 of all that is left, 5x5, BN, ReLU | 120 |
    | dense, ReLU, dropout | 84 |
    | classes | classes |

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.lenet5()
    >>> sum(parameter.size for parameter in model.parameters())
    61990
    >>> model.eval()(np.zeros((1, 1, 32, 32), "float32")).shape
    (1, 10)
    """
    height, width = check_sizes("lenet5", num_classes, in_channels, image_size, least=16)
    height, width = halved((height - 4, width - 4))
    left = halved((height - 4, width - 4))
    return Sequential(
        Conv2d(in_channels, 6, 5),  # (N, 6, 28, 28)
        BatchNorm2d(6),
        ReLU(),
        MaxPool2d(2),  # (N, 6, 14, 14)
        Conv2d(6, 16, 5),  # (N, 16, 10, 10)
        BatchNorm2d(16),
        ReLU(),
        MaxPool2d(2),  # (N, 16, 5, 5)
        Conv2d(16, 120, left),  # (N, 120, 1, 1)
        BatchNorm2d(120),
        ReLU(),
        Flatten(),
        Linear(120, 84),
        ReLU(),
        Dropout(dropout),
        Linear(84, num_classes),
    )
