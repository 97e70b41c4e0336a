"""A network as plain values, and back: the class of each layer and its constructor's arguments. Never code.

The rule that makes it general: a layer keeps each argument of its constructor in an attribute of the same name.
Arguments that are modules are described themselves, so that a container's layers are among its arguments.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xpcnn.errors import ConfigError, DataError
from xpcnn.functional.layout import plain
from xpcnn.nn.module import Module
from xpcnn.nn.parameter import Parameter
from xpcnn.nn.weights import Expected, Kind, expecting

# Arguments that say how initial values are drawn: a network that has values has no use for them.
UNTOLD = frozenset({"weight_init", "bias_init", "dtype"})
OURS, CUSTOM, SHARED, ARGUMENTS = "layer", "custom", "shared", "arguments"
DEEPEST = 100  # modules inside one another
_LEAST_BOUND = 1 << 16  # of integers in a description; beyond it, they need arrays that large

Described = dict[str, Any]


def describe(model: Module) -> Described:
    """Return the classes and arguments of a network as values that json has.

    Returns
    -------
    dict
        `{"layer": name, "arguments": {...}}` of a class of `xpcnn.nn`, `{"custom": name, "arguments": {...}}` of
        another, `{"shared": number}` of a module met before, counted in the order of appearance.

    Raises
    ------
    ConfigError
        A constructor's argument is no attribute of the layer, or no plain value, module, or list of them.
    """
    return _Describer().module(model, "", 0)


class _Describer:
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def module(self, module: Module, path: str, depth: int) -> Described:
        if id(module) in self.seen:
            return {SHARED: self.seen[id(module)]}
        self.seen[id(module)] = len(self.seen)
        name = type(module).__name__
        where = f"layer {path!r} ({name})" if path else name
        if depth > DEEPEST:
            raise ConfigError(f"model: expected modules at most {DEEPEST} deep inside one another, got {where}")
        own = ours().get(name) is type(module)
        if type(module).__module__.startswith("xpcnn.onnx"):
            raise ConfigError(f"model: {where} is a graph of an ONNX file, not a network of layers; keep it as ONNX")
        arguments = {}
        for argument, parameter in _parameters(type(module)).items():
            if argument in UNTOLD:
                continue
            if not hasattr(module, argument):
                raise ConfigError(
                    f"model: expected {where} to keep its constructor's argument {argument!r} as an attribute of the "
                    f"same name, got none; write self.{argument} = {argument} in its __init__"
                )
            value = getattr(module, argument)
            if isinstance(value, Parameter) or (value is None and isinstance(parameter.default, bool)):
                value = value is not None  # such as `bias`, which says whether there is one
            arguments[argument] = self.value(value, _inside(type(module), path, argument), where, depth)
        return {OURS if own else CUSTOM: name, ARGUMENTS: arguments}

    def value(self, value: Any, path: str, where: str, depth: int) -> Any:
        if isinstance(value, Module):
            return self.module(value, path, depth + 1)
        value = plain(value)
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, (list, tuple)):
            return [self.value(each, f"{path}.{i}" if path else str(i), where, depth) for i, each in enumerate(value)]
        raise ConfigError(
            f"model: expected the arguments of {where} to be numbers, strings, modules, or lists of them, "
            f"got {path.rpartition('.')[2]}={value!r:.60}"
        )


def build(
    description: Any,
    kinds: Mapping[str, Kind],
    layers: Sequence[type[Module]] = (),
) -> Module:
    """Return the network of a description on the active backend, with zeros for values.

    Parameters
    ----------
    description : dict
        As `describe` returns it, from wherever: nothing in it is trusted, and nothing in it is run.
    kinds : mapping of str to (shape, dtype)
        The arrays that are there for it. No parameter is made that none of them fills.
    layers : sequence of classes
        Of the caller's own, which the description may name.

    Raises
    ------
    ConfigError
        `layers` are no module classes, or two have one name.
    DataError
        The description is none, names a class that is neither ours nor in `layers`, or does not fit `kinds`.
    """
    custom: dict[str, type[Module]] = {}
    for layer in layers:
        if not (isinstance(layer, type) and issubclass(layer, Module)):
            raise ConfigError(f"layers: expected subclasses of xpcnn.nn.Module, got {layer!r:.60}")
        if custom.setdefault(layer.__name__, layer) is not layer:
            raise ConfigError(f"layers: expected classes of different names, got two named {layer.__name__}")
    largest = max(_LEAST_BOUND, sum(math.prod(shape) for shape, _ in kinds.values()))
    expected = Expected(kinds)
    with expecting(expected):
        return _Builder(expected, custom, largest).module(description, "", 0)


class _Builder:
    def __init__(self, expected: Expected, custom: Mapping[str, type[Module]], largest: int) -> None:
        self.expected, self.custom, self.largest = expected, custom, largest
        self.made: list[Module | None] = []

    def module(self, description: Any, path: str, depth: int) -> Module:
        where = f"layer {path!r}" if path else "the network"
        if depth > DEEPEST:
            raise DataError(f"expected modules at most {DEEPEST} deep inside one another, got {where[:80]} ...")
        if not isinstance(description, dict):
            raise DataError(f"{where}: expected a description of a layer, got {description!r:.40}")
        if set(description) == {SHARED}:
            return self.shared(description[SHARED], where)
        kind = OURS if OURS in description else CUSTOM
        if set(description) != {kind, ARGUMENTS} or not isinstance(description[ARGUMENTS], dict):
            raise DataError(f"{where}: expected a description of a layer, got the keys {sorted(description)!s:.60}")
        name = description[kind]
        where = f"{where} ({name!s:.40})"
        cls = self.known(kind, name, where)
        number = len(self.made)
        self.made.append(None)
        arguments = {
            argument: self.value(value, _inside(cls, path, argument), where, depth)
            for argument, value in description[ARGUMENTS].items()
        }
        self.expected.path = path
        made = _construct(cls, arguments, where)
        self.made[number] = made
        return made

    def shared(self, number: Any, where: str) -> Module:
        made = self.made[number] if type(number) is int and 0 <= number < len(self.made) else None
        if made is None:
            raise DataError(f"{where}: expected the number of a layer before it, got {number!r:.40}")
        return made

    def known(self, kind: str, name: Any, where: str) -> type[Module]:
        known = ours() if kind == OURS else self.custom
        if isinstance(name, str) and name in known:
            return known[name]
        if kind == OURS:
            raise DataError(f"{where}: expected a class of xpcnn.nn, got {name!r:.40}; a newer xpcnn may have it")
        raise DataError(f"{where}: {name!s:.40} is not a class of xpcnn.nn; hand it over: layers=[{name!s:.40}]")

    def value(self, value: Any, path: str, where: str, depth: int) -> Any:
        if isinstance(value, dict):
            return self.module(value, path, depth + 1)
        if isinstance(value, list):
            if depth > DEEPEST:
                raise DataError(f"{where}: expected lists at most {DEEPEST} deep inside one another")
            paths = (f"{path}.{i}" if path else str(i) for i in range(len(value)))
            return tuple(self.value(each, inner, where, depth + 1) for each, inner in zip(value, paths, strict=True))
        if type(value) is int and abs(value) > self.largest:
            raise DataError(f"{where}: expected numbers that its parameters justify, got {value!s:.40}")
        return value


def _inside(cls: type[Module], path: str, argument: str) -> str:
    """Return the path of a module that is an argument, as `named_modules` has it: a container counts its layers."""
    variadic = _parameters(cls)
    if argument in variadic and variadic[argument].kind is inspect.Parameter.VAR_POSITIONAL:
        return path
    return f"{path}.{argument}" if path else argument


def _construct(cls: type[Module], arguments: dict[str, Any], where: str) -> Module:
    parameters = {name: each for name, each in _parameters(cls).items() if name not in UNTOLD}
    unknown = sorted(arguments.keys() - parameters.keys())
    if unknown:
        raise DataError(f"{where}: expected the arguments {', '.join(parameters) or 'none'}, got {unknown[0]!r:.40}")
    values: list[Any] = []
    options: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name not in arguments:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = arguments[name]
            if not isinstance(rest, tuple):
                raise DataError(f"{where}: expected a list as {name}, got {rest!r:.40}")
            values.extend(rest)
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            values.append(arguments[name])
        else:
            options[name] = arguments[name]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()):
        # What stands before *layers goes by position, too.
        before = []
        for name, parameter in parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                break
            if name in options:
                before.append(options.pop(name))
        values = before + values
    try:
        return cls(*values, **options)
    except Exception as error:  # whatever a constructor stumbles over: the values are those of a file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: {reason:.200}") from error


def _parameters(cls: type[Module]) -> dict[str, inspect.Parameter]:
    if cls.__init__ is Module.__init__:
        return {}
    with contextlib.suppress(ValueError):
        return dict(inspect.signature(cls).parameters)
    return {}


def ours() -> dict[str, type[Module]]:
    """Return the classes of `xpcnn.nn` by name."""
    from xpcnn import nn

    found: dict[str, Callable[..., Any]] = {name: getattr(nn, name) for name in nn.__all__}
    return {
        name: each
        for name, each in found.items()
        if isinstance(each, type) and issubclass(each, Module) and each is not Module
    }
