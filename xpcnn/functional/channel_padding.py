"""Channels of zeros around an array's own: what a shortcut without parameters needs where a network widens."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn.backend import Array, Backend
from xpcnn.errors import ShapeError
from xpcnn.functional.layout import check_floating, check_like, copy_batch_last, empty_batch_last, take, take_gradient
from xpcnn.windows import integer


class ChannelPadCache(NamedTuple):
    """What `pad_channels` keeps: where x lies in y."""

    backend: Backend
    own: slice
    y: tuple[tuple[int, ...], object]  # shape and dtype


def pad_channels(x: Array, before: int = 0, after: int = 0) -> tuple[Array, ChannelPadCache]:
    """Put channels of zeros before and behind those of x.

    Parameters
    ----------
    x : array (N, C, ...), floating
    before, after : int

    Returns
    -------
    y : array (N, before + C + after, ...), dtype of `x`
    cache
        For `pad_channels_backward`.

    Raises
    ------
    ShapeError, DTypeError
        `x` has no channels or is not floating, or a number is no integer of 0 or more.

    References
    ----------
    He et al. 2015, arXiv:1512.03385, section 3.3, option A.

    Examples
    --------
    >>> y, cache = F.pad_channels(np.ones((1, 2, 1, 1)), 1, 1)
    >>> y.ravel()
    array([0., 1., 1., 0.])
    """
    backend, x = take("x", x)
    check_floating("x", x)
    if x.ndim < 2:
        raise ShapeError(f"x: expected shape (N, C, ...), got {tuple(x.shape)}")
    before, after = integer("before", before, 0), integer("after", after, 0)
    n, channels, *rest = x.shape
    own = slice(before, before + channels)
    y = empty_batch_last(backend, (n, before + channels + after, *rest), x.dtype)
    y[:, :before] = 0
    y[:, own] = x
    y[:, own.stop :] = 0
    return y, ChannelPadCache(backend, own, (tuple(y.shape), y.dtype))


def pad_channels_backward(dy: Array, cache: ChannelPadCache) -> Array:
    """Return the gradient of `pad_channels`, the part of dy that belongs to x.

    Examples
    --------
    >>> y, cache = F.pad_channels(np.ones((1, 2, 1, 1)), 1, 1)
    >>> F.pad_channels_backward(np.arange(4.0).reshape(1, 4, 1, 1), cache).ravel()
    array([1., 2.])
    """
    dy = take_gradient(dy, cache.backend)
    check_like("dy", dy, *cache.y)
    return copy_batch_last(cache.backend, dy[:, cache.own])
