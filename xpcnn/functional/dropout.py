"""Inverted dropout, of elements and of whole channels, with masks from a counter-based hash, the same on every backend.

Element i of the batch-last memory is dropped where hash(i XOR hash(key * 0x9E3779B9)) falls below p * 2^32. The hash is
the finaliser of MurmurHash3 (Appleby, public domain), which maps 32 bits one to one and mixes every bit into every
other; in unsigned 32-bit arithmetic it is the same in NumPy, in CuPy and in a captured graph, where the key lies in
an array on the device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xpcnn import random
from xpcnn.backend import Array, Backend
from xpcnn.backend.graph import host
from xpcnn.functional.channelwise import ChainCache, ChannelOp, Shape, run, run_backward
from xpcnn.functional.layout import bits, check_images, flag, number, take
from xpcnn.functional.part import Part, present_part
from xpcnn.functional.primitive import primitive

GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: neighbouring keys lie far apart


def mix(backend: Backend, h: Array) -> Array:
    """Apply MurmurHash3's 32-bit finaliser to an array of uint32 in place, and return it."""
    xp = backend.xp
    shifted = backend.scratch("shifted", h.shape, "uint32")
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        xp.right_shift(h, shift, out=shifted)
        xp.bitwise_xor(h, shifted, out=h)
        if factor is not None:
            xp.multiply(h, factor, out=h)
    return h


@primitive
def dropout_forward(backend: Backend, x: Array, p: float, key: Array, first: int, out: Array) -> Array:
    """Fill `out` with x / (1 - p) where an element is kept and 0 elsewhere; return the mask of the kept.

    `key` is uint32 (1,); `first` is the index of the slab's first element in the whole array's memory.
    """
    index = backend.xp.arange(first, first + x.size, dtype="uint32").reshape(x.shape)
    return _drop(backend, x, p, key, index, out)


def _drop(backend: Backend, x: Array, p: float, key: Array, index: Array, out: Array) -> Array:
    """Do what `dropout_forward` does, for elements of any index."""
    xp = backend.xp
    h = backend.scratch("hash", x.shape, "uint32")
    # The key goes through the mixer too: masks of keys that differ by 1 share nothing.
    xp.bitwise_xor(index, mix(backend, xp.multiply(key, GOLDEN)), out=h)
    kept = xp.greater_equal(mix(backend, h), min(int(p * 2**32), 2**32 - 1))
    apply_mask(backend, x, kept, p, out)
    return kept


@primitive
def apply_mask(backend: Backend, values: Array, kept: Array, p: float, out: Array) -> None:
    """Fill `out` with values / (1 - p) where `kept`, else 0."""
    result = bits(out)
    backend.xp.copyto(result, kept.view("int8"))
    backend.xp.multiply(result, bits(values), out=result)
    backend.xp.multiply(out, 1.0 / (1.0 - p), out=out)


def new_key(backend: Backend) -> Array:
    """Return an array (1,), uint32, with a key of the library's generator, which each replay of a graph draws anew."""
    key = backend.empty_input((1,), "uint32")
    host(partial(_draw_into, backend.untraced(key)))
    return key


def _draw_into(key: Array) -> None:
    key[...] = random.draw_key()


def _index_in_batch(backend: Backend, x: Array, first: int, part: Part) -> Array:
    """Return the index, in the memory of the whole batch, of each element of a part's slab: masks are the batch's."""
    xp, images = backend.xp, x.shape[-1]
    if images != part.images.stop - part.images.start:  # of another shape, flat: (D, 1), image after image
        first += part.images.start * (x.size // (part.images.stop - part.images.start))
        return xp.arange(first, first + x.size, dtype="uint32").reshape(x.shape)
    rows = xp.arange(first // images, (first + x.size) // images, dtype="uint32")
    index = xp.add(
        xp.multiply(rows, part.total)[:, None], xp.arange(part.images.start, part.images.stop, dtype="uint32")
    )
    return index.reshape(x.shape)


class DropoutOp(ChannelOp):
    """y = x / (1 - p) where kept, else 0; dx = dy times the same (Srivastava et al. 2014)."""

    any_shape = True
    stores_float16 = True
    passes = 16

    def __init__(self, p: float) -> None:
        self.p = check_probability(p)

    def begin(self, backend: Backend, dtype: Any) -> None:
        self.part = present_part()
        if 0.0 < self.p < 1.0:
            self.key = new_key(backend)
            self.arrays = (self.key,)

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        if self.p == 0.0 or self.p == 1.0:
            self._all_alike(backend, x, out)
            return None
        first = (channels.start or 0) * (x.size // max(1, x.shape[0]))
        return self._drop(backend, x, first, out)

    def _drop(self, backend: Backend, x: Array, first: int, out: Array) -> Array:
        """Fill `out` as `dropout_forward` does, with the mask that the whole batch would have."""
        if self.part is None:
            return dropout_forward(backend, x, self.p, self.key, first, out)
        return _drop(backend, x, self.p, self.key, _index_in_batch(backend, x, first, self.part), out)

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        if cache is None:
            self._all_alike(backend, dy, out)
        else:
            apply_mask(backend, dy, cache, self.p, out)

    def _all_alike(self, backend: Backend, values: Array, out: Array) -> None:
        backend.xp.copyto(out, 0 if self.p else values)


class Dropout2dOp(DropoutOp):
    """Dropout of whole channels of an image (Tompson et al. 2014, arXiv:1411.4280, section 4.1)."""

    any_shape = False
    stores_float16 = False
    passes = 4

    def out_shape(self, shape: Shape) -> Shape:
        check_images("x", (shape[-1], *shape[:-1]))
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        if self.p == 0.0 or self.p == 1.0:
            self._all_alike(backend, x, out)
            return None
        shape = x.shape[0], 1, 1, x.shape[3]
        ones, factor = (backend.scratch(slot, shape, x.dtype) for slot in ("ones", "factor"))
        backend.xp.copyto(ones, 1)
        kept = self._drop(backend, ones, channels.start * x.shape[3], factor)
        self._select(backend, x, kept, out)
        return kept

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        if cache is None:
            self._all_alike(backend, dy, out)
        else:
            self._select(backend, dy, cache, out)

    def _select(self, backend: Backend, values: Array, kept: Array, out: Array) -> None:
        """Fill out (C, H, W, N) with values / (1 - p) where kept (C, 1, 1, N), else 0."""
        xp, result = backend.xp, bits(out)
        factor = backend.scratch("select", kept.shape, result.dtype)
        xp.copyto(factor, kept.view("int8"))
        xp.multiply(bits(values), factor, out=result)
        xp.multiply(out, 1.0 / (1.0 - self.p), out=out)


def check_probability(p: float) -> float:
    """Return `p` as a float; raise ConfigError unless it lies in [0, 1]."""
    return number("p", p, "the share dropped, from 0 to 1", 0.0, 1.0)


def dropout(x: Array, p: float = 0.5, *, training: bool) -> tuple[Array, ChainCache]:
    """Drop a share of the values and scale up the rest; in evaluation, change nothing.

    Parameters
    ----------
    x : array of any shape, floating
    p : float
        The share dropped, from 0 to 1.
    training : bool

    Returns
    -------
    y : array, shape and dtype of `x`
        What is dropped is 0, also of nan and inf; the rest is within an eps of x / (1 - p).
    cache
        For `dropout_backward`.

    Raises
    ------
    ConfigError, ShapeError, DTypeError
        `p` or `x` is not as above.

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> y, cache = F.dropout(np.ones(1000), 0.25, training=True)
    >>> sorted({round(float(value), 3) for value in y})  # a quarter is 0, the rest grows
    [0.0, 1.333]
    """
    _, x = take("x", x)
    p, training = check_probability(p), flag("training", training)
    return run((DropoutOp(p if training else 0.0),), x)


def dropout2d(x: Array, p: float = 0.5, *, training: bool) -> tuple[Array, ChainCache]:
    """Drop a share of the channels of each image whole and scale up the rest; in evaluation, change nothing.

    As `dropout`, for x (N, C, H, W): channel c of image n takes the place of element c * N + n there.

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> y, cache = F.dropout2d(np.ones((2, 3, 4, 4)), 0.5, training=True)
    >>> bool(((y == 0) | (y == 2)).all()), bool((y[:, :, :1, :1] == y).all())  # whole channels
    (True, True)
    """
    p, training = check_probability(p), flag("training", training)
    return run((Dropout2dOp(p if training else 0.0),), x)


def dropout_backward(dy: Array, cache: ChainCache) -> Array:
    """Return dx of `dropout`, shaped like `dy`.

    Examples
    --------
    >>> y, cache = F.dropout(np.ones(100), 0.5, training=True)
    >>> bool((F.dropout_backward(np.ones(100), cache) == y).all())  # the same entries are 0
    True

    Examples
    --------
    >>> y, cache = F.dropout2d(np.ones((2, 3, 4, 4)), 0.5, training=True)
    >>> bool((F.dropout2d_backward(np.ones(y.shape), cache) == y).all())
    True
    """
    return run_backward(dy, cache)


dropout2d_backward = dropout_backward
