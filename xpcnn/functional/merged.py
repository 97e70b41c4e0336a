"""Neighbours of a chain as one operation, for a backend whose kernels do both in a launch (`Backend.merges`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.functional.activation import ReLUOp
from xpcnn.functional.addition import AddOp
from xpcnn.functional.channelwise import ChannelOp, Shape
from xpcnn.functional.normalization import BatchNormOp, batch_norm_train_backward
from xpcnn.functional.pooling import MaxPoolOp, max_pool_backward_from, max_pool_forward


def merged(ops: Sequence[ChannelOp]) -> list[ChannelOp]:
    """Return a chain with each batch norm in training and each max-pooling before a ReLU merged with it.

    A sum between batch norm and ReLU, that of a residual block, goes in too. Merged operations leave their gradients
    in the operations that they stand for.
    """
    result: list[ChannelOp] = []
    rest = list(ops)
    while rest:
        kinds = [type(op) for op in rest[:3]]
        first = rest[0]
        if kinds == [BatchNormOp, AddOp, ReLUOp] and isinstance(first, BatchNormOp) and first.training:
            result.append(NormReLUOp(first, rest[1]))  # type: ignore[arg-type]
            del rest[:3]
        elif kinds[:2] == [BatchNormOp, ReLUOp] and isinstance(first, BatchNormOp) and first.training:
            result.append(NormReLUOp(first))
            del rest[:2]
        elif kinds[:2] == [MaxPoolOp, ReLUOp]:
            result.append(PoolReLUOp(first))  # type: ignore[arg-type]
            del rest[:2]
        else:
            result.append(rest.pop(0))
    return result


class NormReLUOp(ChannelOp):
    """y = max(batch norm of x, plus a shortcut's `other`, 0), in training; dy goes to `other` where y > 0."""

    keeps_input = keeps_output = True
    multiplies = True
    passes = 8

    def __init__(self, norm: BatchNormOp, total: AddOp | None = None) -> None:
        self.norm, self.total = norm, total

    @property
    def arrays(self) -> Sequence[Array]:  # type: ignore[override]
        """What both work with."""
        return self.norm.arrays if self.total is None else (*self.norm.arrays, *self.total.arrays)

    @property
    def gradients(self) -> Sequence[Array]:
        """What both fill."""
        return self.norm.gradients if self.total is None else (*self.norm.gradients, *self.total.gradients)

    @property
    def other(self) -> Array:
        """What is added."""
        return None if self.total is None else self.total.other

    @property
    def stores_float16(self) -> bool:  # type: ignore[override]
        """Whether the batch norm does."""
        return self.norm.stores_float16

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape itself, which must fit both."""
        shape = self.norm.out_shape(shape)
        return shape if self.total is None else self.total.out_shape(shape)

    def begin(self, backend: Backend, dtype: Any) -> None:
        """Begin with both."""
        self.norm.begin(backend, dtype)
        if self.total is not None:
            self.total.begin(backend, dtype)

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        rows, result = _rows(x), _rows(out)
        other = None if self.total is None else _rows(self.total.other[channels])
        return rows, result, *self.norm.train(backend, rows, channels, result, other, rectify=True)

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        rows, y, centre, offset, scale = cache
        norm = self.norm
        passed = None if self.total is None else _rows(self.total.gradient[channels])
        arrays = rows, centre, offset, scale, norm.gamma[channels], _rows(out)
        gradients = norm.dgamma[channels], norm.dbeta[channels]
        batch_norm_train_backward(backend, _rows(dy), *arrays, *gradients, y, passed)


class PoolReLUOp(ChannelOp):
    """y = max(maximum over a window, 0)."""

    keeps_output = True
    stores_float16 = True
    passes = 5

    def __init__(self, pool: MaxPoolOp) -> None:
        self.pool = pool

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape that the windows leave."""
        return self.pool.out_shape(shape)

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        over = self.pool.geometry(x.shape)
        return over, max_pool_forward(backend, x, over, out, keep, True), out

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        over, ahead, y = cache
        max_pool_backward_from(backend, dy, ahead, over, out, y)


def _rows(a: Array) -> Array:
    return a.reshape(a.shape[0], -1)  # (C, H*W*N)
