"""How many images an example works on: all, or those that the environment's XPCNN_EXAMPLE_IMAGES allows."""

from __future__ import annotations

import os

from xpcnn.datasets import Dataset, load_mnist


def mnist() -> tuple[Dataset, Dataset]:
    """Return the training and the test set, each of at most XPCNN_EXAMPLE_IMAGES images."""
    train, test = load_mnist()
    most = int(os.environ.get("XPCNN_EXAMPLE_IMAGES", "0")) or len(train)
    return train.subset(slice(most)), test.subset(slice(most))
