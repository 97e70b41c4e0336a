"""Transfer: a network that has learnt the digits 0 to 4 learns 5 to 9 from few images, by a new last layer alone."""

from __future__ import annotations

import numpy as np

import xpcnn
from xpcnn import nn, optim
from xpcnn.data import DataLoader
from xpcnn.datasets import Dataset
from xpcnn.examples.few import mnist
from xpcnn.training import Trainer

FEW = 40  # images, from which the new classes are learnt


def fit(model: nn.Module, train: Dataset, test: Dataset, epochs: int) -> float:
    """Train what is not frozen, and return the test accuracy."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainer = Trainer(model, optim.Adam(trainable, 3e-3), nn.CrossEntropyLoss())
    trainer.fit(DataLoader(train.images, train.labels, 32), epochs=epochs)
    return trainer.evaluate(DataLoader(test.images, test.labels, 250, shuffle=False)).accuracy


def part(data: Dataset, first: int) -> Dataset:
    """Return the five classes from `first` on, numbered from 0."""
    chosen = np.flatnonzero((data.labels >= first) & (data.labels < first + 5))
    found = data.subset(chosen)
    return Dataset(found.images, found.labels - first)


def body() -> nn.Sequential:
    """Return what makes 512 features of an image: (N, 1, 28, 28) to (N, 512)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
    )  # fmt: skip


def main() -> tuple[float, float]:
    """Return the accuracy on the new classes with what was learnt before, and from scratch."""
    xpcnn.manual_seed(0)
    train, test = mnist()
    few, unseen = part(train, 5).subset(slice(FEW)), part(test, 5)

    learnt = body()
    print(f"digits 0 to 4: {fit(nn.Sequential(learnt, nn.Linear(512, 5)), part(train, 0), part(test, 0), 1):.4f}")
    learnt.requires_grad_(False)  # no gradient, no update, and no time for them
    with_body = fit(nn.Sequential(learnt, nn.Linear(512, 5)), few, unseen, 10)
    scratch = fit(nn.Sequential(body(), nn.Linear(512, 5)), few, unseen, 10)
    print(f"digits 5 to 9 from {len(few)} images: {with_body:.4f} with a new last layer, {scratch:.4f} from scratch")
    return with_body, scratch


if __name__ == "__main__":
    main()
