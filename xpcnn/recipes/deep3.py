"""The three-stage notebook: three convolutions with pooling that pads odd sizes at the far edge, ten epochs.

Corrected: the 70,000 images are taken in the order of the IDX files (the document's come sorted by class, so that its
test set holds classes it never trained on) and shuffled in each epoch; pixels are divided by 255, without which its
softmax overflows and the loss is infinite from the first batch; accuracy is scored against the batch's own labels; the
last partial batch is used. Initial values are He normal. Rate 0.01 with momentum 0.9, where the document has 0.001
without momentum, which reaches 0.950: `as_written` trains that one.
"""

from __future__ import annotations

from xpcnn.data import ToFloat
from xpcnn.datasets import Dataset, concatenate
from xpcnn.nn import Module
from xpcnn.optim import SGD, Optimizer
from xpcnn.recipes.recipe import Recipe, Splits


def _five_of_seven(train: Dataset, test: Dataset) -> Splits:
    """Return 50,000 and 20,000 of the 70,000, in the order of the files."""
    whole = concatenate([train, test])
    first, rest = whole.split(len(whole) * 5 // 7)
    return Splits(first, None, rest)


def _momentum(model: Module) -> Optimizer:
    return SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=4e-4)


def _plain(model: Module) -> Optimizer:
    return SGD(model.parameters(), 1e-3, weight_decay=4e-4)


DEEP3 = Recipe(
    name="deep3",
    network="conv 32@3x3, pool; conv 64@3x3, pool; conv 128@3x3, pool; 10",
    model="deep3",
    transforms={"mnist": ToFloat()},
    split=_five_of_seven,
    optimizer=_momentum,
    batch_size=32,
    epochs=10,
    accuracy=0.990,
    relative_time=30.0,
    as_written={"optimizer": _plain, "accuracy": 0.950},
)
