"""Which layers of a network run together: the groups that `Sequential` steps through and `Inference` folds.

A group is a layer that is called, a chain of neighbours that keep channels apart, or the sum of a residual block with
the chain after it. A chain that begins with a batch norm takes in the convolution before it, for the statistics. Only
what the library knows is fused: a subclass, or a layer, with a forward or backward of its own is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

from xpcnn.backend import Array, backend_of
from xpcnn.functional.addition import AddOp
from xpcnn.functional.layout import batch_first, batch_last
from xpcnn.functional.precision import cast_batch
from xpcnn.nn.caches import Span, drop, use_up
from xpcnn.nn.channelwise import ChannelLayer, backward_chain, forward_chain
from xpcnn.nn.convolution import Conv2d
from xpcnn.nn.inquiries import call_backward, goes_its_class_s_way, needs_gradient, remember_buffers
from xpcnn.nn.module import Module
from xpcnn.nn.naming import name_layer
from xpcnn.nn.normalization import BatchNorm2d
from xpcnn.nn.residual import Residual, add

_CONVOLUTION_FORWARD = Conv2d.forward  # another may be put in its place, as debuggers and tests do


class Group:
    """Layers that run together; its forward returns y and a cache, which whoever calls it keeps."""

    __slots__ = ()

    def forward(self, x: Array) -> tuple[Array, Any]:
        """Return y and what `backward` needs beside the layers' own caches."""
        raise NotImplementedError

    def backward(self, dy: Array, cache: Any, input_gradient: bool) -> Array:
        """Return dx, or None without `input_gradient`."""
        raise NotImplementedError

    def layers(self) -> Sequence[Module]:
        """Return its layers in their order."""
        raise NotImplementedError

    def chained(self, cache: Any) -> Iterator[Module]:
        """Yield the layers that keep nothing themselves, because `cache` has it."""
        yield from ()


class Call(Group):
    """A layer by itself, which keeps its own cache."""

    __slots__ = ("layer",)

    def __init__(self, layer: Module) -> None:
        self.layer = layer

    def forward(self, x: Array) -> tuple[Array, Any]:
        return self.layer(x), None

    def backward(self, dy: Array, cache: Any, input_gradient: bool) -> Array:
        return self.layer.backward(dy) if input_gradient else call_backward(self.layer, dy, False)

    def layers(self) -> Sequence[Module]:
        return (self.layer,)


class Chain(Group):
    """Neighbouring channelwise layers, run as one chain while their numbers are in the cache.

    A convolution before a batch norm may sum up for it what it writes (`conv2d_sums`).
    """

    __slots__ = ("convolution", "members")

    def __init__(self, members: Sequence[ChannelLayer], convolution: Conv2d | None = None) -> None:
        self.members, self.convolution = tuple(members), convolution

    def forward(self, x: Array) -> tuple[Array, Any]:
        ops, x = self.begin(x)
        return forward_chain(ops, x, self.members)

    def backward(self, dy: Array, cache: Any, input_gradient: bool) -> Array:
        dx = backward_chain(self.members, cache, dy)
        use_up()
        return self.end(dx, input_gradient)

    def begin(self, x: Array) -> tuple[list[Any], Array]:
        """Return the operations of its members, and what the first of them takes."""
        if self.convolution is None:
            return _bind(self.members), x
        ops = _bind(self.members)
        if not ops[0].takes_sums or type(self.convolution).forward is not _CONVOLUTION_FORWARD:
            return ops, self.convolution(x)
        try:
            y, sums = self.convolution.forward_with_sums(x)
        except BaseException as error:
            name_layer(error, self.convolution)
            raise
        ops[0].take_sums(sums)
        return ops, y

    def end(self, dx: Array, input_gradient: bool) -> Array:
        """Return dx of the group for that of its members."""
        if self.convolution is None:
            return dx if input_gradient else None
        if input_gradient or needs_gradient(self.convolution):
            return call_backward(self.convolution, dx, input_gradient)
        drop(self.convolution._kept)
        return None

    def layers(self) -> Sequence[Module]:
        return self.members if self.convolution is None else (self.convolution, *self.members)

    def chained(self, cache: Any) -> Iterator[Module]:
        yield from self.members


class ResidualSum(Group):
    """A residual block and the channelwise layers after it.

    The last channelwise layers of the body, the sum and those layers run as one chain: a batch norm, the sum and a ReLU
    read and write their numbers once, not four times. Where the body does not end in such layers, block and followers
    run one after the other.
    """

    __slots__ = ("block", "followers")

    def __init__(self, block: Residual, followers: Sequence[ChannelLayer]) -> None:
        self.block, self.followers = block, tuple(followers)

    def forward(self, x: Array) -> tuple[Array, Any]:
        groups = self.block.body._groups_inside()
        if not groups or not isinstance(groups[-1], Chain):
            y, cache = forward_chain(_bind(self.followers), self.block(x), self.followers)
            return y, (None, self.followers, cache)
        other = x if self.block.shortcut is None else self.block.shortcut(x)
        *steps, tail = groups
        x, passed = forward_through(steps, x)
        ops, x = tail.begin(x)
        total = AddOp(batch_last(backend_of(other), other))
        members = (*tail.members, None, *self.followers)
        y, cache = forward_chain([*ops, total, *_bind(self.followers)], x, members)
        return y, ((passed, tail, total), members, cache)

    def backward(self, dy: Array, cache: Any, input_gradient: bool) -> Array:
        body, members, cache = cache
        if body is None:
            dy = backward_chain(members, cache, dy)
            use_up()
            return call_backward(self.block, dy, input_gradient)
        passed, tail, total = body
        total.make_gradient(backend_of(total.other))
        dy = backward_chain(members, cache, dy)
        use_up()
        gradient, total.gradient = batch_first(total.gradient), None
        if gradient.dtype != dy.dtype:  # of a chain that computes in float32 on float16
            gradient = cast_batch(backend_of(gradient), gradient, dy.dtype)
        steps = passed.groups
        dy = tail.end(dy, input_gradient or first_needed(steps) < len(steps))
        dx = backward_through(passed, dy, input_gradient)
        shortcut = self.block.shortcut
        if shortcut is not None:
            gradient = call_backward(shortcut, gradient, input_gradient)
        if not input_gradient:
            return None
        if shortcut is None:
            return add(gradient, dx, reuse=True)  # nobody else has it
        return add(dx, gradient)

    def layers(self) -> Sequence[Module]:
        return (self.block, *self.followers)

    def chained(self, cache: Any) -> Iterator[Module]:
        body, members, _ = cache
        yield from (layer for layer in members if layer is not None)
        if body is not None:
            yield from body[0].chained()


def group(layers: Iterable[Module], fuses: Callable[[Module], bool] | None = None) -> list[Group]:
    """Return layers in their order as groups; `fuses` says of which layers a chain may be made."""
    groups: list[Group] = []
    chain: list[ChannelLayer] = []

    def end_chain() -> None:
        before = groups[-1].layer if groups and isinstance(groups[-1], Call) else None
        if not chain:
            return
        is_plain = before is not None and not before._forward_hooks and goes_its_class_s_way(before)
        if type(before) is Residual and is_plain:
            groups[-1] = ResidualSum(before, chain)
        elif type(before) is Conv2d and is_plain and isinstance(chain[0], BatchNorm2d):
            groups[-1] = Chain(chain, before)
        else:
            groups.append(Chain(chain))
        chain.clear()

    for layer in layers:
        if runs_in_chain(layer) and (fuses is None or fuses(layer)):
            chain.append(layer)
        else:
            end_chain()
            groups.append(Call(layer))
    end_chain()
    return groups


def runs_in_chain(layer: Module) -> TypeGuard[ChannelLayer]:
    """Whether `layer` may run by its operation: one with a forward or backward of its own is called instead."""
    kind = type(layer)
    return (
        isinstance(layer, ChannelLayer)
        and kind.forward is ChannelLayer.forward
        and kind.backward is ChannelLayer.backward
        and kind.__call__ is Module.__call__
        and not layer._forward_hooks
        and goes_its_class_s_way(layer)
    )


class Passed:
    """What groups that were gone through one after the other have kept."""

    __slots__ = ("caches", "groups", "span")

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups, self.span = groups, Span()
        self.caches: list[Any] = []

    def chained(self) -> Iterator[Module]:
        """Yield the layers that keep nothing themselves."""
        for step, cache in zip(self.groups, self.caches, strict=True):
            yield from step.chained(cache)


def forward_through(groups: Sequence[Group], x: Array) -> tuple[Array, Passed]:
    """Return y of groups one after the other, and what they have kept."""
    passed = Passed(groups)
    caches = passed.caches
    for step in groups:
        x, cache = step.forward(x)
        caches.append(cache)
    passed.span.close()
    return x, passed


def backward_through(passed: Passed, dy: Array, input_gradient: bool) -> Array:
    """Return dx of groups one after the other; without `input_gradient`, stop where nothing before needs a gradient.

    Caches go as they are used.
    """
    groups, caches = passed.groups, passed.caches
    first = 0 if input_gradient else first_needed(groups)
    for i in range(len(groups) - 1, first - 1, -1):
        dy = groups[i].backward(dy, caches[i], input_gradient or i > first)
        caches[i] = None
    if first:
        passed.span.discard()
    return dy if input_gradient else None


def first_needed(groups: Sequence[Group]) -> int:
    """Return the index of the first group that a backward without dx has to reach."""
    for i, step in enumerate(groups):
        if any(map(needs_gradient, step.layers())):
            return i
    return len(groups)


def _bind(layers: Sequence[ChannelLayer]) -> list[Any]:
    ops = []
    for layer in layers:
        remember_buffers(layer)
        ops.append(layer.channel_op())
    return ops
