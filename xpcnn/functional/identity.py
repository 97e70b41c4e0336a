"""The identity, which stands where a network needs a layer that does nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

from xpcnn.backend import Array, Backend
from xpcnn.functional.layout import check_like, take, take_gradient


class IdentityCache(NamedTuple):
    """What `dy` has to be like."""

    backend: Backend
    shape: tuple[int, ...]
    dtype: Any


def identity(x: Array) -> tuple[Array, IdentityCache]:
    """Return `x`, an array of any shape and dtype, itself and not a copy, and the cache.

    Examples
    --------
    >>> y, cache = F.identity(np.array([1.0, 2.0]))
    >>> y
    array([1., 2.])
    """
    backend, x = take("x", x)
    return x, IdentityCache(backend, tuple(x.shape), x.dtype)


def identity_backward(dy: Array, cache: IdentityCache) -> Array:
    """Return dx of `identity`: `dy` itself.

    Examples
    --------
    >>> y, cache = F.identity(np.array([1.0, 2.0]))
    >>> F.identity_backward(np.array([3.0, 4.0]), cache)
    array([3., 4.])
    """
    backend, shape, dtype = cache
    dy = take_gradient(dy, backend)
    check_like("dy", dy, shape, dtype)
    return dy
