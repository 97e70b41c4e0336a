"""Arrays side by side along an axis, and their gradients, which are the parts of dy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xpcnn.backend import Array, Backend
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional.layout import axis_of, check_floating, check_like, copy_batch_last, take, take_gradient


class ConcatCache(NamedTuple):
    """Where each array lies in the result."""

    backend: Backend
    axis: int
    sizes: tuple[int, ...]  # of the arrays along the axis
    shape: tuple[int, ...]  # of the result
    dtype: Any


def concat(arrays: Sequence[Array], axis: int = 1) -> tuple[Array, ConcatCache]:
    """Put arrays side by side, such as feature maps of several layers along the channels.

    Parameters
    ----------
    arrays : sequence of array
        One or more, floating, of one dtype, and of one shape but for `axis`.
    axis : int
        1 for channels or features.

    Returns
    -------
    y : array
        As long along `axis` as all of them together.
    cache
        For `concat_backward`.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        There are none, or they do not fit each other.

    References
    ----------
    Szegedy et al. 2014, arXiv:1409.4842 (filter concatenation); Huang et al. 2016, arXiv:1608.06993 (DenseNet).

    Examples
    --------
    >>> y, cache = F.concat([np.ones((1, 2, 4, 4)), np.zeros((1, 3, 4, 4))])
    >>> y.shape
    (1, 5, 4, 4)
    """
    if not isinstance(arrays, (list, tuple)):
        raise DTypeError(f"arrays: expected a list or tuple of arrays, got {type(arrays).__name__}")
    if not arrays:
        raise ShapeError("arrays: expected at least one array, got none")
    backend, *parts = take(" ".join(f"arrays[{i}]" for i in range(len(arrays))), *arrays)
    first = parts[0]
    check_floating("arrays[0]", first)
    axis = axis_of(first, axis)
    for i, part in enumerate(parts):
        wanted = list(first.shape)
        if part.ndim == first.ndim:
            wanted[axis] = part.shape[axis]
        check_like(f"arrays[{i}]", part, tuple(wanted), first.dtype)
    sizes = tuple(int(part.shape[axis]) for part in parts)
    shape = (*first.shape[:axis], sum(sizes), *first.shape[axis + 1 :])
    y = _batch_last(backend.empty((*shape[1:], shape[0]), first.dtype))
    cache = ConcatCache(backend, axis, sizes, shape, first.dtype)
    targets = split(y, cache)

    def copy(i: int) -> None:
        backend.xp.copyto(_memory(targets[i]), _memory(parts[i]))

    backend.parallel(copy, range(len(parts)), 2.0 * y.size, products=False)
    return y, cache


def concat_backward(dy: Array, cache: ConcatCache) -> list[Array]:
    """Return the gradient of each array of `concat`, its part of `dy`.

    Examples
    --------
    >>> y, cache = F.concat([np.ones((1, 2, 4, 4)), np.zeros((1, 3, 4, 4))])
    >>> [dx.shape for dx in F.concat_backward(np.ones_like(y), cache)]
    [(1, 2, 4, 4), (1, 3, 4, 4)]
    """
    dy = take_concatenated(dy, cache)
    return [copy_batch_last(cache.backend, part) for part in split(dy, cache)]


def take_concatenated(dy: Array, cache: ConcatCache) -> Array:
    """Return the gradient of what `concat` gave; raise an error unless it is like that."""
    dy = take_gradient(dy, cache.backend)
    check_like("dy", dy, cache.shape, cache.dtype)
    return dy


def split(a: Array, cache: ConcatCache) -> list[Array]:
    """Return the parts of what `concat` gives as views."""
    parts, start = [], 0
    for size in cache.sizes:
        parts.append(a[(slice(None),) * cache.axis + (slice(start, start + size),)])
        start += size
    return parts


def _batch_last(a: Array) -> Array:
    """Return the logical view (N, ...) of memory (..., N)."""
    return a.transpose(a.ndim - 1, *range(a.ndim - 1))


def _memory(a: Array) -> Array:
    """Return (N, ...) as (..., N), in which axes lie as in batch-last memory."""
    return a.transpose(*range(1, a.ndim), 0)
