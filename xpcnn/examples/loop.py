"""A training loop of one's own: forward, loss, backward, update. The function `step` is all there is to it."""

from __future__ import annotations

import time

import xpcnn
from xpcnn import nn, optim
from xpcnn.backend import Array
from xpcnn.data import DataLoader
from xpcnn.examples.few import mnist
from xpcnn.nn import Inference


def network() -> nn.Sequential:
    """Return two convolutions and a classifier: (N, 1, 28, 28) to (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def main() -> float:
    """Train two epochs, the second one recorded, and return the test accuracy."""
    xpcnn.manual_seed(0)
    train, test = mnist()
    model, criterion = network(), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def step(x: Array, y: Array) -> Array:
        loss = criterion(model(x), y)
        model.backward(criterion.backward(), input_gradient=False)  # nobody needs the gradient of the images
        optimizer.step()
        optimizer.zero_grad()
        return loss

    for name, function in (("as written", step), ("compiled", xpcnn.compile(step))):
        start = time.perf_counter()
        losses = [float(function(x, y)) for x, y in DataLoader(train.images, train.labels, 64)]
        print(f"{name:10}  mean loss {sum(losses) / len(losses):.4f}  {time.perf_counter() - start:.1f} s")

    predict = Inference(model)  # evaluation mode, batch norm folded into the convolutions
    right = 0
    for x, y in DataLoader(test.images, test.labels, 250, shuffle=False):
        right += int((predict(x).argmax(axis=1) == y).sum())
    print(f"test accuracy {right / len(test):.4f}")
    return right / len(test)


if __name__ == "__main__":
    main()
