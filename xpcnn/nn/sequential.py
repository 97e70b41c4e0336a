"""Layers one after another: the only place that chains forward and, in reverse, backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from xpcnn.backend import Array
from xpcnn.errors import ConfigError
from xpcnn.nn.fusion import Call, Group, backward_through, forward_through, group
from xpcnn.nn.module import Module, is_traced
from xpcnn.nn.parameter import Parameter


class Sequential(Module):
    """Apply layers in turn: y = layer_k(... layer_1(x)).

    Neighbours that keep channels apart (activations, batch norm, pooling, dropout) run as one chain while their
    numbers are in the cache. Layers can be added, replaced and removed as those of a list.

    Parameters
    ----------
    *layers : Module
    """

    def __init__(self, *layers: Module) -> None:
        super().__init__()
        self._set(layers)

    @property
    def layers(self) -> tuple[Module, ...]:
        """The layers in their order; item assignment, `append`, `insert` and `del` change them."""
        return self._layers

    def _set(self, layers: Iterable[Module]) -> None:
        layers = tuple(layers)
        for layer in layers:
            if not isinstance(layer, Module):
                raise ConfigError(f"layers: expected instances of xpcnn.nn.Module, got {layer!r}")
        self._layers = layers
        self._groups: list[Group] | None = None

    @property
    def groups(self) -> Sequence[Group]:
        """The layers as they run, neighbours that keep channels apart as one."""
        if self._groups is None:
            vars(self)["_groups"] = group(self._layers)  # follows from the layers alone: no change of the model
        return self._groups  # type: ignore[return-value]

    def _groups_inside(self) -> Sequence[Group]:
        kind = type(self)
        is_plain = kind.forward is Sequential.forward and kind.backward is Sequential.backward
        return self.groups if is_plain else ()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_groups": None}

    def append(self, layer: Module) -> Sequential:
        """Add a layer at the end."""
        self._set((*self._layers, layer))
        return self

    def insert(self, index: int, layer: Module) -> Sequential:
        """Add a layer before the one at `index`."""
        layers = list(self._layers)
        layers.insert(index, layer)
        self._set(layers)
        return self

    def extend(self, layers: Iterable[Module]) -> Sequential:
        """Add layers at the end."""
        self._set((*self._layers, *layers))
        return self

    def __setitem__(self, index: int, layer: Module) -> None:
        layers = list(self._layers)
        layers[index] = layer
        self._set(layers)

    def __delitem__(self, index: int | slice) -> None:
        layers = list(self._layers)
        del layers[index]
        self._set(layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Module | Sequential:
        """Return a layer, or a `Sequential` of some, which are the same objects."""
        if isinstance(index, slice):
            return Sequential(*self._layers[index])
        return self._layers[index]

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the layers by number, as torch names them."""
        return ((str(i), layer) for i, layer in enumerate(self._layers))

    def forward(self, x: Array) -> Array:
        """Return the last layer's y."""
        # One by one where calls are recorded; backward then finds the groups that forward took.
        groups = [Call(layer) for layer in self._layers] if is_traced() else self.groups
        x, passed = forward_through(groups, x)
        self.keep(passed)
        return x

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return the first layer's dx."""
        return backward_through(self.take(), dy, input_gradient)

    def _parameters_read(self, cache: Any) -> Iterable[Parameter]:
        for layer in cache.chained():
            yield from layer._parameters_read(cache)
