"""Layers that keep channels apart: each is one operation, and neighbours run as one chain (`fusion.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.errors import XpcnnError
from xpcnn.functional.activation import ReLUOp
from xpcnn.functional.channelwise import ChainCache, ChannelOp, first_refusing, run, run_backward
from xpcnn.functional.layout import take
from xpcnn.functional.merged import merged
from xpcnn.functional.pooling import MaxPoolOp
from xpcnn.nn.contexts import keeps_caches
from xpcnn.nn.module import Module
from xpcnn.nn.naming import name_layer


class ChannelLayer(Module):
    """A layer whose work is one `ChannelOp`; neighbours in a `Sequential` run as one chain."""

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call, bound to this layer's parameters and mode."""
        raise NotImplementedError

    def prepare_backward(self, op: Any) -> None:
        """Get ready for the backward of an operation of `channel_op`, such as by making room for gradients."""

    def finish_backward(self, op: Any) -> None:
        """Take the gradients that the backward of an operation has left."""

    def forward(self, x: Array) -> Array:
        """Return y for x (N, C, H, W) or (N, D), or of any shape where the operation takes one."""
        y, cache = forward_chain([self.channel_op()], x, (self,))
        self.keep(cache)
        return y

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx for dy."""
        dx = backward_chain((self,), self.take(), dy)
        return dx if input_gradient else None


Cache = tuple[list[ChannelOp], ChainCache]


def forward_chain(ops: list[ChannelOp], x: Array, layers: Sequence[Module | None]) -> tuple[Array, Cache]:
    """Run operations on x as one chain; an error names the layer of `layers` whose operation refuses."""
    try:
        order = pool_first(ops)
        if len(order) > 1 and x.size and backend_of(x).merges:
            order = merged(order)
        y, cache = run(order, x, keep=keeps_caches())
    except XpcnnError as error:
        layer = layers[first_refusing(ops, x)]
        if layer is not None:
            name_layer(error, layer)
        raise
    return y, (ops, cache)


def backward_chain(layers: Sequence[ChannelLayer | None], cache: Cache, dy: Array) -> Array:
    """Return dx of a chain; each layer takes the gradients of its operation, None stands for one without a layer."""
    ops, kept = cache
    backend, dy = take("dy", dy)
    written: list[Array] = []
    for layer, op in zip(layers, ops, strict=True):
        if layer is not None:
            layer.prepare_backward(op)
            if any(array is other for array in op.gradients for other in written):  # a layer that is there twice
                op.make_gradients(backend)  # type: ignore[attr-defined]
            written += op.gradients
    dx = run_backward(dy, kept)
    for layer, op in zip(layers, ops, strict=True):
        if layer is not None:
            layer.finish_backward(op)
    return dx


def pool_first(ops: list[ChannelOp]) -> list[ChannelOp]:
    """Put max-pooling before a ReLU: the maximum of clipped values is the clipped maximum, on fewer numbers.

    The gradient meets the same winner, and none where the maximum is not positive.
    """
    order = list(ops)
    for i in range(len(order) - 1):
        if type(order[i]) is ReLUOp and type(order[i + 1]) is MaxPoolOp:
            order[i], order[i + 1] = order[i + 1], order[i]
    return order
