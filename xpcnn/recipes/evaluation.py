"""What a network says of a whole set: probabilities beside the numbers that they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xpcnn import functional as F
from xpcnn.backend import Array
from xpcnn.data import DataLoader
from xpcnn.nn import Module
from xpcnn.training import Metrics, Trainer
from xpcnn.training.evaluation import evaluating, fastest_forward


class Evaluation(NamedTuple):
    """Metrics of a set, and (N, K) probabilities and labels in its order, on the model's backend."""

    metrics: Metrics
    probabilities: Array
    labels: Array


def probabilities(model: Module, x: Array) -> Array:
    """Return what the model, in eval mode and without keeping anything, gives each class: (N, K)."""
    return F.softmax(_logits(model, model, [x]))


def evaluate(model: Module, loader: DataLoader) -> Evaluation:
    """Return mean loss, accuracy and the probabilities behind them, over all samples of a loader that does not shuffle.

    Raises
    ------
    DataError
        A label is out of range.
    """
    labels: list[Array] = []

    def batches() -> Any:
        for x, y in loader:
            labels.append(y)
            yield x

    backend = model.backend
    logits = _logits(model, fastest_forward(model), batches())
    truth = backend.xp.concatenate(labels)
    loss, _ = F.cross_entropy(logits, truth)
    right = backend.to_numpy(logits).argmax(axis=1) == _indices(backend.to_numpy(truth))
    metrics = Metrics(float(backend.to_numpy(loss)), int(right.sum()) / len(right), len(right))
    return Evaluation(metrics, F.softmax(logits), truth)


def _indices(labels: Any) -> Any:
    return labels.argmax(axis=1) if labels.ndim == 2 else labels


def _logits(model: Module, forward: Callable[[Array], Array], batches: Any) -> Array:
    with evaluating(model):
        return model.backend.xp.concatenate([forward(x) for x in batches])


class EvaluatingTrainer(Trainer):
    """A trainer that keeps its last evaluation, so that the pictures need no second pass over the set.

    Attributes
    ----------
    last : Evaluation or None
    last_loader : DataLoader or None
        Of what.
    """

    last: Evaluation | None = None
    last_loader: Any = None

    def evaluate(self, data: Any, *, per_class: bool = False) -> Metrics:
        """Return loss (a mean over the samples, whatever the training's) and accuracy."""
        if per_class or not isinstance(data, DataLoader):
            return super().evaluate(data, per_class=per_class)
        self.last, self.last_loader = evaluate(self.model, data), data
        return self.last.metrics
