"""A layer of one's own: LogSumExp pooling, between the mean and the maximum of a picture's channels."""

from __future__ import annotations

import numpy as np

import xpcnn
from xpcnn import nn, optim
from xpcnn.backend import Array, backend_of
from xpcnn.data import DataLoader
from xpcnn.examples.few import mnist
from xpcnn.testing import gradcheck
from xpcnn.training import Trainer


class LogSumExpPool(nn.Module):
    """y = log(mean exp(r x)) / r over height and width; dx = dy softmax(r x).

    Parameters
    ----------
    sharpness : float
        r: towards 0 it is the mean, towards infinity the maximum.

    References
    ----------
    Pinheiro and Collobert 2015, From image-level to pixel-level labeling with convolutional networks, equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> LogSumExpPool(1.0)(np.zeros((2, 3, 4, 4), "float32")).shape
    (2, 3)
    """

    def __init__(self, sharpness: float = 4.0) -> None:
        super().__init__()
        self.sharpness = sharpness  # an attribute of the argument's name: `save_model` writes it

    def forward(self, x: Array) -> Array:
        xp = backend_of(x).xp
        scaled = self.sharpness * x
        highest = scaled.max(axis=(2, 3), keepdims=True)  # (N, C, 1, 1): exp cannot overflow
        powers = xp.exp(scaled - highest)
        total = powers.sum(axis=(2, 3), keepdims=True)
        self.keep((powers, total))
        mean = total / (x.shape[2] * x.shape[3])
        return ((xp.log(mean) + highest) / self.sharpness)[:, :, 0, 0]  # (N, C)

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        powers, total = self.take()
        return dy[:, :, None, None] * (powers / total)  # (N, C, H, W)


def main() -> float:
    """Prove the layer, train with it, and return the test accuracy."""
    xpcnn.manual_seed(0)
    print(gradcheck(LogSumExpPool(), np.random.default_rng(0).normal(size=(2, 3, 4, 5))))
    train, test = mnist()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.ReLU(), LogSumExpPool(), nn.Linear(64, 10)
    )
    trainer = Trainer(model, optim.Adam(model.parameters(), 3e-3), nn.CrossEntropyLoss())
    trainer.fit(DataLoader(train.images, train.labels, 64), epochs=1)
    accuracy = trainer.evaluate(DataLoader(test.images, test.labels, 250, shuffle=False)).accuracy
    print(f"test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    main()
