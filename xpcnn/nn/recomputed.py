"""Caches that are computed when a backward asks for them: the forward once more as written, with all as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from xpcnn import random
from xpcnn.backend import Array, Backend
from xpcnn.backend.graph import guards, tracing
from xpcnn.nn import caches
from xpcnn.nn.caches import Deferred, Entry, Forward, forward_now
from xpcnn.nn.contexts import gradients, traced_calls
from xpcnn.nn.module import Module
from xpcnn.nn.parameter import Parameter, clock


class Snapshot:
    """What a network is made of at one time: layers, options, modes, hooks; not the numbers in its arrays."""

    def __init__(self, model: Module) -> None:
        self._version = guards.version[0]
        self._model = model
        self._held = [(module, _held(module)) for module in model.modules()]
        self.modules = [module for module, _ in self._held]
        self.buffers = [array for _, array in model.named_buffers()]

    def is_now(self) -> bool:
        """Whether the network is made of the same again."""
        version = guards.version[0]
        if self._version != version:
            modules = list(self._model.modules())
            if len(modules) != len(self._held) or not all(
                module is each and _is_same(_held(module), held)
                for module, (each, held) in zip(modules, self._held, strict=True)
            ):
                return False
            self._version = version
        return True

    def check_unchanged(self, entry: Entry) -> None:
        """Raise StateError where a parameter has changed since an entry was kept."""
        if entry.time != clock.now:
            for module, held in reversed(self._held):
                caches.check_unchanged(type(module).__name__, entry, None, own_parameters(held))

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Let the network be as it was, for the length of a `with` block."""
        if self.is_now():
            yield
            return
        now = [(module, dict(vars(module))) for module in self.modules]
        try:
            for (module, held), (_, before) in zip(self._held, now, strict=True):
                caches_now = {name: before[name] for name in module.unguarded & before.keys() - {"_groups"}}
                _put(module, caches_now | {"_groups": None} | held)  # of other layers or hooks, maybe
            yield
        finally:
            for module, before in now:
                _put(module, before)


class Recomputed(Deferred):
    """What stands for the caches of a forward: that which it cannot be computed again without."""

    __slots__ = ("_buffers", "_forward", "_keys")

    def __init__(self, forward: Forward, buffers: Sequence[Array], backend: Backend) -> None:
        self._forward, self._keys = forward.ref, random.key_stream()
        self._buffers = [(array, backend.copy(array)) for array in buffers]

    def _restore(self, model: Any, kept: Sequence[Module], was: Snapshot, backend: Backend, x: Array) -> None:
        """Compute the caches of the modules `kept`, in the order in which they keep them.

        Raises
        ------
        StateError
            A parameter has changed since the forward; nothing is done.
        """
        forward = self._forward()
        if forward is None:
            return
        found = tracing()
        if found is not None:
            found.fail("a backward takes what a forward outside of it has kept; compile both in one function")
        was.check_unchanged(forward.entries[0])
        again = Forward()
        with ExitStack() as stack:
            stack.enter_context(was.put_back())
            stack.enter_context(random.drawing_again(self._keys))
            stack.enter_context(backend.errstate())
            stack.callback(forward_now.reset, forward_now.set(again))
            stack.callback(gradients.reset, gradients.set(True))
            stack.callback(traced_calls.reset, traced_calls.set(None))
            for array, values in [(array, backend.copy(array)) for array in was.buffers]:
                stack.callback(backend.xp.copyto, array, values)
            for array, values in self._buffers:
                backend.xp.copyto(array, values)
            try:
                model.forward(backend.duplicate(x))
            except BaseException:
                again.discard()
                raise
        for module, new in zip(kept, again.entries, strict=True):
            module._kept.remove(new)
        for entry, new in zip(forward.entries, again.entries, strict=False):  # the last may be taken
            if entry.cache is self:
                entry.cache = new.cache


def keepers(model: Any, forward: Forward) -> list[Module] | None:
    """Return the modules of the caches that a forward has kept just now, in their order; None where one is lost."""
    owners = {id(entry): module for module in model.modules() for entry in module._kept}
    return [owners[id(each)] for each in forward.entries] if all(id(e) in owners for e in forward.entries) else None


def leave(deferred: Deferred, model: Module, kept: Sequence[Module], forward: Forward) -> None:
    """Leave word in each layer that its cache can be had."""
    for module in kept:
        forward.keep(module._kept, deferred)
    model._forwards.append(forward)


def own_parameters(attributes: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters among a module's attributes."""
    return [value for value in attributes.values() if isinstance(value, Parameter)]


def _held(module: Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in module.unguarded}


def _is_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(value is b[name] for name, value in a.items())


def _put(module: Module, attributes: Mapping[str, Any]) -> None:
    held = vars(module)
    held.update(attributes)
    for name in held.keys() - attributes.keys():
        del held[name]
