"""Losses with their gradients: softmax cross-entropy and mean squared error.

The loss of a sample is within a few eps of the dtype (float32 for float16) times max(1, |loss|), its gradient within a
few eps; their sums round as sums do. What has a target of 0 does not count, not even a logit of -inf; a target at one
makes the loss inf, and nan and inf elsewhere make it nan, as in PyTorch. The mean over nothing is nan.
"""

from __future__ import annotations

import math

from xpcnn.backend import Array, Backend
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.functional.layout import batch_last, check_floating, check_like, check_ndim, number, take, take_labels
from xpcnn.functional.precision import cast, cast_batch, is_narrow
from xpcnn.functional.primitive import primitive

REDUCTIONS = ("mean", "sum")
UNSIGNED = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}


@primitive
def softmax_cross_entropy(backend: Backend, logits: Array, target: Array, scale: float) -> tuple[Array, Array]:
    """Return the loss, 0-d, and its gradient (K, N) for logits and target probabilities (K, N), both times `scale`."""
    xp = backend.xp
    shifted = xp.subtract(logits, xp.max(logits, axis=0))
    dlogits = xp.exp(shifted)
    total = xp.sum(dlogits, axis=0)
    xp.subtract(shifted, xp.log(total), out=shifted)  # log-softmax
    loss = backend.empty((), logits.dtype)
    terms = xp.multiply(shifted, target)
    xp.copyto(terms, 0, where=xp.equal(target, 0))  # also of a logit of -inf: 0 * inf is nan
    xp.sum(terms, out=loss)
    xp.multiply(loss, -scale, out=loss)
    xp.divide(dlogits, total, out=dlogits)
    xp.subtract(dlogits, target, out=dlogits)
    xp.multiply(dlogits, scale, out=dlogits)
    return loss, dlogits


def cross_entropy(
    logits: Array, labels: Array, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return -sum over k of t_k log softmax(logits)_k, and its gradient softmax(logits) - t.

    Parameters
    ----------
    logits : array (N, K), floating
    labels : array or list (N,) of integers from 0 to K - 1, or (N, K) one-hot or probabilities
    label_smoothing : float
        Share s of the target that is spread evenly: t = (1 - s) onehot + s / K (Szegedy et al. 2016, section 7).
    reduction : str
        "mean" or "sum" over the batch.

    Returns
    -------
    loss : array, 0-d, dtype of `logits` (float32 for float16)
    dlogits : array (N, K), dtype of `logits`

    Raises
    ------
    ShapeError, DTypeError, DataError, ConfigError, MixedBackendsError
        Shapes or types do not fit; a label is out of range (told at once on NumPy, on a device when its next
        value is read); an option is not allowed.
    """
    backend, logits, labels = take_labels(logits, labels)
    check_ndim("logits", logits, "N, K")
    check_floating("logits", logits)
    check_reduction(reduction)
    label_smoothing = check_smoothing(label_smoothing)
    if is_narrow(logits.dtype):
        wider = cast_batch(backend, logits, "float32")
        loss, dlogits = cross_entropy(wider, labels, label_smoothing=label_smoothing, reduction=reduction)
        return loss, cast_batch(backend, dlogits, logits.dtype)
    n, k = logits.shape
    if not k:
        raise ShapeError(f"logits: expected at least one class, got shape {(n, k)}")
    with backend.errstate():
        target = _targets(backend, labels, n, k, logits.dtype)
        xp = backend.xp
        if label_smoothing:
            target = xp.add(xp.multiply(target, 1.0 - label_smoothing), label_smoothing / k)
        scale = _mean_of(n) if reduction == "mean" else 1.0
        loss, dlogits = softmax_cross_entropy(backend, batch_last(backend, logits), target, scale)
        if labels.ndim == 2:  # targets of a sum w other than 1 give w softmax - t
            softmax = xp.add(dlogits, xp.multiply(target, scale))
            xp.add(dlogits, xp.multiply(softmax, xp.subtract(xp.sum(target, axis=0), 1.0)), out=dlogits)
    return loss, dlogits.T


def check_smoothing(share: float) -> float:
    """Return `share` as a float; raise ConfigError unless it lies in [0, 1]."""
    return number("label_smoothing", share, "a share from 0 to 1", 0.0, 1.0)


def _mean_of(count: int) -> float:
    """Return the factor that makes a sum the mean."""
    return 1.0 / count if count else math.nan


def _targets(backend: Backend, labels: Array, n: int, k: int, dtype: object) -> Array:
    """Return the target probabilities as (K, N)."""
    if labels.ndim == 2:
        if tuple(labels.shape) != (n, k):
            raise ShapeError(f"labels: expected shape {(n, k)} like the logits, got {tuple(labels.shape)}")
        target = backend.empty((k, n), dtype)
        backend.xp.copyto(target, labels.T)
        return target
    if tuple(labels.shape) != (n,):
        raise ShapeError(f"labels: expected shape ({n},) or {(n, k)}, got {tuple(labels.shape)}")
    if labels.dtype.kind not in "iu":
        raise DTypeError(f"labels: expected integers for shape (N,), got {labels.dtype}; convert with astype(int)")
    classes = class_numbers(backend, k)
    xp = backend.xp
    target = backend.empty((k, n), dtype)
    xp.copyto(target, xp.equal(labels, classes))  # (K, N)
    unsigned = labels.view(UNSIGNED[labels.itemsize])  # in which numbers below 0 are huge
    backend.demand(
        xp.less(unsigned, k),
        DataError(f"labels: expected classes from 0 to {k - 1}, got one outside; do the logits have enough columns?"),
    )
    return target


_class_numbers: dict[tuple[int, int], tuple[Backend, Array]] = {}


def class_numbers(backend: Backend, k: int) -> Array:
    """Return 0 to k - 1 as a column (K, 1), made once per backend."""
    backend = backend.home
    kept = _class_numbers.get((id(backend), k))
    if kept is None:
        kept = _class_numbers[id(backend), k] = (backend, backend.constant(backend.xp.arange(k).reshape(k, 1)))
    return kept[1]


def mse_loss(x: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, Array]:
    """Return the mean (or sum) over all elements of (x - target)^2, and its gradient.

    Parameters
    ----------
    x, target : array of one shape, floating
    reduction : str
        "mean" or "sum".

    Returns
    -------
    loss : array, 0-d, dtype of `x` (float32 for float16)
    dx : array like `x`

    Raises
    ------
    ShapeError, DTypeError, ConfigError, MixedBackendsError
        The two do not fit each other, or the reduction is unknown.
    """
    backend, x, target = take("x target", x, target)
    check_floating("x", x)
    check_like("target", target, tuple(x.shape), x.dtype)
    check_reduction(reduction)
    if is_narrow(x.dtype):
        loss, dx = mse_loss(cast(backend, x, "float32"), cast(backend, target, "float32"), reduction=reduction)
        return loss, cast(backend, dx, x.dtype)
    scale = _mean_of(x.size) if reduction == "mean" else 1.0
    xp = backend.xp
    with backend.errstate():
        difference = backend.empty(x.shape, x.dtype)
        xp.subtract(x, target, out=difference)
        loss = backend.empty((), x.dtype)
        xp.sum(xp.multiply(difference, difference), out=loss)
        xp.multiply(loss, scale, out=loss)
        xp.multiply(difference, 2.0 * scale, out=difference)
    return loss, difference


def check_reduction(reduction: str) -> None:
    """Raise ConfigError unless `reduction` is known."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ConfigError(f'reduction: expected "mean" or "sum", got {reduction!r}')
