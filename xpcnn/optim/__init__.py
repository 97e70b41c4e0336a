"""Optimisers over flat buffers, schedules of the learning rate, and clipping of gradients."""

from xpcnn.optim.adagrad import Adagrad
from xpcnn.optim.adam import Adam, AdamW
from xpcnn.optim.clip import clip_grad_norm
from xpcnn.optim.optimizer import Optimizer
from xpcnn.optim.rmsprop import RMSprop
from xpcnn.optim.scaler import GradScaler
from xpcnn.optim.schedule import (
    CosineAnnealingLR,
    ExponentialLR,
    InverseTimeLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    Schedule,
    SequentialLR,
    StepLR,
)
from xpcnn.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "GradScaler",
    "InverseTimeLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "RMSprop",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm",
]
