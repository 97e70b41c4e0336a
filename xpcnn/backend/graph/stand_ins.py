"""What stands for arrays while a function is traced: put where the function finds them, and taken out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpcnn.backend.graph.code import look_up, put
from xpcnn.backend.graph.guards import Tokens

MOST_ITEMS, MOST_DEPTH = 1000, 3  # of containers that are looked through


class StandIns:
    """Arrays in attributes, globals, cells, lists and dicts, with what a backend's `wrap` makes of each in its place.

    Attributes
    ----------
    wrap : callable or None
        wrap(array) -> what stands for it; None where arrays stand for themselves.
    met : dict
        By identity, the arrays that were there.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.wrap: Callable[[Any], Any] | None = None
        self.met: dict[int, Any] = {}
        self._tokens = tokens
        self._swapped: list[tuple[Any, Any, Any, Any]] = []
        self._containers: dict[int, Any] = {}  # lists and dicts in which something stands for arrays

    def swap(self, place: Any, name: Any, value: Any) -> None:
        """Put into a namespace, an object or a cell what stands for the arrays in its value."""
        new = self._of(value)
        if new is not value:
            put(place, name, new)
            self._swapped.append((place, name, value, new))

    def _of(self, value: Any, depth: int = 0) -> Any:
        """Return what stands for an array, or for a tuple of them; lists and dicts are filled with it in place."""
        kind = type(value)
        if self._tokens.is_array(value):
            self.met[id(value)] = value
            return value if self.wrap is None else self.wrap(value)
        if self.wrap is None or depth > MOST_DEPTH:
            return value
        if kind is list or kind is dict:
            if len(value) <= MOST_ITEMS:
                for key, each in list(enumerate(value)) if kind is list else list(value.items()):
                    new = self._of(each, depth + 1)
                    if new is not each:
                        value[key] = new
                        self._containers[id(value)] = value
        elif isinstance(value, tuple) and len(value) <= MOST_ITEMS:
            parts = [self._of(each, depth + 1) for each in value]
            if any(new is not each for new, each in zip(parts, value, strict=True)):
                return kind(*parts) if hasattr(value, "_fields") else kind(parts)
        return value

    def put_back(self) -> None:
        """Put the arrays back where something stands for them; what was assigned meanwhile stays."""
        for place, name, value, stand_in in self._swapped:
            if look_up(place, name) is stand_in:
                put(place, name, value)
        self._swapped.clear()
        for container in self._containers.values():
            for key, each in list(enumerate(container)) if isinstance(container, list) else list(container.items()):
                if type(each) is tuple or self._tokens.untraced(each) is not each:
                    container[key] = self.plain(each)
        self._containers.clear()

    def plain(self, value: Any) -> Any:
        """Return nested tuples, lists and dicts with the arrays themselves as leaves."""
        kind = type(value)
        if kind in (tuple, list):
            return kind([self.plain(each) for each in value])
        if kind is dict:
            return {name: self.plain(each) for name, each in value.items()}
        return self._tokens.untraced(value)
