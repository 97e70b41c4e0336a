"""The exercise notebook: one wide convolution and two dense layers, Adam, ten epochs, on MNIST or CIFAR-10.

MNIST is brought to the form of CIFAR-10: a border of two zeros, x/255 - 0.13, three equal channels. CIFAR-10 is taken
from a folder of the user's. Corrected: it runs (the document is Python 2 and leaves the layers to the reader).
On CIFAR-10 the weights, not the biases, have the document's L2 decay of 0.001; digits need none.
"""

from __future__ import annotations

from typing import Any

from xpcnn.data import Compose, Normalize, Pad, Repeat
from xpcnn.datasets import Dataset
from xpcnn.nn import Module
from xpcnn.optim import Adam, Optimizer
from xpcnn.recipes.recipe import Recipe, Splits

REG = 1e-3


def _held_out(train: Dataset, test: Dataset) -> Splits:
    """Return MNIST as 50,000 and 10,000, CIFAR-10 as 49,000 and 1,000."""
    first, rest = train.split(len(train) * 49 // 50 if train.images.ndim == 4 else len(train) * 5 // 6)
    return Splits(first, rest, test)


def _adam(model: Module) -> Optimizer:
    return Adam(model.parameters(), 1e-3)


def _decayed(model: Module) -> Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if len(p.shape) > 1], "weight_decay": REG},
        {"params": [p for p in model.parameters() if len(p.shape) == 1]},
    ]
    return Adam(groups, 1e-3)


THREE_LAYER = Recipe(
    name="three-layer",
    network="conv 32@7x7, pool; 200; 10",
    model="three-layer",
    options={"hidden_dim": 200, "weight_scale": 1e-3},
    transforms={
        "mnist": Compose(Pad(2), Normalize(0.13, 1.0), Repeat(3)),
        "cifar10": Normalize((0.4914, 0.4822, 0.4465), (1.0, 1.0, 1.0)),  # the mean of its training images
    },
    split=_held_out,
    optimizer=_adam,
    batch_size=50,
    epochs=10,
    log_every=100,
    accuracy=0.986,
    relative_time=30.0,
    on={"cifar10": {"optimizer": _decayed}},
    image_size=32,
)
