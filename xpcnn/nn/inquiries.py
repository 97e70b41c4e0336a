"""What containers and trainings ask of a module before they run it: is it ours, must its backward reach something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xpcnn.backend import Array
from xpcnn.nn.caches import forward_now
from xpcnn.nn.parameter import Parameter

if TYPE_CHECKING:
    from xpcnn.nn.module import Module


_WAYS = frozenset({"forward", "backward"})


def is_ours(part: object) -> bool:
    """Whether a layer or loss is the library's own: only of those is it known that a record tells all.

    One of the user's own may compute outside of `xp`, count on the host, or choose by values.
    """
    return type(part).__module__.startswith("xpcnn.") and goes_its_class_s_way(part)


def goes_its_class_s_way(part: object) -> bool:
    """Whether nobody has put a forward or backward on a layer or loss itself, as in `layer.forward = mine`."""
    return _WAYS.isdisjoint(vars(part))


def keeps_samples_apart(module: Module) -> bool:
    """Whether it is known that a sample's result depends on that sample alone, and that a record tells all."""
    return all(
        is_ours(each) and getattr(each, "dim", 1) in (1, -1) and not each._forward_hooks for each in module.modules()
    )


def are_separate_and_ours(module: Module) -> bool:
    """Whether a network is made of the library's own layers, and has none of them, and no parameter, twice."""
    parts = list(module.modules())
    parameters = [value for each in parts for value in vars(each).values() if isinstance(value, Parameter)]
    return (
        all(is_ours(each) and not each._forward_hooks for each in parts)
        and len(set(map(id, parts))) == len(parts)
        and len(set(map(id, parameters))) == len(parameters)
    )


def needs_gradient(module: Module) -> bool:
    """Whether a backward has to reach a module for the sake of a parameter inside, or of what only its user knows."""
    for value in vars(module).values():  # most often it is one of its own
        if isinstance(value, Parameter) and value.requires_grad:
            return True
    parameters = module.parameters()
    if parameters:
        return any(parameter.requires_grad for parameter in parameters)
    return not all(is_ours(each) for each in module.modules())


def call_backward(module: Module, dy: Array, input_gradient: bool) -> Array:
    """Call a module's backward, one that was put in its class's place and has no `input_gradient` included."""
    if input_gradient or not getattr(module.backward, "is_guarded", False):
        return module.backward(dy)
    return module.backward(dy, input_gradient=False)


def remember_buffers(module: Module) -> None:
    """Note the buffers of a module in training mode before they change, for a forward that raises."""
    if module._buffers and module.training:
        forward = forward_now.get()
        if forward is not None:
            forward.remember(module._own_buffers())
