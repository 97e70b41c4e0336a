"""What a network says of a whole set: probabilities beside the numbers that they give."""

from __future__ import annotations

from typing import Any, NamedTuple

from xpcnn import functional as F
from xpcnn.backend import Array
from xpcnn.data import DataLoader
from xpcnn.nn import Module, no_grad
from xpcnn.nn.precision import call
from xpcnn.training import Metrics, Trainer


class Evaluation(NamedTuple):
    """Metrics of a set, and (N, K) probabilities and labels in its order, on the model's backend."""

    metrics: Metrics
    probabilities: Array
    labels: Array


def probabilities(model: Module, x: Array) -> Array:
    """Return what the model, in eval mode and without keeping anything, gives each class: (N, K)."""
    return F.softmax(_logits(model, [x]))


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
    logits = _logits(model, batches())
    truth = backend.xp.concatenate(labels)
    loss, _ = F.cross_entropy(logits, truth)
    right = backend.to_numpy(logits).argmax(axis=1) == _indices(backend.to_numpy(truth))
    metrics = Metrics(float(backend.to_numpy(loss)), int(right.sum()) / len(right), len(right))
    return Evaluation(metrics, F.softmax(logits), truth)


def _indices(labels: Any) -> Any:
    return labels.argmax(axis=1) if labels.ndim == 2 else labels


def _logits(model: Module, batches: Any) -> Array:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with no_grad():
            return model.backend.xp.concatenate([call(model, x) for x in batches])
    finally:
        for module, training in modes:
            module.training = training


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

    def evaluate(self, data: Any) -> Metrics:
        """Return loss (a mean over the samples, whatever the training's) and accuracy."""
        if not isinstance(data, DataLoader):
            return super().evaluate(data)
        self.last, self.last_loader = evaluate(self.model, data), data
        return self.last.metrics
