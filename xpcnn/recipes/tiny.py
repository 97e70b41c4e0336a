"""The two-image notebook: one filter, batches of two images drawn with replacement, 2,000 steps.

Corrected: weights are He uniform, those of the one filter with a sum of 0 or more (ReLU makes nothing of a filter far
below it), and the loss is summed over the two images. As written (weights N(0, 0.01^2), loss
averaged) the net stays at chance for most seeds: `as_written` trains that one. float32 throughout, where the document
casts to float64 inside the loop.
"""

from __future__ import annotations

from xpcnn.data import ToFloat
from xpcnn.nn import Module
from xpcnn.optim import SGD, InverseTimeLR, Optimizer
from xpcnn.recipes.recipe import Recipe, hold_out


def _plain(model: Module) -> Optimizer:
    return SGD(model.parameters(), 0.01)


TINY = Recipe(
    name="tiny",
    network="conv 1@3x3, pool; 64; 10",
    model="tiny",
    transforms={"mnist": ToFloat()},
    split=hold_out(1 / 6),  # 50,000 and 10,000
    optimizer=_plain,
    schedule=lambda optimizer, steps: InverseTimeLR(optimizer, 1e-6),
    batch_size=2,
    epochs=1,
    steps_per_epoch=2000,
    reduction="sum",
    one_hot=True,
    log_every=100,
    accuracy=0.88,
    relative_time=0.2,
    as_written={"options": {"weight_scale": 1e-2}, "reduction": "mean", "accuracy": 0.11},
)
