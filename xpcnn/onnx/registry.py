"""Who writes which layer: the library's own exporters, and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from xpcnn.errors import ConfigError
from xpcnn.nn import Module
from xpcnn.nn.channelwise import ChannelLayer
from xpcnn.onnx.graph import Exporter

_exporters: dict[type[Module], Exporter] = {}
F = TypeVar("F", bound=Exporter)


def register(layer: type[Module]) -> Callable[[F], F]:
    """Say how `export` writes a layer of your own: a decorator of a function of (graph, layer, x) that returns y.

    Parameters
    ----------
    layer : type
        A subclass of `Module`. A subclass of a registered layer that has its `forward` needs no function of its own.

    Notes
    -----
    x and y are values with a `name` and a `shape`, whose first entry is None for the batch. The function calls

    - `graph.node(operator, *values, **attributes)`: one of ONNX's operators, in evaluation mode;
    - `graph.parameter(layer.weight)`: a parameter or buffer, under its own name;
    - `graph.constant(array)`, `graph.integers(1, -1)`: numbers;
    - `graph.layer(layer.inside, x)`: a layer inside.

    Examples
    --------
    A layer with y = x sigmoid(beta x)::

        @xpcnn.onnx.register(Swish)
        def write_swish(graph, layer, x):
            gate = graph.node("Sigmoid", graph.node("Mul", x, graph.constant(layer.beta)))
            return graph.node("Mul", x, gate)
    """
    if not (isinstance(layer, type) and issubclass(layer, Module)):
        raise ConfigError(f"layer: expected a subclass of xpcnn.nn.Module, got {layer!r:.80}")

    def add(function: F) -> F:
        if not callable(function):
            raise ConfigError(f"function: expected a function of (graph, layer, x), got {function!r:.80}")
        _exporters[layer] = function
        return function

    return add


def find(module: Module) -> Exporter:
    """Return what writes a module: its class's exporter, or a base's whose forward it has.

    Raises
    ------
    ConfigError
        There is none.
    """
    for kind in type(module).__mro__:
        exporter = _exporters.get(kind)
        if exporter is not None and (kind is type(module) or _computes_as(type(module), kind)):
            return exporter
    raise ConfigError(
        f"model: expected layers that can be written to ONNX, got {type(module).__name__}; say how with "
        f"@xpcnn.onnx.register({type(module).__name__}) over a function of (graph, layer, x)"
    )


def _computes_as(kind: type[Module], base: type[Module]) -> bool:
    names = ("forward", "channel_op") if issubclass(base, ChannelLayer) else ("forward",)
    return all(getattr(kind, name) is getattr(base, name) for name in names)
