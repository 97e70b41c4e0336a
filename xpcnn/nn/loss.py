"""Loss objects: `loss = criterion(logits, labels)`, then `dlogits = criterion.backward()`."""

from __future__ import annotations

from typing import Any, ClassVar

from xpcnn.backend import Array
from xpcnn.backend.graph import Guarded, see
from xpcnn.errors import StateError
from xpcnn.functional.loss import check_reduction, check_smoothing, cross_entropy, mse_loss


class _Loss(Guarded):
    """Keeps the gradient of its last call for `backward`."""

    unguarded = frozenset({"_gradient"})
    classifies: ClassVar[bool] = True  # whether labels are classes, so that a training has an accuracy

    def __init__(self) -> None:
        self._gradient: Array | None = None

    def leave_trace(self, before: Any, undo: bool) -> None:
        """Drop a gradient that nobody has taken: replays leave none."""
        self._gradient = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_gradient": None}

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
        self.label_smoothing, self.reduction = check_smoothing(label_smoothing), reduction

    def __call__(self, logits: Array, labels: Array) -> Array:
        see(self)
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
        see(self)
        loss, self._gradient = mse_loss(x, target, reduction=self.reduction)
        return loss
