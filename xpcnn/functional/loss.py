"""Losses with their gradients: softmax cross-entropy and mean squared error."""

from __future__ import annotations

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.functional.layout import batch_last, check_floating, check_like, check_ndim
from xpcnn.functional.precision import cast, cast_batch, is_narrow
from xpcnn.functional.primitive import primitive

REDUCTIONS = ("mean", "sum")


@primitive
def softmax_cross_entropy(backend: Backend, logits: Array, target: Array, scale: float) -> tuple[Array, Array]:
    """Return the loss, 0-d, and its gradient (K, N) for logits and target probabilities (K, N), both times `scale`."""
    xp = backend.xp
    shifted = xp.subtract(logits, xp.max(logits, axis=0))
    dlogits = xp.exp(shifted)
    total = xp.sum(dlogits, axis=0)
    xp.subtract(shifted, xp.log(total), out=shifted)  # log-softmax
    loss = backend.empty((), logits.dtype)
    xp.sum(xp.multiply(shifted, target), out=loss)
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
    labels : array (N,) of integers from 0 to K - 1, or (N, K) one-hot or probabilities
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
    backend = backend_of(logits, labels)
    check_ndim("logits", logits, "N, K")
    check_floating("logits", logits)
    check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ConfigError(f"label_smoothing: expected a share from 0 to 1, got {label_smoothing!r}")
    if is_narrow(logits.dtype):
        wider = cast_batch(backend, logits, "float32")
        loss, dlogits = cross_entropy(wider, labels, label_smoothing=label_smoothing, reduction=reduction)
        return loss, cast_batch(backend, dlogits, logits.dtype)
    n, k = logits.shape
    if n == 0:
        raise ShapeError("logits: expected at least one sample, got shape (0, K)")
    target = _targets(backend, labels, n, k, logits.dtype)
    if label_smoothing:
        target = backend.xp.add(backend.xp.multiply(target, 1.0 - label_smoothing), label_smoothing / k)
    scale = 1.0 / n if reduction == "mean" else 1.0
    loss, dlogits = softmax_cross_entropy(backend, batch_last(backend, logits), target, scale)
    if labels.ndim == 2:  # targets of a sum w other than 1 give w softmax - t
        xp = backend.xp
        softmax = xp.add(dlogits, xp.multiply(target, scale))
        xp.add(dlogits, xp.multiply(softmax, xp.subtract(xp.sum(target, axis=0), 1.0)), out=dlogits)
    return loss, dlogits.T


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
    backend.demand(
        xp.logical_and(xp.greater_equal(labels, 0), xp.less(labels, k)),
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
    backend = backend_of(x, target)
    check_floating("x", x)
    check_like("target", target, tuple(x.shape), x.dtype)
    check_reduction(reduction)
    if is_narrow(x.dtype):
        loss, dx = mse_loss(cast(backend, x, "float32"), cast(backend, target, "float32"), reduction=reduction)
        return loss, cast(backend, dx, x.dtype)
    scale = 1.0 / max(1, x.size) if reduction == "mean" else 1.0
    xp = backend.xp
    difference = xp.subtract(x, target)
    loss = backend.empty((), x.dtype)
    xp.sum(xp.multiply(difference, difference), out=loss)
    xp.multiply(loss, scale, out=loss)
    return loss, xp.multiply(difference, 2.0 * scale)


def check_reduction(reduction: str) -> None:
    """Raise ConfigError unless `reduction` is known."""
    if reduction not in REDUCTIONS:
        raise ConfigError(f'reduction: expected "mean" or "sum", got {reduction!r}')
