"""Layers and a training step as users write them: what can be recorded of them, and what cannot."""

import random

import numpy as np

import xpcnn
from xpcnn import nn, optim
from xpcnn.backend import backend_of, get_backend

FACTOR = 2.0


def on_host(array):
    return backend_of(array).to_numpy(array)


def same(a, b):
    """Hold two results against each other, bit by bit, of whichever backend each is."""
    np.testing.assert_array_equal(*(each if np.isscalar(each) else on_host(each) for each in (a, b)))


class KeepsAnAttribute(nn.Module):
    """Remembers its output itself."""

    def __init__(self):
        super().__init__()
        self.scale = get_backend().asarray(np.full((1, 8, 1, 1), 1.5, "float32"))
        self.y = None

    def forward(self, x):
        self.y = x * self.scale
        return self.y

    def backward(self, dy):
        return dy * self.scale + 0.125 * self.y


class AddsUp(nn.Module):
    """Puts another array in the place of the one that it reads."""

    def __init__(self):
        super().__init__()
        self.total = get_backend().zeros((), "float32")

    def forward(self, x):
        self.total = self.total + x.sum()
        return x + self.total

    def backward(self, dy):
        return dy


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.mean() > 0 else x

    def backward(self, dy):
        return dy


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls

    def backward(self, dy):
        return dy * self.calls


class ReadsOnTheHost(nn.Module):
    def forward(self, x):
        return x * float(backend_of(x).to_numpy(x).max())

    def backward(self, dy):
        return dy


class Draws(nn.Module):
    def forward(self, x):
        return x * backend_of(x).asarray(np.random.normal(size=x.shape).astype("float32"))  # noqa: NPY002

    def backward(self, dy):
        return dy


class DrawsANumber(Draws):
    def forward(self, x):
        return x * np.random.random()  # noqa: NPY002


class DrawsFromItsOwn(Draws):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, x):
        return x * self.rng.random()


class DrawsByPython(Draws):
    def forward(self, x):
        return x * random.random()


class ReadsAGlobal(nn.Module):
    def forward(self, x):
        return x * FACTOR

    def backward(self, dy):
        return dy * FACTOR


def make(extra):
    xpcnn.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), extra(), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3)]
    model = nn.Sequential(*layers, nn.Linear(8 * 5 * 5, 10))
    optimizer, criterion = optim.Adam(model.parameters(), lr=0.01), nn.CrossEntropyLoss()

    def step(x, y):
        loss = criterion(model(x), y)
        model.backward(criterion.backward())
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, step


class Slotted:
    __slots__ = ("total",)
