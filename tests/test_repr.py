"""What is printed of an object says what it is and how it was made, on one line unless it is a network."""

import importlib
import inspect

import numpy as np
import pytest

import xpcnn
from xpcnn import nn, optim
from xpcnn.data import DataLoader
from xpcnn.datasets import Dataset
from xpcnn.training import Checkpointer, FolderLock, History, Metrics, Progress, RunningAverage, Trainer

PACKAGES = "nn", "optim", "data", "datasets", "training", "models", "recipes", "testing", "plot"
CLASSES = {
    f"{package}.{name}": getattr(importlib.import_module(f"xpcnn.{package}"), name)
    for package in PACKAGES
    for name in importlib.import_module(f"xpcnn.{package}").__all__
    if inspect.isclass(getattr(importlib.import_module(f"xpcnn.{package}"), name))
}


@pytest.mark.parametrize("path", CLASSES)
def test_every_public_class_describes_itself(path):
    assert CLASSES[path].__repr__ is not object.__repr__


def model():
    return nn.Sequential(nn.Linear(4, 3))


def sgd(**options):
    return optim.SGD(model().parameters(), 0.1, momentum=0.9, **options)


def groups():
    a, b = model().parameters()
    return optim.Adam([{"params": [a], "lr": 0.5}, {"params": [b]}])


def history(accuracy=0.875):
    made = History()
    made.add_step(2.25, accuracy, 0.1)
    made.add_epoch(step=1, loss=2.25, accuracy=accuracy, validation_loss=1.5)
    return made


def trainer():
    optimizer = sgd()
    network = model()
    optimizer.param_groups[0]["params"] = list(network.parameters())
    schedule = optim.StepLR(optimizer, 30, 0.9)
    made = Trainer(network, optimizer, nn.CrossEntropyLoss(), schedule=schedule, schedule_every="epoch")
    made.optimizer = "SGD"
    return made


def stepped():
    schedule = optim.StepLR(sgd(), 30, 0.9)
    schedule.step()
    return schedule


def images(**options):
    return DataLoader(np.zeros((5, 4, 6), "uint8"), np.zeros(5, int), 2, **options)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (nn.MSELoss, "MSELoss(reduction='mean')"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
         "CrossEntropyLoss(weight=None, ignore_index=None, label_smoothing=0.1, reduction='mean')"),
        (lambda: nn.MaxPool2d(2), "MaxPool2d(2, stride=2, padding=0, dilation=1, ceil_mode=False)"),
        (lambda: nn.AvgPool2d(3, 2, 1), "AvgPool2d(3, stride=2, padding=1, ceil_mode=False, count_include_pad=True)"),
        (sgd, "SGD(2 parameters, lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=False, shrink=0.0)"),
        (groups, "Adam([1 parameter, lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, amsgrad=False], "
                 "[1 parameter, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, amsgrad=False])"),
        (stepped, "StepLR(step_size=30, gamma=0.9, last_step=1)"),
        (lambda: optim.CosineAnnealingLR(sgd(), 20), "CosineAnnealingLR(T_max=20, eta_min=0.0, last_step=0)"),
        (lambda: optim.OneCycleLR(sgd(), 0.5, 20),
         "OneCycleLR(max_lr=0.5, total_steps=20, pct_start=0.3, anneal_strategy='cos', cycle_momentum=True, "
         "base_momentum=0.85, max_momentum=0.95, div_factor=25.0, final_div_factor=10000.0, last_step=0)"),
        (optim.GradScaler,
         "GradScaler(scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000)"),
        (History, "History(0 epochs, 0 steps)"),
        (history, "History(1 epoch, 1 step; last: loss 2.25, accuracy 0.875, validation loss 1.5)"),
        (lambda: history(float("nan")), "History(1 epoch, 1 step; last: loss 2.25, validation loss 1.5)"),
        (lambda: Metrics(0.5, 0.75, 8), "Metrics(loss=0.5, accuracy=0.75, count=8)"),
        (RunningAverage, "RunningAverage(nan over 0)"),
        (lambda: Progress(20, bar=False), "Progress(every=20)"),
        (lambda: Checkpointer("runs/a", keep=2),
         "Checkpointer('runs/a', every_steps=None, every_seconds=300.0, every_epochs=1, keep=2)"),
        (lambda: FolderLock("runs/a"), "FolderLock('runs/a', free)"),
        (images, "DataLoader(5 images uint8 [4, 6], 3 batches of 2, shuffle, ToFloat())"),
        (lambda: images(seed=3, drop_last=True),
         "DataLoader(5 images uint8 [4, 6], 2 batches of 2, shuffle, seed=3, drop_last, ToFloat())"),
        (lambda: Dataset(np.zeros((5, 4, 6), "uint8"), np.zeros(5, int)),
         "Dataset(5 images uint8 [4, 6], labels int64)"),
        (trainer, "Trainer(Sequential of 15 parameters, 'SGD', "
                  "CrossEntropyLoss(weight=None, ignore_index=None, label_smoothing=0.0, reduction='mean'), "
                  "schedule=StepLR(step_size=30, gamma=0.9, last_step=0), schedule_every='epoch', step=0, epoch=0)"),
        (lambda: nn.Inference(model()), "Inference(1 steps, numpy)"),
    ],
)  # fmt: skip
def test_what_is_said(make, text):
    with xpcnn.use_backend("numpy"):
        assert repr(make()) == text


def test_a_run_is_no_wall_of_numbers(tmp_path):
    from tests.recipes.small import write_digits
    from xpcnn import recipes

    with xpcnn.use_backend("numpy"):
        done = recipes.run("tiny", data=write_digits(tmp_path / "digits", 40, 20), epochs=1)
    assert repr(done).startswith("Run(tiny on mnist, seed 0, History(1 epoch, ")
    assert f"test accuracy {done.metrics.accuracy:.4f}" in repr(done)
    assert len(repr(done)) < 300
