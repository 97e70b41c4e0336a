"""Batch norm with the statistics of a batch that is shared out to several processes; formulas in `normalization.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ShapeError, StateError
from xpcnn.functional.channelwise import Shape
from xpcnn.functional.normalization import MANY, SHARE, BatchNormOp, move_statistics
from xpcnn.functional.part import Part, present_part

Reduce = Callable[[Array], Any]  # adds up an array over all processes, in place


def synchronised(
    backend: Backend, x: Array, gamma: Array, beta: Array, eps: float, out: Array, part: Part, reduce: Reduce
) -> tuple[Array, Array, Array, Array, int]:
    """Do what `batch_norm_train` does with the statistics of all parts of a batch; return the number of values too.

    Two sums over the processes, of C and of 2 C numbers: first the centres, weighted by images, then about the common
    centre the sums of deviations and of their squares.
    """
    xp = backend.xp
    n = _values(x, part) * part.total
    if n == 1:
        raise ShapeError("x: expected more than one value per channel in training, got one in the batch of all ranks")
    some = x[:, : max(MANY, int(x.shape[1] * SHARE))]
    shifted = xp.subtract(some, x[:, :1])
    centre = xp.add(xp.multiply(backend.row_sums(shifted), 1.0 / some.shape[1]), x[:, 0])
    centre = xp.multiply(centre, part.size / part.total)
    reduce(centre)
    xp.subtract(x, centre[:, None], out=out)
    sums = backend.empty((2, x.shape[0]), x.dtype)
    xp.multiply(backend.row_sums(out), float(bool(part.size)), out=sums[0])
    xp.multiply(backend.row_dots(out, out), float(bool(part.size)), out=sums[1])
    reduce(sums)
    offset, variance = xp.multiply(sums[0], 1.0 / n), xp.multiply(sums[1], 1.0 / n)
    xp.maximum(xp.subtract(variance, xp.multiply(offset, offset)), 0, out=variance)
    spread = xp.add(variance, eps)
    scale = xp.divide(xp.sqrt(spread), spread)
    factor = xp.multiply(gamma, scale)
    xp.multiply(out, factor[:, None], out=out)
    xp.add(out, xp.subtract(beta, xp.multiply(offset, factor))[:, None], out=out)
    return centre, offset, variance, scale, n


def synchronised_backward(
    backend: Backend,
    dy: Array,
    x: Array,
    centre: Array,
    offset: Array,
    scale: Array,
    gamma: Array,
    out: Array,
    dgamma: Array,
    dbeta: Array,
    part: Part,
    reduce: Reduce,
) -> None:
    """Do what `batch_norm_train_backward` does after `synchronised`; dgamma and dbeta are those of this part alone."""
    xp = backend.xp
    n = _values(x, part) * part.total
    centred = xp.subtract(x, centre[:, None])
    sums = backend.empty((2, x.shape[0]), x.dtype)
    xp.copyto(sums[0], backend.row_sums(dy))
    dots = xp.subtract(backend.row_dots(dy, centred), xp.multiply(offset, sums[0]))
    xp.multiply(dots, scale, out=sums[1])
    xp.copyto(dbeta, sums[0])
    xp.copyto(dgamma, sums[1])
    reduce(sums)
    if not part.size:  # the image that stands in had no share in the statistics
        xp.copyto(out, 0)
        return
    slope = xp.multiply(xp.multiply(sums[1], scale), 1.0 / n)
    xp.multiply(centred, slope[:, None], out=centred)
    xp.subtract(dy, centred, out=out)
    xp.subtract(out, xp.subtract(xp.multiply(sums[0], 1.0 / n), xp.multiply(offset, slope))[:, None], out=out)
    xp.multiply(out, xp.multiply(gamma, scale)[:, None], out=out)


def _values(x: Array, part: Part) -> int:
    """Return how many values an image has in a channel."""
    return int(x.shape[1] // (part.images.stop - part.images.start))


class SyncBatchNormOp(BatchNormOp):
    """Batch norm in training with the statistics of all parts of a batch, while parts with a `reduce` are computed."""

    is_collective = True
    stores_float16 = False
    takes_sums = False

    def __init__(self, *arrays: Array, **options: Any) -> None:
        super().__init__(*arrays, **options)
        self.signature = None  # its calls wait for other processes: none are made anew for other arrays
        part = present_part()
        if part is None or part.reduce is None:
            raise StateError("SyncBatchNormOp: expected to compute a part of a batch, got a whole one")
        self.part, self.reduce = part, part.reduce

    def out_shape(self, shape: Shape) -> Shape:
        # One value a channel is enough here, if others have more.
        super().out_shape((*shape[:-1], shape[-1] + 1))
        return shape

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        rows, result = x.reshape(x.shape[0], -1), out.reshape(out.shape[0], -1)  # (C, H*W*N)
        settings = rows, self.gamma, self.beta, self.eps, result, self.part, self.reduce
        centre, offset, variance, scale, n = synchronised(backend, *settings)
        move_statistics(backend, self.running_mean, self.running_var, centre, offset, variance, self.share, n)
        return rows, centre, offset, scale

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        grad, result = dy.reshape(dy.shape[0], -1), out.reshape(out.shape[0], -1)  # (C, H*W*N)
        rows, centre, offset, scale = cache
        arrays = rows, centre, offset, scale, self.gamma, result, self.dgamma, self.dbeta
        synchronised_backward(backend, grad, *arrays, self.part, self.reduce)


def is_synchronised() -> bool:
    """Whether batch statistics in training are to be those of all parts of a batch."""
    part = present_part()
    return part is not None and part.reduce is not None
