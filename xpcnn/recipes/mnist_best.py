"""The best digits in a minute: four convolutions, images changed at random, an average of the weights.

Not of any document. Everything is chosen with `python bench/mnist_best.py --validation`, which trains on 50,000 images
and tests on the 10,000 others of the training set; the test set is looked at once, after the last step. Images are
turned, shifted and scaled a little, never mirrored. The rate goes up and down once (Smith and Topin 2017,
arXiv:1708.07120), labels are smoothed (Szegedy et al. 2015, arXiv:1512.00567), and the weights that are tested are a
running average (Polyak and Juditsky 1992). A test image's probabilities are the mean over its shifts by a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.data import CenterCrop, Compose, Normalize, RandomAffine
from xpcnn.nn import Module
from xpcnn.optim import SGD, OneCycleLR, Optimizer
from xpcnn.recipes.lenet5 import parameter_groups
from xpcnn.recipes.recipe import Recipe, on_test
from xpcnn.training import ModelAverage

PEAK, WARM_SHARE, DECAY = 0.2, 0.25, 5e-4
SIDE = 24  # of the 28 pixels: digits fill 20, and the border takes a third of the time
AVERAGE_DECAY = 0.998  # looks back 500 steps, about an epoch


def _nesterov(model: Module) -> Optimizer:
    return SGD(parameter_groups(model, weight_decay=DECAY), PEAK, momentum=0.9, nesterov=True)


def _one_cycle(optimizer: Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps, pct_start=WARM_SHARE, cycle_momentum=False)


def _average() -> Sequence[Any]:
    return [ModelAverage(AVERAGE_DECAY, warmup=True)]


MNIST_BEST = Recipe(
    name="mnist-best",
    network="conv 16@5x5, BN, pool; conv 32@3x3, BN; conv 64@3x3, BN, pool; conv 128@3x3, BN; 10",
    model="conv4",
    options={"image_size": SIDE},
    transforms={"mnist": Compose(CenterCrop(SIDE), Normalize(0.1307, 0.3081))},
    augment=(RandomAffine(8, (2 / 28, 2 / 28), (0.93, 1.07)),),
    split=on_test,
    optimizer=_nesterov,
    schedule=_one_cycle,
    callbacks=_average,
    validates=False,
    average_shifts=1,
    label_smoothing=0.1,
    batch_size=128,
    epochs=7,
    accuracy=0.9964,
    relative_time=17.5,
)
