"""Loss and accuracy: what `evaluate` returns, and sums that stay on the device until somebody reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ShapeError

if TYPE_CHECKING:
    from xpcnn.training.per_class import ClassMetrics


@dataclass(frozen=True)
class Metrics:
    """Mean loss, and the share of samples whose highest logit is the label's, over `count` samples.

    The share is nan where the targets are no classes. `per_class` is there where it was asked for.

    Examples
    --------
    >>> from xpcnn import training
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss())
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> metrics = trainer.evaluate(batches)
    >>> metrics.count, 0 <= metrics.accuracy <= 1
    (8, True)
    """

    loss: float
    accuracy: float
    count: int = 0
    per_class: ClassMetrics | None = field(default=None, repr=False)


class RunningAverage:
    """A mean over values of different weight, such as batch losses over batches of different size.

    Examples
    --------
    >>> from xpcnn import training
    >>> average = training.RunningAverage()
    >>> average.add(3.0, 1)
    >>> average.add(6.0, 3)
    >>> average.value
    2.25
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.weight = 0

    def __repr__(self) -> str:
        return f"RunningAverage({self.value:.6g} over {self.weight})"

    def add(self, total: float, weight: int = 1) -> None:
        """Take in `weight` samples whose values add up to `total`."""
        self.total += total
        self.weight += weight

    @property
    def value(self) -> float:
        """The mean so far; nan before the first value."""
        return self.total / self.weight if self.weight else math.nan

    def reset(self) -> None:
        """Forget everything."""
        self.total, self.weight = 0.0, 0


def has_accuracy(criterion: Any) -> bool:
    """Whether a loss, which may be the user's own, is one of classes."""
    return bool(getattr(criterion, "classifies", True))


def write_hits(logits: Array, labels: Array, out: Array) -> None:
    """Count the samples whose highest logit (the first, where several are) is the label's; nothing waits for it.

    Parameters
    ----------
    logits : (N, K) or (N, K, ...) array
        Scores; of pixels, a sample's count is the share of its pixels.
    labels : (N,) or (N, ...) integers, or one-hot or probabilities like the logits
        Floats of any other shape, such as (N, 1), are values and no classes.
    out : 0-d array, float64
        Where the count goes, or nan where there is none.

    Raises
    ------
    ShapeError
        There is not one label for each row of logits.
    """
    if labels.dtype.kind == "f" and (labels.ndim != logits.ndim or labels.ndim < 2 or labels.shape[1] == 1):
        backend_of(logits, labels).xp.copyto(out, math.nan)
        return
    shape = tuple(logits.shape)
    if logits.ndim < 2 or tuple(labels.shape) not in (shape, shape[:1] + shape[2:]):
        raise ShapeError(f"labels: expected (N,) or (N, K) for logits (N, K), got {tuple(labels.shape)} for {shape}")
    xp = backend_of(logits, labels).xp
    if labels.ndim == logits.ndim:
        labels = xp.argmax(labels, axis=1)
    xp.sum(xp.equal(xp.argmax(logits, axis=1), labels), dtype="float64", out=out)
    if logits.ndim > 2:
        xp.multiply(out, 1.0 / max(1, math.prod(shape[2:])), out=out)


class Ledger:
    """Rows of numbers, one per step, that are written on the device and read many at a time.

    Parameters
    ----------
    backend : Backend
        Where the rows lie.
    width : int
        Numbers in a row.
    length : int
        Rows that fit before `read` must be called.
    """

    def __init__(self, backend: Backend, width: int, length: int) -> None:
        self.backend = backend
        self.row = backend.place(backend.zeros((width,), "float64"))
        self._table = backend.zeros((length, width), "float64")
        self._rows = [self._table[i] for i in range(length)]
        self._used = 0

    @property
    def full(self) -> bool:
        """Whether the next `keep` would have no room."""
        return self._used == len(self._rows)

    def keep(self) -> None:
        """Copy `row` to the end of the table."""
        self._rows[self._used][...] = self.row
        self._used += 1

    def read(self) -> list[list[float]]:
        """Bring the rows kept since the last call to the host; the one moment that waits for the device."""
        if not self._used:
            return []
        rows: list[list[float]] = self.backend.to_numpy(self._table[: self._used]).tolist()
        self._used = 0
        self.backend.check_demands()
        return rows
