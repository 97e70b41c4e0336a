"""`xpcnn evaluate`: the network of a run folder or model file on a test set."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def run(arguments: argparse.Namespace) -> int:
    """Print accuracy by class and `test accuracy: 0.9xxx`, or the same in JSON."""
    from xpcnn import recipes
    from xpcnn.datasets.source import look_at

    is_run = look_at(arguments.source) != "file"
    if not is_run or recipes.holds_pictures(arguments.data):
        predictor = recipes.load_predictor(arguments.source, backend=arguments.backend)
        test = recipes.load_test_set(arguments.data, predictor, arguments.source if is_run else None)
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
    found = _counted(name, backend.to_numpy(shares).argmax(axis=1), labels, loss, classes)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def _counted(
    name: str, predicted: np.ndarray, labels: np.ndarray, loss: float, classes: Sequence[Any] | None
) -> dict[str, Any]:
    names = range(int(labels.max()) + 1) if classes is None else classes
    rows = []
    for label, shown in enumerate(names):
        mine = labels == label
        count, right = int(mine.sum()), int((predicted[mine] == label).sum())
        # Of a class without images there is no accuracy.
        rows.append(
            {"class": str(shown), "images": count, "right": right, "accuracy": right / count if count else None}
        )
    accuracy = int((predicted == labels).sum()) / len(labels)
    return {"model": name, "images": len(labels), "loss": loss, "accuracy": accuracy, "classes": rows}


def _print(found: dict[str, Any]) -> None:
    print(f"{found['model']}: {found['images']:,} test images, loss {found['loss']:.4f}")
    width = max(5, *(len(row["class"]) for row in found["classes"]))
    print(f"{'class':>{width}}  images  right  accuracy")
    for row in found["classes"]:
        accuracy = row["accuracy"] or 0.0
        print(f"{row['class']:>{width}}  {row['images']:6}  {row['right']:5}  {accuracy:8.4f}")
    print(f"test accuracy: {found['accuracy']:.4f}")


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
