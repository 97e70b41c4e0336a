"""One module for each library that is measured: `versions`, `variants` and `build`, which returns a `Step`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BATCHES = 4  # a few batches in turn: with one alone a net memorises it and its gradients fade


def _nothing() -> None:
    return None


@dataclass
class Step:
    """One variant of one workload, ready to run."""

    call: Callable[[], Any]  # one whole step, finished when it returns
    prepare: Callable[[], None] = _nothing  # before each turn: settings that belong to the process, such as threads
    loss: Callable[[], float | None] = _nothing  # the last loss: the numbers must have stayed finite
    parameters: int = 0


def normal(seed: int, *shape: int) -> Any:
    """Standard normal float32 of a NumPy of any age."""
    import numpy as np

    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def labels(seed: int, count: int, classes: int = 10) -> Any:
    import numpy as np

    return np.random.RandomState(seed).randint(0, classes, count)
