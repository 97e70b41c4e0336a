"""The LeNet notebook: LeNet-5 with batch norm and dropout, one epoch of MNIST.

Corrected: the gradient of max pooling adds up where windows overlap; the running variance is the unbiased one, and
running statistics begin at 0 and 1 rather than at the first batch; the last, smaller batch is used.
"""

from __future__ import annotations

from typing import Any

from xpcnn.data import Compose, Normalize, Pad
from xpcnn.nn import Module
from xpcnn.optim import SGD, OneCycleLR, Optimizer, StepLR
from xpcnn.recipes.recipe import Recipe, on_test

NETWORK = "conv 6@5x5, BN, pool; conv 16@5x5, BN, pool; conv 120@5x5, BN; 84, dropout; 10"
PEAK = 0.3  # rate of lenet5-fast
PREPARE = Compose(Pad(2), Normalize(0.1307, 0.3081))  # 28x28 to 32x32


def parameter_groups(model: Module, **decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: those that decay, and those of batch norm, which do not."""
    norms = {
        id(parameter)
        for module in model.modules()
        if type(module).__name__.startswith("BatchNorm")
        for parameter in module.parameters()
    }
    parameters = model.parameters()
    return [
        {"params": [p for p in parameters if id(p) not in norms], **decay},
        {"params": [p for p in parameters if id(p) in norms]},
    ]


def _momentum(model: Module) -> Optimizer:
    return SGD(parameter_groups(model, shrink=4e-4), 0.1, momentum=0.9)


def _nesterov(model: Module) -> Optimizer:
    return SGD(parameter_groups(model, weight_decay=5e-4), PEAK, momentum=0.9, nesterov=True)


def _one_cycle(optimizer: Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps, pct_start=0.2, cycle_momentum=False)


LENET5 = Recipe(
    name="lenet5",
    network=NETWORK,
    model="lenet5",
    transforms={"mnist": PREPARE},
    split=on_test,
    optimizer=_momentum,
    schedule=lambda optimizer, steps: StepLR(optimizer, 30, 0.9),
    batch_size=128,
    epochs=1,
    accuracy=0.985,
    relative_time=1.0,
    image_size=32,
)

LENET5_FAST = Recipe(
    name="lenet5-fast",
    network=NETWORK,
    model="lenet5",
    transforms={"mnist": PREPARE},
    split=on_test,
    optimizer=_nesterov,
    schedule=_one_cycle,
    batch_size=96,
    epochs=1,
    accuracy=0.988,
    relative_time=1.0,
    image_size=32,
)
