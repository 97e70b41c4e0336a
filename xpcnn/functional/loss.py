"""Softmax cross-entropy with its gradient, of samples and of pixels.

The loss of a sample is within a few eps of the dtype (float32 for float16) times max(1, |loss|), its gradient within a
few eps; their sums round as sums do. What has a target of 0 does not count, not even a logit of -inf; a target at one
makes the loss inf, and nan and inf elsewhere make it nan, as in PyTorch. The mean over nothing is nan.
"""

from __future__ import annotations

import contextlib
import math
import operator
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.functional.layout import batch_first, batch_last, check_floating, number, take, take_labels
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


@primitive
def class_cross_entropy(
    backend: Backend, logits: Array, labels: Array, label_smoothing: float, scale: float, error: Exception
) -> tuple[Array, Array]:
    """Return the loss and its gradient (K, M) for logits (K, M) and class numbers (M,), both times `scale`.

    `error` is what a label that is no class ends in (`Backend.demand`).
    """
    k, xp = logits.shape[0], backend.xp
    target = _onehot(backend, labels, k, logits.dtype, None, error)
    if label_smoothing:
        target = xp.add(xp.multiply(target, 1.0 - label_smoothing), label_smoothing / k)
    return softmax_cross_entropy(backend, logits, target, scale)


def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Return -sum over k of w_k t_k log softmax(logits)_k, and its gradient softmax(logits) (sum of w t) - w t.

    Parameters
    ----------
    logits : array (N, K) or (N, K, ...), floating
        (N, K, H, W) classifies every pixel.
    labels : array or list (N,) or (N, ...) of integers from 0 to K - 1, or one-hot or probabilities like `logits`
    weight : array (K,), floating, optional
        w, such as larger ones for rare classes; 1 by default.
    ignore_index : int, optional
        The label, in range or not, of what counts nowhere; with labels of integers alone. PyTorch's default is -100,
        which here is said or an error.
    label_smoothing : float
        Share s of the target that is spread evenly: t = (1 - s) onehot + s / K (Szegedy et al. 2016, section 7).
    reduction : str
        "mean" or "sum". The mean goes by the labels' weights, which are 0 where ignored; by the number of labels
        where these are probabilities.

    Returns
    -------
    loss : array, 0-d, dtype of `logits` (float32 for float16)
    dlogits : array like `logits`
        0 where ignored.

    Raises
    ------
    ShapeError, DTypeError, DataError, ConfigError, MixedBackendsError
        Shapes or types do not fit; a label is out of range (told at once on NumPy, on a device when its next
        value is read); an option is not allowed.

    Examples
    --------
    >>> loss, dlogits = F.cross_entropy(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(float(loss), 4)  # log 4
    1.3863
    >>> dlogits
    array([[-0.375,  0.125,  0.125,  0.125],
           [ 0.125,  0.125,  0.125, -0.375]])
    """
    backend, logits, labels = take_labels(logits, labels)
    if weight is not None:
        backend, weight, _ = take("weight logits", weight, logits)
    if logits.ndim < 2:
        raise ShapeError(f"logits: expected shape (N, K) or (N, K, H, W), got {tuple(logits.shape)}")
    check_floating("logits", logits)
    check_reduction(reduction)
    label_smoothing, ignore_index = check_smoothing(label_smoothing), check_ignore_index(ignore_index)
    if is_narrow(logits.dtype):
        loss, dlogits = cross_entropy(
            cast_batch(backend, logits, "float32"),
            labels,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
        return loss, cast_batch(backend, dlogits, logits.dtype)
    n, k, *rest = logits.shape
    if not k:
        raise ShapeError(f"logits: expected at least one class, got shape {tuple(logits.shape)}")
    are_classes = _check_labels(labels, n, k, *rest)
    if ignore_index is not None and not are_classes:
        raise ConfigError("ignore_index: expected None for labels that are probabilities")
    memory = batch_last(backend, logits)
    rows = memory.reshape(k, -1)  # (K, M), M = ... * N
    xp, dtype = backend.xp, logits.dtype
    with backend.errstate():
        weights = None if weight is None else _weights(backend, weight, k, dtype)
        total = kept = None
        if are_classes:
            flat = batch_last(backend, labels).reshape(-1) if rest else labels
            if weights is None and (ignore_index is None or not _holds(flat.dtype, ignore_index)):
                scale = mean_of(rows.shape[1]) if reduction == "mean" else 1.0
                loss, dlogits = class_cross_entropy(backend, rows, flat, label_smoothing, scale, _no_class(k))
                return loss, batch_first(dlogits.reshape(memory.shape))
            if ignore_index is not None and _holds(flat.dtype, ignore_index):
                kept = backend.empty(flat.shape, dtype)
                xp.copyto(kept, xp.not_equal(flat, ignore_index))  # (M,)
            target = _onehot(backend, flat, k, dtype, None if kept is None else ignore_index, _no_class(k))
            for factor in (weights, kept):
                if factor is not None:
                    xp.multiply(target, factor, out=target)
            if reduction == "mean" and not (weights is None and kept is None):
                total = xp.sum(target.reshape(1, -1), axis=1)
        else:
            target = backend.empty(rows.shape, dtype)
            xp.copyto(target.reshape(memory.shape), _memory(labels))
            if weights is not None:
                xp.multiply(target, weights, out=target)
        if label_smoothing:
            spread: Any = label_smoothing / k
            for factor in (weights, kept):
                spread = spread if factor is None else xp.multiply(factor, spread)
            target = xp.add(xp.multiply(target, 1.0 - label_smoothing), spread)
        scale = mean_of(rows.shape[1]) if reduction == "mean" and total is None else 1.0
        loss, dlogits = softmax_cross_entropy(backend, rows, target, scale)
        if not are_classes or weights is not None or kept is not None:
            # Targets of a sum w other than 1 give w softmax - t.
            softmax = xp.add(dlogits, xp.multiply(target, scale))
            xp.add(dlogits, xp.multiply(softmax, xp.subtract(xp.sum(target, axis=0), 1.0)), out=dlogits)
        if total is not None:
            xp.divide(loss, total.reshape(()), out=loss)
            xp.divide(dlogits, xp.where(xp.equal(total, 0), 1.0, total), out=dlogits)  # 0, where nothing counts
    return loss, batch_first(dlogits.reshape(memory.shape))


def check_ignore_index(index: int | None) -> int | None:
    """Return `index` as an int, or None; raise ConfigError for anything else."""
    if index is None:
        return None
    with contextlib.suppress(TypeError):
        if not isinstance(index, bool):
            return operator.index(index)
    raise ConfigError(f"ignore_index: expected an integer or None, got {index!r}")


def check_smoothing(share: float) -> float:
    """Return `share` as a float; raise ConfigError unless it lies in [0, 1]."""
    return number("label_smoothing", share, "a share from 0 to 1", 0.0, 1.0)


def mean_of(count: int) -> float:
    """Return the factor that makes a sum the mean."""
    return 1.0 / count if count else math.nan


def _check_labels(labels: Array, n: int, k: int, *rest: int) -> bool:
    """Say whether labels are class numbers, and not probabilities; raise an error unless they fit the logits."""
    shape = tuple(labels.shape)
    if len(shape) == 2 + len(rest):
        if shape != (n, k, *rest):
            raise ShapeError(f"labels: expected shape {(n, k, *rest)} like the logits, got {shape}")
        return False
    if shape != (n, *rest):
        raise ShapeError(f"labels: expected shape {(n, *rest)} or {(n, k, *rest)}, got {shape}")
    if labels.dtype.kind not in "iu":
        named = "(N, ...)" if rest else "(N,)"
        raise DTypeError(f"labels: expected integers for shape {named}, got {labels.dtype}; convert with astype(int)")
    return True


def _weights(backend: Backend, weight: Array, k: int, dtype: Any) -> Array:
    """Return the weights of classes as (K, 1)."""
    if tuple(weight.shape) != (k,):
        raise ShapeError(f"weight: expected shape ({k},), one for each class, got {tuple(weight.shape)}")
    check_floating("weight", weight)
    return (weight if weight.dtype == dtype else cast(backend, weight, dtype)).reshape(k, 1)


def _no_class(k: int) -> DataError:
    """Return the error for a label that is no class."""
    return DataError(
        f"labels: expected classes from 0 to {k - 1}, got one outside; do the logits have enough columns? "
        "What is to be ignored is said by ignore_index"
    )


def _onehot(backend: Backend, labels: Array, k: int, dtype: Any, ignore_index: int | None, error: Exception) -> Array:
    """Return class numbers (M,) as probabilities (K, M); `error` tells of those that are none."""
    xp = backend.xp
    target = backend.empty((k, labels.shape[0]), dtype)
    xp.copyto(target, xp.equal(labels, class_numbers(backend, k)))  # (K, M)
    unsigned = labels.view(UNSIGNED[labels.itemsize])  # in which numbers below 0 are huge
    fits = xp.less(unsigned, k)
    if ignore_index is not None:
        fits = xp.logical_or(fits, xp.equal(labels, ignore_index))
    backend.demand(fits, error)
    return target


def _holds(dtype: Any, value: int) -> bool:
    """Say whether an integer type has a value."""
    bits: int = 8 * dtype.itemsize
    low, high = (0, 1 << bits) if dtype.kind == "u" else (-1 << (bits - 1), 1 << (bits - 1))
    return low <= value < high


def _memory(a: Array) -> Array:
    """Return (N, ...) with its axes as in batch-last memory, (..., N)."""
    return a.transpose(*range(1, a.ndim), 0)


_class_numbers: dict[tuple[int, int], tuple[Backend, Array]] = {}


def class_numbers(backend: Backend, k: int) -> Array:
    """Return 0 to k - 1 as a column (K, 1), made once per backend."""
    backend = backend.home
    kept = _class_numbers.get((id(backend), k))
    if kept is None:
        kept = _class_numbers[id(backend), k] = (backend, backend.constant(backend.xp.arange(k).reshape(k, 1)))
    return kept[1]


def check_reduction(reduction: str) -> None:
    """Raise ConfigError unless `reduction` is known."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ConfigError(f'reduction: expected "mean" or "sum", got {reduction!r}')
