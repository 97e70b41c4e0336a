"""One epoch of MNIST through the loader in batches of 128, as the recipes prepare it, on every backend that answers."""

from __future__ import annotations

from typing import Any

import pytest

from xpcnn.data import Compose, DataLoader, Normalize, Pad, Repeat, ToFloat
from xpcnn.datasets import load_mnist

TRANSFORMS = {
    "x / 255": ToFloat(),
    "lenet5: padded by 2, normalised": Compose(Pad(2), Normalize(0.1307, 0.3081)),
    "three-layer: padded by 2, shifted, three channels": Compose(Pad(2), Normalize(0.13, 1.0), Repeat(3)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_epoch_of_mnist(timed: Any, backend: Any, name: str) -> None:
    train, _ = load_mnist()
    loader = DataLoader(train.images, train.labels, 128, transform=TRANSFORMS[name])

    def epoch() -> None:
        for _batch in loader:
            pass
        backend.synchronize()

    timed(f"epoch of 60,000: {name}", backend.name, epoch, tuple, 9)
