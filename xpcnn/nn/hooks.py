"""Functions of the user's own that are called with what a module computes."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array
from xpcnn.backend.graph import compiled
from xpcnn.errors import ConfigError

if TYPE_CHECKING:
    from xpcnn.nn.module import Module

Hook = Callable[[Any, tuple[Array, ...], Array], Any]

changes = [0]  # counts hooks that came and went: layers with one run by themselves, in no chain
_keys = itertools.count()
_hooked: weakref.WeakValueDictionary[int, Module] = weakref.WeakValueDictionary()

# A replay would call nobody; so while there is a hook, whatever is compiled runs as written.
compiled.bypasses.append(lambda: bool(_hooked))


class RemovableHandle:
    """What takes a hook away again: by `remove()`, or at the end of a `with` block."""

    def __init__(self, module: Module, key: int) -> None:
        self._module, self._key = weakref.ref(module), key

    def remove(self) -> None:
        """Take the hook away; a second time does nothing."""
        module = self._module()
        if module is not None:
            _put(module, tuple(entry for entry in module._forward_hooks if entry[0] != self._key))

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *details: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        module = self._module()
        there = module is not None and any(key == self._key for key, _ in module._forward_hooks)
        return f"RemovableHandle({'a hook of ' + type(module).__name__ if there else 'removed'})"


def register(module: Module, hook: Hook, prepend: bool) -> RemovableHandle:
    """Add a hook to a module, behind or before those that it has."""
    if not callable(hook):
        raise ConfigError(f"hook: expected a function of (module, args, output), got {type(hook).__name__}")
    key = next(_keys)
    entry, present = ((key, hook),), module._forward_hooks
    _put(module, entry + present if prepend else present + entry)
    return RemovableHandle(module, key)


def _put(module: Module, hooks: tuple[tuple[int, Hook], ...]) -> None:
    module._forward_hooks = hooks
    changes[0] += 1
    if hooks:
        _hooked[id(module)] = module
    else:
        _hooked.pop(id(module), None)


def run(module: Module, x: Array, y: Array) -> Array:
    """Return what the hooks of a module make of its result."""
    for _, hook in module._forward_hooks:
        result = hook(module, (x,), y)
        if result is not None:
            y = result
    return y
