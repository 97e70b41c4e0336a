"""Operations that keep channels apart, run slab by slab: elementwise work, batch norm, pooling and dropout.

A chain such as batch norm, max-pool, ReLU passes over the same numbers many times. Cut into slabs of channels that
fit a core's cache, every pass but the first and the last finds its numbers there, and the slabs are shared out to
the threads. Few channels (three over two threads) are cut into bands of rows as well, where each operation lets them. A
backend without caches to mind (`slab_bytes` None) takes all channels as one slab.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.backend.split import split_evenly
from xpcnn.errors import DTypeError, ShapeError, XpcnnError
from xpcnn.functional.layout import batch_first, batch_last, check_floating, check_like, take, take_gradient
from xpcnn.functional.precision import cast_batch, is_narrow, wide

Shape = tuple[int, ...]

# Share of the work by which whole channels may make threads uneven.
UNEVEN = 0.1


class ChannelOp:
    """One operation on a slab of channels; arrays are batch-last, (C, H, W, N) or (D, N).

    Attributes
    ----------
    arrays : sequence of array
        Those that it works with beside `x`: of its backend and, where they are floating, of its dtype (float32 for
        float16: a chain computes in float32 and rounds its result).
    other : array or None
        The one of `arrays` that is of the dtype of `x` even so, for it is of its shape.
    stores_float16 : bool
        Whether forward and backward read and write float16 where `Backend.stores_float16`, with no more than one
        rounding: a kernel does them, or they round nothing.
    keeps_input, keeps_output : bool
        Whether the cache refers to `x` or `out`, which then outlive the call.
    elementwise : bool
        Whether each value of `out` depends on that value of `x` and its channel alone: `out` may then be `x`.
    any_shape : bool
        Whether it knows no channels either: `x` may then have any shape.
    dx_is_dy : bool
        Whether dx is dy itself: what comes after then writes it to `gradient`, an array as large as the whole. Such an
        operation is neither the first nor the last of a chain.
    passes : int
        About how often forward reads or writes every number, to judge whether threads pay.
    skips : bool
        Whether it reads `x` in another order than that in which it lies.
    multiplies : bool
        Whether it sums by products of matrices.
    is_collective : bool
        Whether it waits for other processes, and so runs once, over all channels.
    signature
        What fixes, with the layout of `x`, `arrays` and `gradients`, all calls that it makes (`Backend.planned`);
        None where nothing does.
    """

    arrays: Sequence[Array] = ()
    other: Array = None
    stores_float16: bool = False
    signature: Any = None
    keeps_input: ClassVar[bool] = False
    keeps_output: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    any_shape: ClassVar[bool] = False
    dx_is_dy: ClassVar[bool] = False
    gradient: Array = None
    passes: ClassVar[int] = 2
    skips: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False
    is_collective: bool = False

    @property
    def gradients(self) -> Sequence[Array]:
        """The arrays that its backward fills beside dx."""
        return ()

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of the result for a batch-last input shape; raise ShapeError for one that does not fit."""
        return shape

    def row_step(self, shape: Shape) -> int:
        """Return the multiple of rows of an image (C, H, W, N) at which they may be kept apart too; 0 where nowhere."""
        return 1 if self.elementwise and not len(self.arrays) else 0

    def begin(self, backend: Backend, dtype: Any) -> None:
        """Do what a call does once for all slabs, after shapes and types are known to fit."""

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        """Fill `out` from `x`, the slab `channels` of the whole, and return the cache where `keep` is set."""
        raise NotImplementedError

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        """Fill `out` with dx."""
        raise NotImplementedError


class Slab(NamedTuple):
    """Some channels of every array of a chain, and of `all_bands` equal bands of its rows those in `bands`."""

    channels: slice
    bands: range = range(1)
    all_bands: int = 1

    def of(self, a: Array) -> Array:
        """Return its part of an array (C, H, W, N) or (D, N) as a view."""
        if self.all_bands == 1:
            return a[self.channels]
        rows = a.shape[1] // self.all_bands
        return a[self.channels, rows * self.bands.start : rows * self.bands.stop]

    def shape(self, whole: Shape) -> Shape:
        """Return the shape of its part of an array."""
        channels = self.channels.stop - self.channels.start
        if self.all_bands == 1:
            return channels, *whole[1:]
        return channels, whole[1] // self.all_bands * len(self.bands), *whole[2:]


class ChainCache(NamedTuple):
    """What a chain keeps: its operations, the shapes between them, and each slab's caches."""

    backend: Backend
    ops: Sequence[ChannelOp]
    shapes: list[Shape]
    dtype: Any
    slabs: Sequence[Slab]
    caches: Any  # a list for each slab, or what `Backend.planned` makes of them
    key: Any = None  # what fixes all calls, if anything does
    narrow: Any = None  # the dtype outside, where that is float16
    whole: Shape | None = None  # the shape outside, where that is neither (N, C, H, W) nor (N, D)


def run(ops: Sequence[ChannelOp], x: Array, *, keep: bool = True, reuse: bool = False) -> tuple[Array, ChainCache]:
    """Apply `ops` in turn to `x` (N, C, H, W) or (N, D), or of any shape where all of them take one.

    With `reuse`, `x` may be written over where nothing is kept. Overflow and invalid operations give inf and nan, as in
    PyTorch, whatever NumPy's error state is.

    Returns
    -------
    y : array
    cache
        For `run_backward`; holds nothing where `keep` is False.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `x` does not fit the operations and their arrays, or is not floating.
    """
    backend, x = take("x", x)
    check_floating("x", x)
    for op in ops:
        if op.arrays:
            _check_arrays(x, op)
    if x.ndim not in (2, 4):
        shape = tuple(x.shape)
        if not all(op.any_shape for op in ops):
            raise ShapeError(f"x: expected shape (N, C, H, W) or (N, D), got {shape}")
        y, cache = run(ops, backend.contiguous(x).reshape(1, -1), keep=keep, reuse=reuse)  # (1, D): (D, 1) in memory
        return y.reshape(shape), cache._replace(whole=shape)
    if is_narrow(x.dtype) and not _stores_float16(backend, ops, x):
        y, cache = _start(backend, ops, cast_batch(backend, x, wide(x.dtype)), keep=keep, reuse=False)
        return cast_batch(backend, y, x.dtype), cache._replace(narrow=x.dtype)
    return _start(backend, ops, x, keep=keep, reuse=reuse)


def _stores_float16(backend: Backend, ops: Sequence[ChannelOp], x: Array) -> bool:
    """Whether a chain takes x (N, ...), float16, as it is, with no copy in float32."""
    return all(op.stores_float16 for op in ops) and backend.stores_float16((*x.shape[1:], x.shape[0]))


def _start(
    backend: Backend, ops: Sequence[ChannelOp], x: Array, *, keep: bool, reuse: bool
) -> tuple[Array, ChainCache]:
    """Do the work of `run` on an x (N, ...) that fits the operations' arrays and is of the dtype to compute on."""
    x = batch_last(backend, x)
    shapes = [tuple(x.shape)]
    for op in ops:
        shapes.append(op.out_shape(shapes[-1]))
    for op in ops:
        op.begin(backend, x.dtype)
    with backend.errstate():
        return _run(backend, ops, x, shapes, keep=keep, reuse=reuse)


def _run(
    backend: Backend, ops: Sequence[ChannelOp], x: Array, shapes: list[Shape], *, keep: bool, reuse: bool
) -> tuple[Array, ChainCache]:
    """Do the work of `run` on a batch-last x, with the shapes between the operations."""
    slabs = _slabs(backend, ops, shapes, x.dtype.itemsize)
    # From here on operations work in place, where nothing is kept.
    in_place = len(ops)
    while not keep and in_place and ops[in_place - 1].elementwise:
        in_place -= 1
    last = len(ops) - 1
    # What lies between operations is in a core's cache anyhow.
    fetches = keep and ops[0].skips and backend.fetch_bytes is not None and x.nbytes >= backend.fetch_bytes

    def forward(backend: Backend, x: Array, arrays: Any = None) -> tuple[Array, list[list[Any]]]:
        y = x if reuse and in_place == 0 else backend.empty(shapes[-1], x.dtype)
        caches: list[list[Any]] = [[] for _ in slabs]

        def work(index: int) -> None:
            slab = slabs[index]
            place = slab.of(y)  # one view: CuPy copies an operand that is `out` by another
            a = place if y is x else slab.of(x)
            if fetches:
                backend.fetch(a)
            for i, op in enumerate(ops):
                if i >= min(last, in_place - 1):
                    out = place
                elif keep and (op.keeps_output or ops[i + 1].keeps_input):
                    out = backend.empty(slab.shape(shapes[i + 1]), x.dtype)
                else:
                    out = backend.scratch(f"slab{i % 2}", slab.shape(shapes[i + 1]), x.dtype)
                cache = op.forward(backend, a, slab.channels, out, keep)
                caches[index].append(cache if keep else None)
                a = out

        _share(backend, work, ops, len(slabs), x.size)
        return y, caches

    # Arrays that operations hold are arguments too, although `forward` reads them there: a plan must know them.
    if reuse or any(op.signature is None for op in ops):
        y, caches = forward(backend, x)
        return batch_first(y), ChainCache(backend, ops, shapes, x.dtype, slabs, caches)
    key = *((type(op), op.signature) for op in ops), shapes[0], len(slabs), slabs[0].all_bands, len(slabs[0].bands)
    y, caches = backend.planned(("forward", keep, key), forward, x, [a for op in ops for a in op.arrays])
    return batch_first(y), ChainCache(backend, ops, shapes, x.dtype, slabs, caches, key)


def first_refusing(ops: Sequence[ChannelOp], x: Array) -> int:
    """Return which of `ops`, applied in turn, does not take what comes from `x`; 0 where x itself is not taken."""
    if getattr(x, "ndim", 0) not in (2, 4):
        return 0
    shape: Shape = (*x.shape[1:], *x.shape[:1])
    for i, op in enumerate(ops):
        try:
            if op.arrays:
                _check_arrays(x, op)
            shape = op.out_shape(shape)
        except XpcnnError:
            return i
    return 0


def run_backward(dy: Array, cache: ChainCache) -> Array:
    """Return dx of a chain.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `dy` has not the shape, dtype and backend of the forward's result.
    """
    backend, ops, shapes, dtype, slabs, caches, key, narrow, whole = cache
    dy = take_gradient(dy, backend)
    check_like("dy", dy, (shapes[-1][-1], *shapes[-1][:-1]) if whole is None else whole, narrow or dtype)
    if whole is not None:
        dx = run_backward(backend.contiguous(dy).reshape(1, -1), cache._replace(whole=None))  # (1, D)
        return dx.reshape(whole)
    if narrow is not None:
        dx = run_backward(cast_batch(backend, dy, dtype), cache._replace(narrow=None))
        return cast_batch(backend, dx, narrow)
    dy = batch_last(backend, dy)

    def backward(backend: Backend, dy: Array, caches: list[list[Any]], arrays: Any = None) -> Array:
        dx = backend.empty(shapes[0], dtype)

        def work(index: int) -> None:
            slab = slabs[index]
            a = slab.of(dy)
            for i in range(len(ops) - 1, -1, -1):
                if ops[i].dx_is_dy:
                    continue
                if i == 0:
                    out = slab.of(dx)
                elif ops[i - 1].dx_is_dy:
                    out = slab.of(ops[i - 1].gradient)
                else:
                    out = backend.scratch(f"slab{i % 2}", slab.shape(shapes[i]), dtype)
                ops[i].backward(backend, a, caches[index][i], slab.channels, out)
                a = out

        _share(backend, work, ops, len(slabs), dx.size)
        return dx

    with backend.errstate():
        if key is None:
            return batch_first(backward(backend, dy, caches))
        arrays = [a for op in ops for a in (*op.arrays, *op.gradients)]
        return batch_first(backend.planned(("backward", key), backward, dy, caches, arrays))


def _share(backend: Backend, work: Callable[[int], None], ops: Sequence[ChannelOp], slabs: int, size: int) -> None:
    """Do `work` for each slab."""
    cost = float(size) * sum(op.passes for op in ops)
    backend.parallel(work, range(slabs), cost, any(op.multiplies for op in ops))


def _check_arrays(x: Array, op: ChannelOp) -> None:
    backend_of(x, *op.arrays)
    for array in op.arrays:
        dtype = x.dtype if array is op.other else wide(x.dtype)
        if array.dtype.kind == "f" and array.dtype != dtype:
            raise DTypeError(f"x: expected dtype {array.dtype} like the parameters, got {x.dtype}; convert one of them")


def _slabs(backend: Backend, ops: Sequence[ChannelOp], shapes: list[Shape], itemsize: int) -> Sequence[Slab]:
    """Cut the channels so that the largest array of a slab takes about `slab_bytes`, and for each thread as many.

    What would make slabs of a quarter of that is not worth a second thread.
    """
    channels, slab_bytes = shapes[0][0], backend.slab_bytes
    if slab_bytes is None or any(op.is_collective for op in ops):
        return [Slab(slice(0, channels))]
    total = max(map(math.prod, shapes)) * itemsize
    threads = backend.get_num_threads() if 4 * total > slab_bytes else 1
    count = -(-total // (slab_bytes * threads)) * threads
    uneven = -channels % threads > UNEVEN * channels
    return _cut(channels, _bands(ops, shapes) if uneven or count > channels else 1, count, threads)


@lru_cache(maxsize=256)
def _cut(channels: int, all_bands: int, count: int, threads: int) -> Sequence[Slab]:
    bands = split_evenly(all_bands, -(-count // max(1, min(channels, count // threads))))
    parts = split_evenly(channels, -(-count // len(bands)))
    return [Slab(slice(part.start, part.stop), band, all_bands) for part in parts for band in bands]


def _bands(ops: Sequence[ChannelOp], shapes: list[Shape]) -> int:
    """Return into how many bands of rows all arrays of a chain may be cut."""
    if len(shapes[0]) != 4:
        return 1
    bands = shapes[0][1]
    for op, shape in zip(ops, shapes, strict=False):
        step = op.row_step(shape)
        if not step:
            return 1
        bands = math.gcd(bands, shape[1] // step)
    return bands
