"""A sweep: learning rates side by side, each training in a thread of its own, with the same first weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import xpcnn
from xpcnn import models, nn, optim
from xpcnn.data import DataLoader
from xpcnn.examples.few import mnist
from xpcnn.training import Trainer

RATES = (0.003, 0.01, 0.03, 0.1)


def main(rates: tuple[float, ...] = RATES) -> dict[float, float]:
    """Return the test accuracy after an epoch with each rate."""
    train, test = mnist()
    xpcnn.manual_seed(0)
    first = models.create("tiny").state_dict()

    def accuracy(rate: float) -> float:
        model = models.create("tiny")
        model.load_state_dict(first)
        trainer = Trainer(model, optim.SGD(model.parameters(), rate, momentum=0.9), nn.CrossEntropyLoss())
        trainer.fit(DataLoader(train.images, train.labels, 64, seed=0), epochs=1)
        return trainer.evaluate(DataLoader(test.images, test.labels, 250, shuffle=False)).accuracy

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(rates, pool.map(accuracy, rates), strict=True))
    for rate, value in found.items():
        print(f"rate {rate:<6}  test accuracy {value:.4f}  {'#' * round(40 * value)}")
    return found


if __name__ == "__main__":
    main()
