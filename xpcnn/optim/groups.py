"""Parameter groups and their options: read from what a user gave, or from a saved state, and checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from xpcnn.backend.graph import changed
from xpcnn.errors import ConfigError, DataError
from xpcnn.functional.precision import wide
from xpcnn.nn import Parameter

Number = float | int | bool
Group = dict[str, Any]


class WatchedGroup(dict[str, Any]):
    """A group that tells graphs (`xpcnn.compile`) of edits that ask for another kind of update.

    A rate that takes another value asks for none: each step reads it. One that becomes 0, or stops being 0, may.
    """

    __slots__ = ()

    def __setitem__(self, name: str, value: Any) -> None:
        before = self.get(name)
        if name == "params" and type(value) is list:
            value = WatchedList(value)
        dict.__setitem__(self, name, value)
        if type(before) is not type(value) or bool(before) != bool(value) or isinstance(value, (bool, list)):
            changed()

    def __delitem__(self, name: str) -> None:
        dict.__delitem__(self, name)
        changed()

    def __ior__(self, other: Any) -> WatchedGroup:  # type: ignore[override,misc]
        self.update(other)
        return self

    def update(self, *others: Any, **options: Any) -> None:
        """Set options, as a dict does."""
        for name, value in dict(*others, **options).items():
            self[name] = value

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Set an option that is not there, as a dict does."""
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, *arguments: Any) -> Any:
        """Take an option out, as a dict does."""
        changed()
        return dict.pop(self, *arguments)

    def popitem(self) -> tuple[str, Any]:
        """Take the last option out, as a dict does."""
        changed()
        return dict.popitem(self)

    def clear(self) -> None:
        """Take all options out, as a dict does."""
        dict.clear(self)
        changed()

    def __reduce__(self) -> Any:
        return WatchedGroup, (dict(self),)


class WatchedList(list[Any]):
    """A list that tells graphs of every edit."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return WatchedList, (list(self),)


def _watch(name: str) -> None:
    method = getattr(list, name)

    @functools.wraps(method)
    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        changed()
        return method(self, *arguments, **options)

    setattr(WatchedList, name, watched)


for _name in [
    "append",
    "extend",
    "insert",
    "remove",
    "pop",
    "clear",
    "sort",
    "reverse",
    "__setitem__",
    "__delitem__",
    "__iadd__",
    "__imul__",
]:
    _watch(_name)


def make_groups(parameters: Iterable[Parameter] | Iterable[Group], defaults: Group) -> list[Group]:
    """Return groups with all options filled in, of parameters or of groups as a user gives them."""
    entries: list[Any] = [parameters] if isinstance(parameters, Parameter) else list(parameters)
    if not entries:
        raise ConfigError("parameters: expected at least one Parameter, got none; pass model.parameters()")
    if not any(isinstance(entry, Mapping) for entry in entries):
        entries = [{"params": entries}]
    groups: list[Group] = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "params" not in entry:
            raise ConfigError(f'parameters: expected groups such as {{"params": [...], "lr": 0.1}}, got {entry!r:.80}')
        unknown = set(entry) - set(defaults) - {"params"}
        if unknown:
            raise ConfigError(
                f"parameters: expected group options among {sorted(defaults)}, got {sorted(unknown)[0]!r}"
            )
        members = [entry["params"]] if isinstance(entry["params"], Parameter) else list(entry["params"])
        groups.append(WatchedGroup({**defaults, **entry, "params": WatchedList(members)}))
    check_members(groups)
    return groups


def check_members(groups: Iterable[Group]) -> None:
    """Raise ConfigError unless groups hold parameters, each once."""
    seen: set[int] = set()
    for group in groups:
        if not isinstance(group["params"], list):
            raise ConfigError(f"params: expected a list of nn.Parameter, got {type(group['params']).__name__}")
        for parameter in group["params"]:
            if not isinstance(parameter, Parameter):
                hint = "; give model.parameters()" if hasattr(parameter, "parameters") else ""
                raise ConfigError(
                    f"parameters: expected instances of nn.Parameter, got {type(parameter).__name__}{hint}"
                )
            if id(parameter) in seen:
                raise ConfigError(f"parameters: expected each parameter once, got {parameter.name!r} twice")
            seen.add(id(parameter))


def put(records: list[dict[str, Any]], key: str, value: Number) -> None:
    """Set the option or counter that `state_dict` calls `key`."""
    _, i, name, *place = key.split(".")
    record = records[int(i)]
    if place:
        parts = list(record[name])
        parts[int(place[0])] = value
        record[name] = tuple(parts)
    else:
        record[name] = value


def read_number(state: Mapping[str, Any], key: str, like: Number) -> Number:
    """Return a number of a state, of the kind of `like`."""
    value = state.get(key)
    if isinstance(like, bool) != isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"optimiser state: expected a {type(like).__name__} named {key!r}, got {value!r:.80}")
    return value


def read_array(state: Mapping[str, Any], key: str, parameter: Parameter) -> Any:
    """Return an array of a state that belongs to `parameter`."""
    value = state.get(key)
    shape, dtype = tuple(parameter.data.shape), wide(parameter.data.dtype)
    if getattr(value, "shape", None) != shape or getattr(value, "dtype", None) != dtype:
        got = "none" if value is None else f"{getattr(value, 'dtype', type(value))} {getattr(value, 'shape', '')}"
        raise DataError(f"optimiser state: expected {key!r} as {dtype} {shape}, got {got}")
    return value


def check_range(name: str, value: Any, low: float, below: float = math.inf) -> None:
    """Raise ConfigError unless `low <= value < below`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < below:
        limit = f"{low:g} or more" if below == math.inf else f"from {low:g} to below {below:g}"
        raise ConfigError(f"{name}: expected a number, {limit}, got {value!r}")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return `value`; raise ConfigError unless it is an integer of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: expected an integer of {least} or more, got {value!r}")
    return value


def check_flag(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: expected True or False, got {value!r}")
