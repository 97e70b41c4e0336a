"""The one-image notebook: eight filters and a dense layer, one image at a time.

Corrected: the convolution keeps its whole width and its input, pooling steps by two, and ties in a window give the
gradient to one winner, so that the net trains at all. It trains on the first 1,000 training images (the document
takes test images), three times, in a new order each time, at rate 0.005 (the document never sets one). Initial values
are the document's: N(0, 1) / 9 and N(0, 1) / 1352.
"""

from __future__ import annotations

from xpcnn.data import Normalize
from xpcnn.datasets import Dataset
from xpcnn.nn import Module
from xpcnn.optim import SGD, Optimizer
from xpcnn.recipes.recipe import Recipe, Splits


def _first_thousand(train: Dataset, test: Dataset) -> Splits:
    return Splits(train.subset(slice(1000)), None, test)


def _plain(model: Module) -> Optimizer:
    return SGD(model.parameters(), 0.005)


CONV8 = Recipe(
    name="conv8",
    network="conv 8@3x3, pool; 10",
    model="conv8",
    transforms={"mnist": Normalize(0.5, 1.0)},
    split=_first_thousand,
    optimizer=_plain,
    batch_size=1,
    epochs=3,
    log_every=100,
    accuracy=0.86,
    relative_time=0.2,
)
