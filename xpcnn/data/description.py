"""A transform as plain values, and back: its class in `xpcnn.data` and its arguments. Never code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from xpcnn.backend import Array
from xpcnn.data.compose import Compose
from xpcnn.data.stage import Stage
from xpcnn.data.transforms import Transform
from xpcnn.errors import ConfigError, DataError
from xpcnn.functional.layout import plain

BatchFunction = Callable[[Array], Array]
NAME, CUSTOM, PARTS = "name", "custom", "transforms"
LARGEST = 1 << 14  # pixels of a border or side


def for_evaluation(transform: BatchFunction) -> BatchFunction | None:
    """Return a transform without what is drawn at random, which is for training alone; None where nothing is left."""
    if isinstance(transform, Compose):
        kept = [for_evaluation(each) for each in transform.transforms]
        return Compose(*(each for each in kept if each is not None))
    if isinstance(transform, Stage):
        return transform.for_evaluation()
    return None if getattr(transform, "is_random", False) else transform


def describe_transform(transform: BatchFunction) -> dict[str, Any]:
    """Return a transform as values that json has: `{"name": ..., arguments}`, or `{"custom": name}` of one's own.

    Raises
    ------
    ConfigError
        It has no name by which it could be handed over again, or an argument that is no plain value.
    """
    if isinstance(transform, Compose):
        return {NAME: "Compose", PARTS: [describe_transform(each) for each in transform.transforms]}
    name = type(transform).__name__
    if _ours().get(name) is type(transform):
        settings = transform.settings()
        return {key: _plain(f"{name}.{key}", value) for key, value in settings.items()}
    name = name_of(transform)
    if not name.isidentifier():
        raise ConfigError(
            f"transform: expected transforms of xpcnn.data, or functions and objects that have a name, got {name!r:.60}"
        )
    return {CUSTOM: name}


def restore_transform(description: Any, custom: Mapping[str, BatchFunction]) -> BatchFunction:
    """Return the transform of a description, in which nothing is trusted; `custom` are those of the caller's own.

    Raises
    ------
    DataError
        It is no description, or names what is neither ours nor in `custom`.
    """
    if not isinstance(description, dict):
        raise DataError(f"transform: expected a description of one, got {description!r:.40}")
    if set(description) == {CUSTOM}:
        name = description[CUSTOM]
        if isinstance(name, str) and name in custom:
            return custom[name]
        raise DataError(
            f"transform: {name!s:.40} is not a transform of xpcnn.data; hand it over: layers=[{name!s:.40}]"
        )
    arguments = dict(description)
    name = arguments.pop(NAME, None)
    if name == "Compose":
        parts = arguments.get(PARTS)
        if set(arguments) != {PARTS} or not isinstance(parts, list):
            raise DataError("transform: expected the parts of a Compose, got none")
        if any(isinstance(part, dict) and part.get(NAME) == "Compose" for part in parts):
            raise DataError("transform: expected the parts of a Compose, got a Compose within")
        return Compose(*(restore_transform(part, custom) for part in parts))
    known = _ours()
    if not isinstance(name, str) or name not in known:
        raise DataError(f"transform: expected one of xpcnn.data, got {name!r:.40}; a newer xpcnn may have it")
    try:
        return known[name](**{key: _value(key, value) for key, value in arguments.items()})
    except Exception as error:  # whatever a constructor stumbles over: the values are those of a file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"transform {name}: {reason:.200}") from error


def name_of(transform: Any) -> str:
    """Return by what name a transform of the user's own is handed over: a function's, or an object's class's."""
    return str(getattr(transform, "__name__", type(transform).__name__))


def _ours() -> dict[str, type[Transform]]:
    from xpcnn import data

    found = {name: getattr(data, name) for name in data.__all__}
    return {name: each for name, each in found.items() if isinstance(each, type) and issubclass(each, Transform)}


def _plain(where: str, value: Any) -> Any:
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(where, each) for each in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(f"transform: expected numbers and strings as arguments, got {where}={value!r:.60}")


def _value(where: str, value: Any, depth: int = 0) -> Any:
    if isinstance(value, list) and depth < 4:
        return tuple(_value(where, each, depth + 1) for each in value)
    if isinstance(value, (list, dict)):
        raise DataError(f"{where}: expected a number, a string or a list of them")
    if type(value) is int and abs(value) > LARGEST:
        raise DataError(f"{where}: expected at most {LARGEST}, got {value!s:.40}")
    return value
