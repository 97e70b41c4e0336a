"""Loss objects: `loss = criterion(logits, labels)`, then `dlogits = criterion.backward()`."""

from __future__ import annotations

from typing import ClassVar

from xpcnn.backend import Array
from xpcnn.errors import ConfigError, StateError
from xpcnn.functional.loss import check_reduction, cross_entropy, mse_loss


class _Loss:
    """Keeps the gradient of its last call for `backward`."""

    classifies: ClassVar[bool] = True  # whether labels are classes, so that a training has an accuracy

    def __init__(self) -> None:
        self._gradient: Array | None = None

    def __repr__(self) -> str:
        options = (f"{name}={value!r:.60}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(options)})"

    def backward(self) -> Array:
        """Return d loss / d input of the last call; each call allows one.

        Raises
        ------
        StateError
            There was no call, or its gradient is taken.
        """
        gradient, self._gradient = self._gradient, None
        if gradient is None:
            raise StateError(f"{type(self).__name__}.backward: expected a call of the loss before it, got none")
        return gradient


class CrossEntropyLoss(_Loss):
    """Softmax cross-entropy of logits (N, K) and labels (N,) or (N, K).

    Parameters
    ----------
    label_smoothing : float
        From 0 to 1.
    reduction : str
        "mean" or "sum" over the batch.
    """

    def __init__(self, *, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ConfigError(f"label_smoothing: expected a share from 0 to 1, got {label_smoothing!r}")
        self.label_smoothing, self.reduction = label_smoothing, reduction

    def __call__(self, logits: Array, labels: Array) -> Array:
        loss, self._gradient = cross_entropy(
            logits, labels, label_smoothing=self.label_smoothing, reduction=self.reduction
        )
        return loss


class MSELoss(_Loss):
    """Mean (or sum) over all elements of (x - target)^2."""

    classifies = False

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def __call__(self, x: Array, target: Array) -> Array:
        loss, self._gradient = mse_loss(x, target, reduction=self.reduction)
        return loss
