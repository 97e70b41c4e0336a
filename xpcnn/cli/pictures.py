"""The pictures of a run. Their time counts as the run's, so matplotlib is imported while the data is unpacked."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xpcnn.recipes import Run


def warm_up() -> None:
    """Begin to import matplotlib in a thread; whether that worked is seen when something is drawn."""

    def load() -> None:
        with contextlib.suppress(Exception):
            # Nothing of xpcnn's own, which the main thread imports meanwhile.
            import matplotlib.backends.backend_agg
            import matplotlib.figure  # noqa: F401

    threading.Thread(target=load, daemon=True).start()


def draw(done: Run) -> None:
    """Draw curves, predictions, confusion, filters and feature maps into the run folder.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    DataError
        A file cannot be written.
    """
    from xpcnn import plot

    if done.folder is None:
        return
    accuracy = done.metrics.accuracy
    title = f"{done.settings.recipe}, seed {done.settings.seed}: test accuracy {accuracy:.4f}"
    plot.history(done.history, done.folder / "curves.png", title=title)
    probabilities, labels = done.evaluation.probabilities, done.evaluation.labels
    images, classes = np.asarray(done.test.images), done.test.classes
    plot.predictions(images, labels, probabilities, done.folder / "predictions.png", classes=classes)
    plot.confusion_matrix(labels, probabilities, done.folder / "confusion.png", classes=classes)
    plot.filters(done.model, done.folder / "filters.png")
    image = done.recipe.transforms[done.kind](done.model.backend.asarray(images[:1]))
    plot.feature_maps(done.model, image, done.folder / "features.png")
