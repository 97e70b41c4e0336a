"""Which classes are taken for which."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.errors import DataError, ShapeError
from xpcnn.plot.figure import INK, Canvas, PathLike, check_axes, class_names, figure_of, finish, host


def confusion_matrix(
    labels: Any, predicted: Any, path: PathLike | None = None, *, classes: Any = None, ax: Any = None
) -> Any:
    """Draw how many samples of each class were taken for each class.

    Colours show the mistakes alone, on a scale of their own: beside the thousands on the diagonal they would vanish.

    Parameters
    ----------
    labels : (N,) integers, or (N, K) one-hot
        What the samples are.
    predicted : (N,) integers, or (N, K) scores
        What the network says.
    path : path, optional
        Of a PNG.
    classes : sequence of str, optional
        What the classes are called; their numbers by default.
    ax : matplotlib.axes.Axes, optional
        Where it is drawn, in the place of a figure of its own.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ShapeError, DTypeError, DataError
        The arrays do not fit each other, are empty or hold negative numbers; the file cannot be written.
    ConfigError
        matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> figure = plot.confusion_matrix([0, 0, 1], [0, 1, 1], classes=["cat", "dog"])
    >>> type(figure).__name__
    'Figure'
    """
    counts = _count(host("labels", labels), host("predicted", predicted))
    names = class_names(classes, len(counts))
    size = 0.44 * len(counts)
    check_axes(ax)
    axes = ax if ax is not None else Canvas(size + 1.35, size + 1.35).axes(0.75, 0.65, size, size)
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    most = max(1, int(mistakes.max()))
    axes.imshow(mistakes / most, cmap="Oranges", vmin=0.0, vmax=1.4, interpolation="nearest")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            weight = "bold" if i == j else "normal"
            axes.text(j, i, f"{count}", color=INK, fontsize=8, ha="center", va="center", fontweight=weight)
    ticks = range(len(counts))
    axes.set_xticks(ticks, names[: len(counts)])
    axes.set_yticks(ticks, names[: len(counts)])
    axes.tick_params(length=0)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("label", color=INK)
    total = int(counts.sum())
    wrong = total - int(np.trace(counts))
    axes.set_title(f"{wrong:,} of {total:,} wrong", color=INK, fontsize=11, loc="left")
    return finish(figure_of(axes), path)


def _count(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return (K, K): row label, column prediction."""
    sides = [values.argmax(axis=1) if values.ndim == 2 else values for values in (labels, predicted)]
    if any(side.ndim != 1 for side in sides) or len(sides[0]) != len(sides[1]) or not len(sides[0]):
        raise ShapeError(f"predicted: expected one for each label, got {predicted.shape} for labels {labels.shape}")
    if any(side.dtype.kind not in "iu" or side.min() < 0 for side in sides):
        raise DataError("labels, predicted: expected class indices of 0 or more, or rows of scores")
    wide = [values.shape[1] for values in (labels, predicted) if values.ndim == 2]
    classes = max([int(side.max()) + 1 for side in sides] + wide)
    return np.bincount(sides[0].astype(np.int64) * classes + sides[1].astype(np.int64), minlength=classes**2).reshape(
        classes, classes
    )
