"""Learning rates that change from step to step: a schedule writes the optimiser's options before the next update.

A step is a batch or an epoch, as whoever calls `step()` has it; a `Trainer` is told by `schedule_every`.

All but `ReduceLROnPlateau` are formulas of the number of steps so far, and restored by that number alone (and by the
rates they started from).
"""

from xpcnn.optim.schedule.base import Schedule
from xpcnn.optim.schedule.formulas import (
    CosineAnnealingLR,
    ExponentialLR,
    InverseTimeLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    StepLR,
)
from xpcnn.optim.schedule.one_cycle import OneCycleLR
from xpcnn.optim.schedule.plateau import ReduceLROnPlateau
from xpcnn.optim.schedule.sequential import SequentialLR

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "InverseTimeLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
]
