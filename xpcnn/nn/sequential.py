"""Layers one after another: the only place that chains forward and, in reverse, backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import ConfigError
from xpcnn.nn.channelwise import backward_chain, forward_chain, runs_in_chain
from xpcnn.nn.module import Module, is_traced


class _Chain(Module):
    """Neighbouring channelwise layers, run as one chain."""

    def __init__(self, layers: list[Module]) -> None:
        super().__init__()
        self.members = tuple(layers)

    def forward(self, x: Array) -> Array:
        return forward_chain(self, self.members, x)

    def backward(self, dy: Array) -> Array:
        return backward_chain(self, self.members, dy)


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
        steps = self._layers if is_traced() else self._steps["chained"]
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
                for step in module._steps["chained"]:
                    step._kept.clear()


def _chain(layers: Sequence[Module]) -> Sequence[Module]:
    """Group neighbours that may run as one chain."""
    steps: list[Module] = []
    run: list[Module] = []
    for layer in [*layers, None]:
        if layer is not None and runs_in_chain(layer):
            run.append(layer)
            continue
        if run:
            steps.append(run[0] if len(run) == 1 else _Chain(run))
            run = []
        if layer is not None:
            steps.append(layer)
    return steps
