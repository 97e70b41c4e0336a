"""Layers one after another: the only place that chains forward and, in reverse, backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from xpcnn.backend import Array, graph, is_portable
from xpcnn.backend.graph import guards
from xpcnn.errors import ConfigError
from xpcnn.nn import caches, hooks
from xpcnn.nn.batches import Batches, Cost
from xpcnn.nn.caches import Forward, forward_now
from xpcnn.nn.contexts import is_traced, keeps_caches, no_grad, trace
from xpcnn.nn.evaluated import Evaluation
from xpcnn.nn.fusion import Call, Group, backward_through, forward_through, group
from xpcnn.nn.inquiries import are_separate_and_ours, goes_its_class_s_way, keeps_samples_apart
from xpcnn.nn.module import Module
from xpcnn.nn.parameter import Parameter
from xpcnn.nn.precision import computes_in_float16
from xpcnn.nn.replayed import Replays

RECORDS = 8  # shapes of batches for which forwards that keep nothing have graphs


class Sequential(Module):
    """Apply layers in turn: y = layer_k(... layer_1(x)).

    Neighbours that keep channels apart (activations, batch norm, pooling, dropout) run as one chain while their
    numbers are in the cache. Layers can be added, replaced and removed as those of a list.

    Parameters
    ----------
    *layers : Module

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> model(x).shape, len(model.parameters())
    ((2, 10), 4)
    >>> model.backward(np.ones((2, 10), "float32")).shape
    (2, 3, 8, 8)
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
        self._groups: tuple[tuple[int, int], list[Group]] | None = None
        self._live: tuple[int, Evaluation | None] | None = None
        self._replays: tuple[int, Replays | None] | None = None

    @property
    def groups(self) -> Sequence[Group]:
        """The layers as they run, neighbours that keep channels apart as one."""
        found, now = self._groups, (hooks.changes[0], guards.version[0])
        if found is None or found[0] != now:
            # Follows from the layers, what is set on them and their hooks alone: no change of the model.
            found = vars(self)["_groups"] = now, group(self._layers)
        return found[1]

    def _groups_inside(self) -> Sequence[Group]:
        kind = type(self)
        is_plain = kind.forward is Sequential.forward and kind.backward is Sequential.backward
        return self.groups if is_plain and not self._forward_hooks and goes_its_class_s_way(self) else ()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_groups": None, "_live": None, "_replays": None}

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

    def _call_outermost(self, x: Array) -> Array:
        if is_traced() or graph.is_tracing():
            return super()._call_outermost(x)
        if not self.training:
            evaluation = self._evaluation()
            if evaluation is not None:
                y = evaluation.forward(x) if keeps_caches() else evaluation.forward_alone(x)
                if y is not None:
                    return y
        replays = self._training() if keeps_caches() else None
        return super()._call_outermost(x) if replays is None else replays.forward(x, super()._call_outermost)

    def _evaluation(self) -> Evaluation | None:
        """Return what runs forwards in evaluation mode, by graphs and in pieces; None where that cannot be."""
        version = guards.version[0]
        if self._live is None or self._live[0] != version:
            vars(self)["_live"] = version, self._make_evaluation()
        return self._live[1]  # type: ignore[index]

    def _make_evaluation(self) -> Evaluation | None:
        before = None if self._live is None else self._live[1]
        if not self._groups_inside() or not keeps_samples_apart(self) or any(each.training for each in self.modules()):
            return None
        backend = self.backend
        if not backend.immediate or is_portable() or computes_in_float16(self):
            return None
        if before is not None and before.batches.backend is backend:
            return before if before.was.is_now() else before.renewed()
        return Evaluation(self, Batches(self._alone, self._measure, backend, RECORDS, quiet=True))

    def _training(self) -> Replays | None:
        """Return what replays forwards with their backwards; None where that cannot be."""
        version = guards.version[0]
        if self._replays is None or self._replays[0] != version:
            vars(self)["_replays"] = version, self._make_replays()
        return self._replays[1]  # type: ignore[index]

    def _make_replays(self) -> Replays | None:
        before = None if self._replays is None else self._replays[1]
        if not self._groups_inside() or not are_separate_and_ours(self) or caches.checks_writes:
            return None
        backend = self.backend
        if not (backend.capture_runs and backend.immediate) or is_portable() or computes_in_float16(self):
            return None
        return before if before is not None and before.backend is backend else Replays(self, backend)

    def _alone(self, x: Array) -> Array:
        """Return the last layer's y, in a thread that knows of no other forward."""
        token = forward_now.set(Forward())
        try:
            return self.forward(x)
        finally:
            forward_now.reset(token)

    def _measure(self, x: Array) -> tuple[Array, Cost]:
        with no_grad(), trace() as calls:
            y = self._alone(x)
        sizes = [each.size for _, x, y in calls for each in (x, y)]
        products = sum(module.multiply_adds(x.shape, y.shape) for module, x, y in calls)
        return y, (max(sizes, default=x.size), 2.0 * sum(y.size for *_, y in calls) + products / 8)

    def forward(self, x: Array) -> Array:
        """Return the last layer's y."""
        # One by one where calls are recorded; backward then finds the groups that forward took.
        groups = [Call(layer) for layer in self._layers] if is_traced() else self.groups
        x, passed = forward_through(groups, x)
        self.keep(passed)
        return x

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return the first layer's dx."""
        replays = None if self._replays is None else self._replays[1]
        if replays is None:
            return backward_through(self.take(), dy, input_gradient)
        return replays.backward(dy, input_gradient, self._backward)

    def _backward(self, dy: Array, input_gradient: bool) -> Array:
        return backward_through(self.take(), dy, input_gradient)

    def _parameters_read(self, cache: Any) -> Iterable[Parameter]:
        for layer in cache.chained():
            yield from layer._parameters_read(cache)
