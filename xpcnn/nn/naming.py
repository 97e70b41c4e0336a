"""Layers by their path in a network: one that is asked for, and the one in which an error was raised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpcnn.errors import ConfigError, XpcnnError

if TYPE_CHECKING:
    from xpcnn.nn.module import Module


_LISTED = 12  # paths of an error


def layer_at(model: Module, path: str, argument: str) -> Module:
    """Return the module at a path of `named_modules`.

    Raises
    ------
    ConfigError
        There is none; it names `argument` and the paths that there are.
    """
    modules = dict(model.named_modules())
    if path in modules:
        return modules[path]
    names = [name for name in modules if name]
    more = f" and {len(names) - _LISTED} more of model.named_modules()" if len(names) > _LISTED else ""
    expected = f"one of {', '.join(names[:_LISTED])}{more}" if names else f"none in a lone {type(model).__name__}"
    raise ConfigError(f"{argument}: expected {expected}, got {path!r:.60}")


class _Place:
    """Where an error was raised, and what it said before it was told."""

    def __init__(self, layer: Module, args: tuple[Any, ...]) -> None:
        self.layer, self.args, self.note = layer, args, ""


def name_layer(error: BaseException, module: Module) -> None:
    """Note that `error` came through a call of `module`, the innermost first: the path grows with each module around.

    Our own errors then begin with "layer '3' (Conv2d): ", others carry it as a note (PEP 678), for what their arguments
    mean is theirs. Class and traceback stay; memory that ran out is explained elsewhere.
    """
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        return
    place: _Place = error.__dict__.setdefault("_place", _Place(module, error.args))
    path = next((path for path, each in module.named_modules() if each is place.layer), None)
    if path is None:  # it was a part that a container made for itself
        place.layer, path = module, ""
    where = f"layer {path!r} ({type(place.layer).__name__})" if path else ""
    if isinstance(error, XpcnnError):
        error.args = (f"{where}: {place.args[0]}", *place.args[1:]) if where and place.args else place.args
        return
    if place.note:
        error.__notes__.remove(place.note)
    place.note = f"in {where}" if where else ""
    if place.note:
        error.add_note(place.note)
