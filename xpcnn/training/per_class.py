"""Precision, recall and F1 of each class, from labels and what a network says."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xpcnn.backend import backend_of, use_backend
from xpcnn.errors import DataError, DTypeError, ShapeError

COLUMNS = ("precision", "recall", "f1", "support")


@dataclass(frozen=True)
class ClassMetrics:
    """How well each class is told from the others.

    Attributes
    ----------
    precision, recall, f1 : tuple of float
        By class: the share of right ones among those that were taken for it; the share of its samples that were; and
        the harmonic mean of both. 0 where there is nothing to divide by.
    support : tuple of int
        Samples of each class.
    confusion : tuple of tuple of int
        Row label, column prediction.
    classes : tuple of str
        What they are called; their numbers by default.

    Examples
    --------
    >>> from xpcnn import training
    >>> found = training.class_metrics([0, 0, 1], [0, 1, 1], classes=["cat", "dog"])
    >>> found.precision, found.recall, found.confusion
    ((1.0, 0.5), (0.5, 1.0), ((1, 1), (0, 1)))
    """

    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]

    @property
    def macro(self) -> tuple[float, float, float]:
        """Precision, recall and F1 as means over the classes, each of which counts the same."""
        count = len(self.support)
        return sum(self.precision) / count, sum(self.recall) / count, sum(self.f1) / count

    @property
    def weighted(self) -> tuple[float, float, float]:
        """Precision, recall and F1 as means over the samples' classes."""
        total = sum(self.support)
        columns = [self.precision, self.recall, self.f1]
        first, second, third = (
            sum(value * n for value, n in zip(column, self.support, strict=True)) / total for column in columns
        )
        return first, second, third

    def _rows(self) -> list[list[str]]:
        columns = zip(self.classes, self.precision, self.recall, self.f1, self.support, strict=True)
        rows = [[name, f"{p:.4f}", f"{r:.4f}", f"{f:.4f}", f"{n}"] for name, p, r, f, n in columns]
        total = f"{sum(self.support)}"
        rows += [[name, *(f"{value:.4f}" for value in means), total] for name, means in
                 (("macro mean", self.macro), ("weighted mean", self.weighted))]  # fmt: skip
        return [["class", *COLUMNS], *rows]

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = (
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._rows()]
        return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{'</tr><tr>'.join(rows)}</tr></tbody></table>"


def class_metrics(
    labels: Any, predicted: Any, *, classes: Sequence[str] | None = None, num_classes: int = 0
) -> ClassMetrics:
    """Return precision, recall and F1 of each class.

    Parameters
    ----------
    labels : (N,) integers, or (N, K) one-hot or probabilities
        What the samples are, of any backend.
    predicted : (N,) integers, or (N, K) scores
        What the network says, such as `trainer.predict(images)`.
    classes : sequence of str, optional
        What the classes are called.
    num_classes : int
        How many there are at least.

    Raises
    ------
    ShapeError, DTypeError, DataError
        There is not one prediction for each label, or no label; they are no class indices of 0 or more; a class has
        no name.

    Notes
    -----
    With TP of a class the samples that are of it and taken for it: precision = TP / taken for it, recall = TP / of it,
    F1 = 2 TP / (of it + taken for it); `sklearn.metrics.precision_recall_fscore_support` with zero_division=0 gives
    the same numbers. Classes are those up to the highest that occurs, or the K of scores.

    Examples
    --------
    >>> from xpcnn import training
    >>> found = training.class_metrics([0, 0, 1], [0, 1, 1], classes=["cat", "dog"])
    >>> print(found)
    class          precision  recall      f1  support
    cat               1.0000  0.5000  0.6667        2
    dog               0.5000  1.0000  0.6667        1
    macro mean        0.7500  0.7500  0.6667        3
    weighted mean     0.8333  0.6667  0.6667        3
    """
    with use_backend("numpy") as host:
        xp = host.xp
        sides, widths = [], []
        for name, given in (("labels", labels), ("predicted", predicted)):
            values = xp.asarray(given if isinstance(given, (list, tuple)) else backend_of(given).to_numpy(given))
            if values.ndim not in (1, 2) or not values.shape[0]:
                raise ShapeError(f"{name}: expected (N,) or (N, K) with N of 1 or more, got {tuple(values.shape)}")
            if values.ndim == 2:
                widths.append(values.shape[1])
                values = values.argmax(axis=1)
            if values.dtype.kind not in "iu":
                raise DTypeError(f"{name}: expected integers (N,) or rows of scores (N, K), got {values.dtype}")
            if values.min() < 0:
                raise DataError(f"{name}: expected class indices of 0 or more, got {values.min()}")
            sides.append(values.astype("int64"))
        truth, said = sides
        if truth.shape != said.shape:
            raise ShapeError(f"predicted: expected one for each of {len(truth)} labels, got {len(said)}")
        count = max([int(truth.max()) + 1, int(said.max()) + 1, num_classes, *widths])
        if classes is not None:
            if len(classes) < count:
                raise ShapeError(f"classes: expected {count} names or more, got {len(classes)}")
            count = len(classes)
        table = xp.bincount(truth * count + said, minlength=count * count).reshape(count, count)
        right, of_it, taken = xp.diagonal(table), table.sum(axis=1), table.sum(axis=0)

        def share(part: Any, whole: Any) -> tuple[float, ...]:
            return tuple((part / xp.maximum(whole, 1)).tolist())  # on the host

        return ClassMetrics(
            share(right, taken),
            share(right, of_it),
            share(2 * right, of_it + taken),
            tuple(of_it.tolist()),  # on the host
            tuple(map(tuple, table.tolist())),  # on the host
            tuple(map(str, range(count) if classes is None else classes)),
        )
