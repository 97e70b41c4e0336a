"""Two checks of the exercise notebook before any training: the first loss, and whether a few images can be learnt.

Both work on a copy of the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpcnn.errors import ConfigError, ShapeError
from xpcnn.nn import CrossEntropyLoss, Module
from xpcnn.optim import Adam, Optimizer
from xpcnn.testing.numerical import to_host


@dataclass(frozen=True)
class InitialLoss:
    """The loss of an untrained classifier; true where it is about log(number of classes)."""

    loss: float
    expected: float
    tolerance: float

    def __bool__(self) -> bool:
        return abs(self.loss - self.expected) <= self.tolerance * self.expected

    def __str__(self) -> str:
        verdict = "ok" if self else f"not within {self.tolerance:.0%} of it: are the initial weights too large?"
        return f"initial loss {self.loss:.4f}, log(number of classes) {self.expected:.4f}: {verdict}"


@dataclass(frozen=True)
class Overfit:
    """How well a few samples were learnt; true where all of them were."""

    accuracy: float
    losses: list[float]  # one per step

    def __bool__(self) -> bool:
        return self.accuracy == 1.0

    def __str__(self) -> str:
        verdict = "ok" if self else "a correct network learns them all: check backward, learning rate, initial weights"
        return f"accuracy {self.accuracy:.3f} on its own training samples, last loss {self.losses[-1]:.4f}: {verdict}"


def initial_loss_check(
    model: Module,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    batch_size: int = 50,
    tolerance: float = 0.01,
    seed: int = 0,
) -> InitialLoss:
    """Check that an untrained classifier has no opinion: its loss on random input is log(num_classes).

    Parameters
    ----------
    model : Module
        Returns logits (N, num_classes). Small initial weights are what makes the check hold; He normal values give
        larger logits, and a loss somewhat above.
    input_shape : (C, H, W) or (D,)
        Shape of one sample; samples are drawn from N(0, 1).
    num_classes : int
    batch_size, seed : int
    tolerance : float
        Allowed difference as a share of log(num_classes).

    Returns
    -------
    InitialLoss
        With the loss; true where the check holds.

    Raises
    ------
    ShapeError
        The model does not return (batch_size, num_classes).

    Examples
    --------
    >>> from xpcnn import testing
    >>> xpcnn.manual_seed(0)
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> model[1].weight.data[...] *= 0.01
    >>> bool(testing.initial_loss_check(model, (1, 8, 8), 10))
    True
    """
    rng = np.random.default_rng(seed)
    model.forget()
    net = copy.deepcopy(model)
    backend = net.backend
    dtype = next((parameter.data.dtype for parameter in net.parameters()), np.dtype("float32"))
    logits = net(backend.asarray(rng.standard_normal((batch_size, *input_shape)).astype(dtype)))
    if tuple(logits.shape) != (batch_size, num_classes):
        raise ShapeError(f"model: expected logits of shape {(batch_size, num_classes)}, got {tuple(logits.shape)}")
    loss = CrossEntropyLoss()(logits, backend.asarray(rng.integers(0, num_classes, batch_size)))
    return InitialLoss(float(backend.to_numpy(loss)), math.log(num_classes), tolerance)


def overfit_check(
    model: Module,
    x: Any,
    labels: Any,
    *,
    epochs: int = 20,
    batch_size: int = 50,
    optimizer: Callable[[list[Any]], Optimizer] = Adam,
    seed: int = 0,
) -> Overfit:
    """Check that a network can learn a few samples by heart, such as 100 images in 20 epochs.

    Parameters
    ----------
    model : Module
        Returns logits (N, K); left as it is.
    x : array (N, ...)
        Of the host or of any backend; float32 as the model needs them.
    labels : array (N,) of integers
    epochs, batch_size, seed : int
    optimizer : callable
        Makes an optimiser of the parameters; Adam with its defaults if none is given.

    Returns
    -------
    Overfit
        With the accuracy in evaluation mode and the loss of every step; true where every sample is right.

    Raises
    ------
    ConfigError
        There are no samples or no epochs.

    Examples
    --------
    >>> from xpcnn import testing
    >>> xpcnn.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    >>> x = np.random.default_rng(0).normal(size=(30, 8)).astype("float32")
    >>> bool(testing.overfit_check(model, x, np.arange(30) % 3, epochs=200))
    False
    """
    images, targets = to_host(x), to_host(labels)
    if len(images) == 0 or epochs < 1 or batch_size < 1:
        raise ConfigError(f"x, epochs, batch_size: expected 1 or more, got {len(images)}, {epochs} and {batch_size}")
    rng = np.random.default_rng(seed)
    model.forget()
    net = copy.deepcopy(model).train()
    backend = net.backend
    criterion, update = CrossEntropyLoss(), optimizer(net.parameters())
    losses = []
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images), batch_size):
            chosen = order[start : start + batch_size]
            loss = criterion(net(backend.asarray(images[chosen])), backend.asarray(targets[chosen]))
            update.zero_grad()
            net.backward(criterion.backward(), input_gradient=False)
            update.step()
            losses.append(float(backend.to_numpy(loss)))
    net.eval()
    right = 0
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        guesses = backend.to_numpy(net(backend.asarray(images[part]))).argmax(axis=1)
        right += int(np.sum(guesses == targets[part]))
        net.forget()
    return Overfit(right / len(images), losses)
