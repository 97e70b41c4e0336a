"""Layers one after another: the only place that chains forward and, in reverse, backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ConfigError
from xpcnn.functional.addition import AddOp
from xpcnn.functional.layout import batch_first, batch_last
from xpcnn.functional.precision import is_narrow
from xpcnn.nn.channelwise import ChannelLayer, backward_chain, forward_chain, runs_in_chain
from xpcnn.nn.module import Module, is_traced
from xpcnn.nn.residual import Residual, add


class _Chain(Module):
    """Neighbouring channelwise layers, run as one chain."""

    def __init__(self, layers: list[Module]) -> None:
        super().__init__()
        self.members = tuple(layers)

    def forward(self, x: Array) -> Array:
        return forward_chain(self, self.members, x)

    def backward(self, dy: Array) -> Array:
        return backward_chain(self, self.members, dy)


class _Sum(ChannelLayer):
    """Adds `other` to what comes; its backward leaves the gradient of both in `gradient`."""

    def __init__(self) -> None:
        super().__init__()
        self.other: Array = None
        self.gradient: Array = None

    def channel_op(self) -> AddOp:
        return AddOp(self.other)

    def prepare_backward(self, op: AddOp) -> None:
        op.make_gradient(backend_of(op.other))

    def finish_backward(self, op: AddOp) -> None:
        self.gradient, op.gradient = op.gradient, None


class _ResidualChain(Module):
    """A residual block and the channelwise layers after it.

    The last channelwise layers of the body, the sum and those layers run as one chain: a batch norm, the sum and a ReLU
    read and write their numbers once, not four times.
    """

    def __init__(self, block: Residual, followers: list[Module]) -> None:
        super().__init__()
        self.block, self.followers = block, tuple(followers)
        self.sum = _Sum()
        self.chain = _Chain(followers)

    def forward(self, x: Array) -> Array:
        body = self.block.body
        steps = body.chained if type(body) is Sequential else ()  # a subclass may have a forward of its own
        tail = _members(steps[-1]) if steps else ()
        if not tail or is_narrow(x.dtype):  # the chain would compute in float32, the sum is of float16
            self._use(self.followers)
            y = self.chain(self.block(x))
            self.keep((None, self.chain))
            return y
        *steps, _ = steps
        other = x if self.block.shortcut is None else self.block.shortcut(x)
        for step in steps:
            x = step(x)
        self._use((*tail, self.sum, *self.followers))
        self.sum.other = batch_last(backend_of(other), other)
        try:
            y = self.chain(x)
        finally:
            self.sum.other = None
        self.keep((steps, self.chain))
        return y

    def _use(self, members: tuple[Module, ...]) -> None:
        if self.chain.members != members:  # the body has been given another layer since
            self.chain = _Chain(list(members))

    def backward(self, dy: Array) -> Array:
        steps, chain = self.take()
        try:
            dy = chain.backward(dy)
        except Exception:
            self.keep((steps, chain))
            raise
        if steps is None:
            return self.block.backward(dy)
        gradient, self.sum.gradient = batch_first(self.sum.gradient), None
        for step in reversed(steps):
            dy = step.backward(dy)
        shortcut = self.block.shortcut
        if shortcut is None:
            return add(gradient, dy, reuse=True)  # nobody else has it
        return add(dy, shortcut.backward(gradient))


class Sequential(Module):
    """Apply layers in turn: y = layer_k(... layer_1(x)).

    Neighbours that keep channels apart (activations, batch norm, pooling, dropout) run as one chain while their
    numbers are in the cache.

    Parameters
    ----------
    *layers : Module
    """

    def __init__(self, *layers: Module) -> None:
        super().__init__()
        self._set(layers)

    @property
    def layers(self) -> tuple[Module, ...]:
        """The layers in their order; `append` adds one."""
        return self._layers

    def _set(self, layers: tuple[Module, ...]) -> None:
        for layer in layers:
            if not isinstance(layer, Module):
                raise ConfigError(f"layers: expected instances of xpcnn.nn.Module, got {layer!r}")
        self._layers = layers
        self._steps = {"chained": _chain(layers)}  # a dict hides them from the search for children

    @property
    def chained(self) -> Sequence[Module]:
        """The layers as they run, neighbours that keep channels apart as one."""
        return self._steps["chained"]

    def append(self, layer: Module) -> Sequential:
        """Add a layer at the end."""
        self._set((*self._layers, layer))
        return self

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers)

    def __getitem__(self, index: int) -> Module:
        return self._layers[index]

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the layers by number, as torch names them."""
        return ((str(i), layer) for i, layer in enumerate(self._layers))

    def forward(self, x: Array) -> Array:
        """Return the last layer's y."""
        # One by one where calls are recorded; backward then finds the steps that forward took.
        steps = self._layers if is_traced() else self.chained
        for step in steps:
            x = step(x)
        self.keep(steps)
        return x

    def backward(self, dy: Array) -> Array:
        """Return the first layer's dx."""
        steps = self.take()
        if steps:
            dy = self._enter(steps, steps[-1].backward, dy)
        for step in reversed(steps[:-1]):
            dy = step.backward(dy)
        return dy

    def backward_parameters(self, dy: Array) -> None:
        """Walk back to the first layer and spare its dx."""
        steps = self.take()
        if len(steps) > 1:
            dy = self._enter(steps, steps[-1].backward, dy)
            for step in reversed(steps[1:-1]):
                dy = step.backward(dy)
            steps[0].backward_parameters(dy)
        elif steps:
            self._enter(steps, steps[0].backward_parameters, dy)

    def _enter(self, steps: Sequence[Module], backward: Callable[[Array], Any], dy: Array) -> Any:
        """Call the backward of the last step; where it refuses dy, nothing is consumed."""
        try:
            return backward(dy)
        except Exception:
            self.keep(steps)
            raise

    def forget(self) -> None:
        """Drop everything that forwards have kept, the chains' caches too."""
        super().forget()
        for module in self.modules():
            if isinstance(module, Sequential):
                for step in module.chained:
                    step._kept.clear()
                    if isinstance(step, _ResidualChain):
                        step.chain._kept.clear()


def _chain(layers: Sequence[Module]) -> Sequence[Module]:
    """Group neighbours that may run as one chain."""
    steps: list[Module] = []
    run: list[Module] = []
    for layer in [*layers, None]:
        if layer is not None and runs_in_chain(layer):
            run.append(layer)
            continue
        if run and steps and type(steps[-1]) is Residual:
            steps[-1] = _ResidualChain(steps[-1], run)
        elif run:
            steps.append(run[0] if len(run) == 1 else _Chain(run))
        run = []
        if layer is not None:
            steps.append(layer)
    return steps


def _members(step: Module) -> tuple[Module, ...]:
    """Return the layers of a chain, or of a step that could be one."""
    if isinstance(step, _Chain):
        return step.members
    return (step,) if runs_in_chain(step) else ()
