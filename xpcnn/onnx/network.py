"""The model that a file's graph becomes where it is no plain row of layers: its nodes in their order, and backwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xpcnn.backend import Array, backend_of, get_backend
from xpcnn.errors import ShapeError
from xpcnn.nn import Module
from xpcnn.nn.contexts import is_traced
from xpcnn.nn.fusion import Call, Group, Passed, backward_through, forward_through, group
from xpcnn.nn.parameter import Parameter
from xpcnn.nn.residual import add
from xpcnn.onnx.operation import Operation


class Step(NamedTuple):
    """One or more layers in a row: the values that go in and those that come out, by name.

    Attributes
    ----------
    layers : tuple of str
        More than one only where each takes the one before's result, and nobody else does.
    inputs, outputs : tuple of str
        "" for a result that nobody reads.
    on_host : bool
        Whether it computes shapes and the like, which have no gradient.
    """

    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    on_host: bool = False


class Network(Module):
    """A graph of layers, as a file has it.

    Parameters
    ----------
    layers : mapping of str to Module
        By name; the arrays of `state_dict` begin with it.
    steps : sequence of Step
        In an order in which each finds its inputs.
    input, outputs : str, sequence of str
    ndim : int or None
        How many axes the input has, where the file says so.
    known : mapping of str to array
        Outputs that do not depend on the input.

    Notes
    -----
    With several outputs, `forward` returns a tuple, and `backward` takes one, of which some may be None.
    """

    unguarded = Module.unguarded | {"_layers", "_groups"}

    def __init__(
        self,
        layers: Mapping[str, Module],
        steps: Sequence[Step],
        input: str,
        outputs: Sequence[str],
        ndim: int | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._layers, self.steps, self.input, self.outputs = dict(layers), tuple(steps), input, tuple(outputs)
        self.ndim, self._known = ndim, {name: f"output{i}" for i, name in enumerate(known or ())}
        for name, buffer in self._known.items():
            self.register_buffer(buffer, get_backend().asarray((known or {})[name]))
        self._groups: list[list[Group] | None] | None = None
        hosts = {name for step in self.steps if step.on_host for name in step.outputs}
        self.hosts = frozenset(hosts)
        last: dict[str, int] = {}
        for i, step in enumerate(self.steps):
            last.update(dict.fromkeys(step.inputs, i))
        ends = {name: i for name, i in last.items() if name not in self.outputs}
        self.drops = tuple(tuple(name for name, end in ends.items() if end == i) for i in range(len(self.steps)))

    def layer(self, name: str) -> Module:
        """Return a layer."""
        return self._layers[name]

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the layers by name."""
        yield from self._layers.items()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_groups": None}

    def _grouped(self) -> list[list[Group] | None]:
        """Return, for each step that is a row of layers, the groups in which they run."""
        if self._groups is None:
            self._groups = [
                group([self._layers[name] for name in step.layers]) if self._is_row(step) else None
                for step in self.steps
            ]
        return self._groups

    def _is_row(self, step: Step) -> bool:
        return len(step.inputs) == len(step.outputs) == 1 and not step.on_host and step.inputs[0] not in self.hosts

    def forward(self, x: Array) -> Any:
        """Return y, or a tuple of several results."""
        return self._run(x)

    def shapes(self, x: Array) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all values for an input."""
        seen: dict[str, tuple[int, ...]] = {}
        self._run(x, seen)
        return seen

    def _run(self, x: Array, seen: dict[str, tuple[int, ...]] | None = None) -> Any:
        if self.ndim is not None and x.ndim != self.ndim:
            raise ShapeError(f"x: expected {self.ndim} axes, got shape {tuple(x.shape)}")
        values: dict[str, Any] = {self.input: x, **{name: getattr(self, each) for name, each in self._known.items()}}
        kept: list[Any] = []
        cache: Any
        for step, groups, drops in zip(self.steps, self._grouped(), self.drops, strict=True):
            given = [values[name] for name in step.inputs]
            if groups is not None:
                row = [Call(self._layers[name]) for name in step.layers] if is_traced() else groups
                values[step.outputs[0]], cache = forward_through(row, given[0])
            else:
                layer = self._layers[step.layers[0]]
                if not isinstance(layer, Operation):  # pragma: no cover  (the reader makes none such)
                    raise TypeError(f"{step.layers[0]}: a layer of several inputs")
                results, cache = layer.apply(given, [name in self.hosts for name in step.inputs])
                values.update(zip(step.outputs, results, strict=False))
            kept.append(cache)
            if seen is not None:
                seen.update((name, tuple(values[name].shape)) for name in step.outputs if name)
            for name in drops:
                values.pop(name, None)
        self.keep(kept)
        results = tuple(
            backend_of(x).asarray(values[name]) if name in self.hosts else values[name] for name in self.outputs
        )
        return results if len(results) > 1 else results[0]

    def backward(self, dy: Any, *, input_gradient: bool = True) -> Array:
        """Return dx."""
        kept = self.take()
        gradients: dict[str, Any] = {}
        for name, gradient in zip(self.outputs, dy if len(self.outputs) > 1 else (dy,), strict=True):
            self._add(gradients, name, gradient)
        for step, cache in zip(reversed(self.steps), reversed(kept), strict=True):
            dys = [gradients.pop(name, None) for name in step.outputs]
            if step.on_host or all(each is None for each in dys):
                _drop(cache)
                continue
            if isinstance(cache, Passed):
                wanted = input_gradient or step.inputs[0] != self.input
                found: Sequence[Any] = [backward_through(cache, dys[0], wanted)]
            else:
                found = cache(dys)
            for name, gradient in zip(step.inputs, found, strict=True):
                if name not in self.hosts:
                    self._add(gradients, name, gradient)
        return gradients.get(self.input) if input_gradient else None

    def _add(self, gradients: dict[str, Any], name: str, gradient: Any) -> None:
        if gradient is None:
            return
        before = gradients.get(name)
        gradients[name] = gradient if before is None else add(before, gradient)

    def _parameters_read(self, cache: Any) -> Iterable[Parameter]:
        for each in cache:
            if isinstance(each, Passed):
                for layer in each.chained():
                    yield from layer._parameters_read(each)


def _drop(cache: Any) -> None:
    if isinstance(cache, Passed):
        cache.span.discard()
