"""`xpcnn evaluate`: the network of a run folder or model file on a test set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def run(arguments: argparse.Namespace) -> int:
    """Print accuracy by class, and `test accuracy: 0.9xxx`."""
    from xpcnn import recipes
    from xpcnn.datasets.source import look_at

    if look_at(arguments.source) == "file":
        predictor = recipes.load_predictor(arguments.source, backend=arguments.backend)
        test = recipes.load_test_set(arguments.data, predictor)
        backend, name = predictor.model.backend, Path(arguments.source).name
        shares, labels, classes = predictor.probabilities(test.images), test.labels, predictor.classes
        loss = _cross_entropy(backend.to_numpy(shares), labels)
    else:
        done = recipes.load(arguments.source, backend=arguments.backend, data=arguments.data)
        backend, name = done.model.backend, done.recipe.name
        shares, labels, classes = done.evaluation.probabilities, done.evaluation.labels, done.test.classes
        labels = backend.to_numpy(labels)
        loss = done.metrics.loss
    labels = labels.argmax(axis=1) if labels.ndim == 2 else labels
    _report(name, backend.to_numpy(shares).argmax(axis=1), labels, loss, classes)
    return 0


def _report(name: str, predicted: np.ndarray, labels: np.ndarray, loss: float, classes: Sequence[Any] | None) -> None:
    print(f"{name}: {len(labels):,} test images, loss {loss:.4f}")
    names = (
        [str(label) for label in range(int(labels.max()) + 1)] if classes is None else [str(each) for each in classes]
    )
    width = max(5, *map(len, names))
    print(f"{'class':>{width}}  images  right  accuracy")
    for label, shown in enumerate(names):
        mine = labels == label
        right = int((predicted[mine] == label).sum())
        print(f"{shown:>{width}}  {int(mine.sum()):6}  {right:5}  {right / max(1, int(mine.sum())):8.4f}")
    print(f"test accuracy: {int((predicted == labels).sum()) / len(labels):.4f}")


def _cross_entropy(shares: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of -log of what the right classes were given."""
    from xpcnn.errors import DataError

    if labels.ndim == 1 and labels.max() >= shares.shape[1]:
        raise DataError(
            f"data: expected labels below {shares.shape[1]}, as many as the model knows, got {labels.max()}"
        )
    logs = np.log(np.maximum(shares.astype(np.float64), np.finfo(np.float32).tiny))
    return float(
        -(logs * labels).sum(axis=1).mean() if labels.ndim == 2 else -logs[np.arange(len(labels)), labels].mean()
    )
