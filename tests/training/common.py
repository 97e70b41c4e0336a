"""A tiny net with everything that has state, and its data: what the tests of training train."""

import numpy as np

import xpcnn
from xpcnn import nn, optim
from xpcnn.backend import backend_of
from xpcnn.data import DataLoader
from xpcnn.training import Trainer

OPTIMISERS = {
    "sgd": lambda p: optim.SGD(p, 0.05),
    "momentum": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True, shrink=0.001),
    "adam": lambda p: optim.Adam(p, 0.01),
    "amsgrad": lambda p: optim.Adam(p, 0.01, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, 0.05, lr_decay=0.1),
}
SCHEDULES = {
    "none": lambda o: None,
    "step": lambda o: optim.StepLR(o, 3, 0.7),
    "exponential": lambda o: optim.ExponentialLR(o, 0.95),
    "inverse": lambda o: optim.InverseTimeLR(o, 0.1),
    "cosine": lambda o: optim.CosineAnnealingLR(o, 40),
    "one-cycle": lambda o: optim.OneCycleLR(o, 0.05, 40),
    "warm-up": lambda o: optim.SequentialLR(o, [optim.LinearLR(o), optim.CosineAnnealingLR(o, 40)], [5]),
    "plateau": lambda o: optim.ReduceLROnPlateau(o, patience=0, threshold=0.2, factor=0.5),
}
SAMPLES, BATCH = 43, 8  # the last batch of an epoch is ragged


def images(count=SAMPLES, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6)).astype("uint8")


def labels(count=SAMPLES, seed=0):
    return np.random.default_rng(seed + 1).integers(0, 3, count)


def loader(**options):
    return DataLoader(images(), labels(), BATCH, **options)


def net(bias=True):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=bias),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 3),
    )


def net_without_dropout():
    """For trainings that draw masks in different places."""
    xpcnn.manual_seed(0)
    return nn.Sequential(*(layer for layer in net() if not isinstance(layer, nn.Dropout)))


def trainer(optimiser="momentum", schedule="step", seed=0, model=None, **options):
    xpcnn.manual_seed(seed)
    model = net() if model is None else model
    optimizer = OPTIMISERS[optimiser](model.parameters())
    options.setdefault("schedule_every", "epoch" if schedule == "plateau" else "batch")
    return Trainer(model, optimizer, nn.CrossEntropyLoss(), schedule=SCHEDULES[schedule](optimizer), **options)


def arrays(model):
    """Host copies of parameters and all buffers."""
    found = {name: p.data for name, p in model.named_parameters()} | dict(model.named_buffers())
    return {name: backend_of(array).to_numpy(array).copy() for name, array in found.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


class StopAfter:
    """Ends a training after a number of steps, as a crash would, but in this process."""

    class Stopped(Exception):
        pass

    def __init__(self, steps):
        self.steps = steps

    def on_step(self, trainer):
        if trainer.step == self.steps:
            raise self.Stopped
