"""LeNet-5 of the LeNet notebook, after LeCun et al. 1998, with batch norm and dropout."""

from __future__ import annotations

from xpcnn.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential


def lenet5(*, num_classes: int = 10, in_channels: int = 1, dropout: float = 0.1) -> Sequential:
    """Return the network for images (N, in_channels, 32, 32); 61,990 parameters by default.

    conv 6@5x5, BN, ReLU, pool 2; conv 16@5x5, BN, ReLU, pool 2; conv 120@5x5, BN, ReLU; 84, ReLU, dropout; classes.
    """
    return Sequential(
        Conv2d(in_channels, 6, 5),  # (N, 6, 28, 28)
        BatchNorm2d(6),
        ReLU(),
        MaxPool2d(2),  # (N, 6, 14, 14)
        Conv2d(6, 16, 5),  # (N, 16, 10, 10)
        BatchNorm2d(16),
        ReLU(),
        MaxPool2d(2),  # (N, 16, 5, 5)
        Conv2d(16, 120, 5),  # (N, 120, 1, 1)
        BatchNorm2d(120),
        ReLU(),
        Flatten(),
        Linear(120, 84),
        ReLU(),
        Dropout(dropout),
        Linear(84, num_classes),
    )
