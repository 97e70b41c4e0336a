"""Layers that keep channels apart, and the chains that a network runs them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from xpcnn.backend import Array
from xpcnn.functional.activation import ReLUOp
from xpcnn.functional.channelwise import ChannelOp, run, run_backward
from xpcnn.functional.layout import take
from xpcnn.functional.pooling import MaxPoolOp
from xpcnn.nn.module import Module, keeps_caches


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
        return forward_chain(self, (self,), x)

    def backward(self, dy: Array) -> Array:
        """Return dx for dy."""
        return backward_chain(self, (self,), dy)


def runs_in_chain(layer: Module) -> bool:
    """Whether a container may run `layer` by its operation: a subclass with a forward of its own is called instead."""
    return isinstance(layer, ChannelLayer) and type(layer).forward is ChannelLayer.forward


def forward_chain(keeper: Module, layers: Sequence[Module], x: Array) -> Array:
    """Run the operations of `layers` on x as one chain; `keeper` keeps the cache."""
    ops = [layer.channel_op() for layer in cast("Sequence[ChannelLayer]", layers)]
    y, cache = run(pool_first(ops), x, keep=keeps_caches())
    keeper.keep((ops, cache))
    return y


def backward_chain(keeper: Module, layers: Sequence[Module], dy: Array) -> Array:
    """Return dx of the last chain that `keeper` has kept."""
    ops, cache = keeper.take()
    chain = cast("Sequence[ChannelLayer]", layers)
    try:
        _, dy = take("dy", dy)
    except Exception:
        keeper.keep((ops, cache))
        raise
    for layer, op in zip(chain, ops, strict=True):
        layer.prepare_backward(op)
    try:
        dx = run_backward(dy, cache)
    except Exception:
        keeper.keep((ops, cache))  # a dy that does not fit costs nothing
        raise
    for layer, op in zip(chain, ops, strict=True):
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
