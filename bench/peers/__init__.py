"""One module for each library that is measured: `versions`, `variants` and `build`, which returns a `Step`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PIECE = 1 << 16  # numbers drawn at a time


def _nothing() -> None:
    return None


@dataclass
class Step:
    """One variant of one workload, ready to run."""

    call: Callable[[], Any]  # one whole step, finished when it returns
    prepare: Callable[[], None] = _nothing  # before each turn: settings that belong to the process, such as threads
    loss: Callable[[], float | None] = _nothing  # the last loss: the numbers must have stayed finite
    parameters: int = 0


def batches(size: int) -> range:
    """Seeds of the batches that a training step takes in turn: with one alone a net memorises it and gradients fade."""
    return range(max(4, 128 // size))


def normal(seed: int, *shape: int) -> Any:
    """Standard normal float32, drawn in pieces so that the float64 draws do not set the peak of memory."""
    import numpy as np

    draw = np.random.RandomState(seed)
    flat = np.empty(math.prod(shape), np.float32)
    for start in range(0, flat.size, PIECE):
        part = flat[start : start + PIECE]
        part[:] = draw.standard_normal(part.size)
    return flat.reshape(shape)


def labels(seed: int, count: int, classes: int = 10) -> Any:
    import numpy as np

    return np.random.RandomState(seed).randint(0, classes, count)
