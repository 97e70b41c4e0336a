"""Loss objects: `loss = criterion(logits, labels)`, then `dlogits = criterion.backward()`."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from xpcnn.backend import Array, backend_of, get_backend
from xpcnn.backend.graph import Guarded, see
from xpcnn.errors import DTypeError, StateError
from xpcnn.functional.elementwise_loss import binary_cross_entropy_with_logits, l1_loss, mse_loss
from xpcnn.functional.loss import check_ignore_index, check_reduction, check_smoothing, cross_entropy
from xpcnn.functional.precision import cast


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
    """Softmax cross-entropy of logits (N, K) and labels (N,) or (N, K), or of every pixel: (N, K, H, W) and (N, H, W).

    Parameters
    ----------
    weight : array or list (K,), optional
        Of each class; goes to the active backend when the loss is made.
    ignore_index : int, optional
        The label of what counts nowhere.
    label_smoothing : float
        From 0 to 1.
    reduction : str
        "mean", by the labels' weights, or "sum".

    Examples
    --------
    >>> criterion = nn.CrossEntropyLoss()
    >>> round(float(criterion(np.zeros((2, 10), "float32"), np.array([3, 7]))), 4)  # log 10
    2.3026
    >>> criterion.backward().shape
    (2, 10)
    """

    def __init__(
        self,
        *,
        weight: Any = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.weight, self.ignore_index = _placed("weight", weight), check_ignore_index(ignore_index)
        self.label_smoothing, self.reduction = check_smoothing(label_smoothing), reduction

    def __call__(self, logits: Array, labels: Array) -> Array:
        see(self)
        loss, self._gradient = cross_entropy(
            logits,
            labels,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )
        return loss


class _Distance(_Loss):
    """Of x from a target of its shape, over all elements."""

    classifies = False

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction


class MSELoss(_Distance):
    """Mean (or sum) over all elements of (x - target)^2.

    Examples
    --------
    >>> criterion = nn.MSELoss()
    >>> float(criterion(np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    2.0
    >>> criterion.backward()
    array([ 0., -2.])
    """

    def __call__(self, x: Array, target: Array) -> Array:
        see(self)
        loss, self._gradient = mse_loss(x, target, reduction=self.reduction)
        return loss


class L1Loss(_Distance):
    """Mean (or sum) over all elements of |x - target|.

    Examples
    --------
    >>> criterion = nn.L1Loss()
    >>> float(criterion(np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    1.0
    >>> criterion.backward()
    array([ 0. , -0.5])
    """

    def __call__(self, x: Array, target: Array) -> Array:
        see(self)
        loss, self._gradient = l1_loss(x, target, reduction=self.reduction)
        return loss


class BCEWithLogitsLoss(_Loss):
    """Yes or no for each number of x, with targets like x from 0 to 1; formula in `functional`.

    Parameters
    ----------
    pos_weight : array or list that broadcasts to the shape of x, optional
        What a yes weighs beside a no; goes to the active backend when the loss is made.
    reduction : str
        "mean" or "sum" over all elements.

    Examples
    --------
    >>> criterion = nn.BCEWithLogitsLoss()
    >>> round(float(criterion(np.zeros(2), np.array([0.0, 1.0]))), 4)  # log 2
    0.6931
    >>> criterion.backward()
    array([ 0.25, -0.25])
    """

    classifies = False

    def __init__(self, *, pos_weight: Any = None, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.pos_weight, self.reduction = _placed("pos_weight", pos_weight), reduction

    def __call__(self, x: Array, target: Array) -> Array:
        see(self)
        loss, self._gradient = binary_cross_entropy_with_logits(
            x, target, pos_weight=self.pos_weight, reduction=self.reduction
        )
        return loss


def _placed(name: str, weights: Any) -> Array | None:
    """Return weights as a floating array of the active backend."""
    if weights is None:
        return None
    backend = get_backend()
    with contextlib.suppress(DTypeError):  # numbers, and no array yet
        owner = backend_of(weights)
        weights = weights if owner is backend else owner.to_numpy(weights)
    try:
        array = backend.asarray(weights)
    except (TypeError, ValueError) as error:
        raise DTypeError(f"{name}: expected an array or numbers, got {weights!r:.60}") from error
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"{name}: expected an array or numbers, got {array.dtype}")
    return backend.place(array if array.dtype.kind == "f" else cast(backend, array, "float32"))
