"""`xpcnn evaluate`: the network of a run folder on its test set."""

from __future__ import annotations

import argparse


def run(arguments: argparse.Namespace) -> int:
    """Print accuracy by class, and `test accuracy: 0.9xxx`."""
    from xpcnn import recipes

    done = recipes.load(arguments.folder, backend=arguments.backend, data=arguments.data)
    backend = done.model.backend
    predicted = backend.to_numpy(done.evaluation.probabilities).argmax(axis=1)
    labels = backend.to_numpy(done.evaluation.labels)
    labels = labels.argmax(axis=1) if labels.ndim == 2 else labels
    print(f"{done.recipe.name}: {done.metrics.count:,} test images, loss {done.metrics.loss:.4f}")
    print("class  images  right  accuracy")
    for label in range(int(labels.max()) + 1):
        mine = labels == label
        right = int((predicted[mine] == label).sum())
        print(f"{label:5}  {int(mine.sum()):6}  {right:5}  {right / max(1, int(mine.sum())):8.4f}")
    print(f"test accuracy: {done.metrics.accuracy:.4f}")
    return 0
