"""Layer and group normalisation: every sample by itself, so that batches of any size and evaluation are alike.

Both cut a sample into rows, over which they go as batch norm in training goes over a channel (`normalization.py` has
the formulas and what they lose): a layer norm's row is the last axes, a group norm's the channels of a group with
all their pixels. Weights and biases then scale and shift along an axis of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from xpcnn.backend import Array, Backend
from xpcnn.backend.split import split_evenly
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional.layout import check_floating, check_images, check_like, empty_batch_last, take, take_gradient
from xpcnn.functional.normalization import batch_norm_train, batch_norm_train_backward, check_eps
from xpcnn.functional.precision import cast, wide
from xpcnn.windows import integer

Shape = tuple[int, ...]


class SampleNormCache(NamedTuple):
    """What backward needs; `rows` are the values normalised together, `statistics` their centre, offset and scale."""

    backend: Backend
    shape: Shape
    dtype: Any
    rows: Array
    statistics: tuple[Array, Array, Array]
    weight: Array | None
    bias: Array | None
    view: tuple[int, int, int]  # the rows with the axis of the weights as the middle one


def layer_norm(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, SampleNormCache]:
    """Normalise the last axes of every sample: y = weight (x - mean) / sqrt(variance + eps) + bias.

    Parameters
    ----------
    x : array (..., *normalized_shape), floating
    normalized_shape : int or sequence of int
        The last axes of `x`, over which mean and biased variance are taken; (C, H, W) is all of an image.
    weight, bias : array of that shape, dtype of `x` (or float32 for float16), optional
    eps : float
        Above 0.

    Returns
    -------
    y : array like `x`
    cache
        For `layer_norm_backward`.

    Raises
    ------
    ShapeError, DTypeError, ConfigError, MixedBackendsError
        Shapes or types do not fit, or `eps` is no number above 0.

    References
    ----------
    Ba et al. 2016, Layer normalization, arXiv:1607.06450.

    Examples
    --------
    >>> y, cache = F.layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), 2)
    >>> y.round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    backend, x, weight, bias = take("x weight bias", x, weight, bias)
    check_floating("x", x)
    last = check_normalized_shape(normalized_shape)
    shape = tuple(x.shape)
    if len(shape) == 4:
        check_images("x", shape)
    if shape[-len(last) :] != last:
        raise ShapeError(f"x: expected a shape that ends with {last}, got {shape}")
    inner = math.prod(last)
    return _forward(backend, x, weight, bias, last, inner, (-1, inner, 1), eps)


def group_norm(
    x: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> tuple[Array, SampleNormCache]:
    """Normalise the channels of every image group by group: y = weight (x - mean) / sqrt(variance + eps) + bias.

    Parameters
    ----------
    x : array (N, C) or (N, C, ...), floating
    num_groups : int
        Divides C; 1 takes all channels together, C each by itself (instance norm).
    weight, bias : array (C,), dtype of `x` (or float32 for float16), optional
    eps : float
        Above 0.

    Returns
    -------
    y : array like `x`
    cache
        For `group_norm_backward`.

    Raises
    ------
    ShapeError, DTypeError, ConfigError, MixedBackendsError
        Shapes or types do not fit, or `eps` is no number above 0.

    References
    ----------
    Wu and He 2018, Group normalization, arXiv:1803.08494.

    Examples
    --------
    >>> y, cache = F.group_norm(np.arange(8.0).reshape(1, 4, 1, 2), 2)
    >>> y.shape, y[0, :2, 0].round(2)
    ((1, 4, 1, 2), array([[-1.34, -0.45],
           [ 0.45,  1.34]]))
    """
    backend, x, weight, bias = take("x weight bias", x, weight, bias)
    check_floating("x", x)
    num_groups, shape = integer("num_groups", num_groups, 1), tuple(x.shape)
    if len(shape) < 2:
        raise ShapeError(f"x: expected shape (N, C) or (N, C, H, W), got {shape}")
    if len(shape) == 4:
        check_images("x", shape)
    channels = shape[1]
    if not math.prod(shape[1:]) or channels % num_groups:
        raise ShapeError(f"x: expected a multiple of {num_groups} channels for as many groups, got shape {shape}")
    pixels = math.prod(shape[2:])
    inner = channels // num_groups * pixels
    return _forward(backend, x, weight, bias, (channels,), inner, (-1, channels, pixels), eps)


def check_normalized_shape(shape: int | Sequence[int]) -> Shape:
    """Return the shape as a tuple; raise an error unless it has integers of 1 or more."""
    axes = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not axes:
        raise ShapeError(f"normalized_shape: expected one axis or more, got {shape!r}")
    return tuple(integer("normalized_shape", axis, 1) for axis in axes)


def _forward(
    backend: Backend,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    affine: Shape,
    inner: int,
    view: tuple[int, int, int],
    eps: float,
) -> tuple[Array, SampleNormCache]:
    """Normalise rows of `inner` values; `view` sees them with the axis of weight and bias, `affine`, in the middle."""
    eps = check_eps(eps)
    for name, each in (("weight", weight), ("bias", bias)):
        _check_affine(name, each, affine, x.dtype)
    shape, dtype = tuple(x.shape), wide(x.dtype)
    view = (x.size // (view[1] * view[2]), view[1], view[2])
    with backend.errstate():
        rows = backend.empty((x.size // inner, inner), dtype)
        backend.xp.copyto(rows.reshape(shape), x)
        statistics = tuple(backend.empty(rows.shape[:1], dtype) for _ in range(3))
        result = backend.empty(rows.shape, dtype)

        def work(part: range) -> None:
            some = slice(part.start, part.stop)
            ones, zeros = _constants(backend, len(part), rows.dtype)
            centre, offset, _, scale = batch_norm_train(backend, rows[some], ones, zeros, eps, result[some])
            for target, value in zip(statistics, (centre, offset, scale), strict=True):
                backend.xp.copyto(target[some], value)

        _share(backend, work, rows)
        seen = result.reshape(view)
        if weight is not None:
            backend.xp.multiply(seen, _along(backend, weight, dtype), out=seen)
        if bias is not None:
            backend.xp.add(seen, _along(backend, bias, dtype), out=seen)
        y = _batch_last(backend, result.reshape(shape), x.dtype)
    return y, SampleNormCache(backend, shape, x.dtype, rows, statistics, weight, bias, view)


def layer_norm_backward(dy: Array, cache: SampleNormCache) -> tuple[Array, Array | None, Array | None]:
    """Return the gradients of `layer_norm` or `group_norm`.

    Parameters
    ----------
    dy : array like the forward's `y`
    cache

    Returns
    -------
    dx : array like `dy`
    dweight, dbias : array like `weight`
        None where the forward had none.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `dy` does not fit what the forward returned.

    Examples
    --------
    >>> y, cache = F.layer_norm(np.array([[1.0, 3.0]]), 2, np.ones(2), np.zeros(2))
    >>> dx, dweight, dbias = F.layer_norm_backward(np.ones_like(y), cache)
    >>> dx.shape, dweight.round(3), dbias
    ((1, 2), array([-1.,  1.]), array([1., 1.]))

    Examples
    --------
    >>> y, cache = F.group_norm(np.arange(8.0).reshape(1, 4, 1, 2), 2, np.ones(4), np.zeros(4))
    >>> dx, dweight, dbias = F.group_norm_backward(np.ones_like(y), cache)
    >>> dx.shape, dweight.shape, dbias
    ((1, 4, 1, 2), (4,), array([2., 2., 2., 2.]))
    """
    backend, shape, dtype, rows, (centre, offset, scale), weight, bias, view = cache
    dy = take_gradient(dy, backend)
    check_like("dy", dy, shape, dtype)
    xp = backend.xp
    with backend.errstate():
        grad = backend.empty(rows.shape, rows.dtype)
        xp.copyto(grad.reshape(shape), dy)
        dbias = None if bias is None else _sums(backend, grad.reshape(view), bias)
        dweight = None
        if weight is not None:
            normal = xp.subtract(rows, centre[:, None])
            xp.multiply(xp.subtract(normal, offset[:, None], out=normal), scale[:, None], out=normal)
            xp.multiply(normal, grad, out=normal)
            dweight = _sums(backend, normal.reshape(view), weight)
            seen = grad.reshape(view)
            xp.multiply(seen, _along(backend, weight, rows.dtype), out=seen)
        result = backend.empty(rows.shape, rows.dtype)

        def work(part: range) -> None:
            some = slice(part.start, part.stop)
            ones, _ = _constants(backend, len(part), rows.dtype)
            dgamma, dbeta = backend.empty(ones.shape, rows.dtype), backend.empty(ones.shape, rows.dtype)
            known = rows[some], centre[some], offset[some], scale[some]
            batch_norm_train_backward(backend, grad[some], *known, ones, result[some], dgamma, dbeta)

        _share(backend, work, rows)
        return _batch_last(backend, result.reshape(shape), dtype), dweight, dbias


group_norm_backward = layer_norm_backward


def _check_affine(name: str, array: Array | None, shape: Shape, dtype: Any) -> None:
    if array is None:
        return
    if tuple(array.shape) != shape:
        raise ShapeError(f"{name}: expected shape {shape}, got {tuple(array.shape)}")
    if array.dtype not in (dtype, wide(dtype)):
        raise DTypeError(f"{name}: expected the dtype of x, {dtype}, got {array.dtype}; convert one of them")


def _share(backend: Backend, work: Any, rows: Array) -> None:
    """Do `work` for ranges of the rows (R, n), a core's cache at a time, on all threads."""
    count = rows.shape[0] if rows.size else 0
    if not count:
        return
    parts, slab = backend.get_num_threads(), backend.slab_bytes
    if slab is None:
        parts = 1
    else:
        parts = max(parts, -(-rows.size * rows.dtype.itemsize // slab))
    backend.parallel(work, split_evenly(count, min(count, parts)), 8.0 * rows.size)


def _constants(backend: Backend, count: int, dtype: Any) -> tuple[Array, Array]:
    """Return ones and zeros (count,)."""
    ones, zeros = backend.empty((count,), dtype), backend.zeros((count,), dtype)
    backend.xp.copyto(ones, 1)
    return ones, zeros


def _along(backend: Backend, a: Array, dtype: Any) -> Array:
    """Return a weight or bias as (P, 1), in the dtype that is computed in."""
    a = a if a.dtype == dtype else cast(backend, a, dtype)
    return a.reshape(-1, 1)


def _sums(backend: Backend, a: Array, like: Array) -> Array:
    """Return the sums of `a` (L, P, I) over its first and last axis, as a weight or bias is."""
    by_row = a[..., 0] if a.shape[2] == 1 else backend.row_sums(a.reshape(-1, a.shape[2])).reshape(a.shape[:2])
    total = backend.row_sums(backend.contiguous(by_row.T)).reshape(like.shape)
    return total if total.dtype == like.dtype else cast(backend, total, like.dtype)


def _batch_last(backend: Backend, y: Array, dtype: Any) -> Array:
    """Return `y` (N, ...) in batch-last memory and in a dtype."""
    out = empty_batch_last(backend, tuple(y.shape), dtype)
    backend.xp.copyto(out, y)
    return out
