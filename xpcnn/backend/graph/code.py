"""What the code of a function reads, whose code it is, and where a call came from."""

from __future__ import annotations

import dis
import functools
import gc
import os
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_NUMPY = os.path.dirname(os.path.abspath(numpy.__file__)) + os.sep
_THREADS = f"{os.sep}threadpoolctl.py"  # the one other library that the package calls within a step
_OWN = __name__.partition(".")[0]
COMPUTING = frozenset({"backend", "functional", "nn", "optim", "random", "windows"})  # the others hold other libraries'
MISSING = object()  # what a name stands for that is not there
READS_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "DELETE_ATTR"})
LOOKS_AT_ALL = frozenset({"__dict__", "vars", "getattr", "setattr", "hasattr", "deepcopy", "copy"})


def is_users(filename: str | None) -> bool:
    """Whether a file is code of the user's own: neither the library's, nor what it stands on, nor Python's."""
    if not filename or filename.startswith((PACKAGE, _NUMPY, "<frozen")) or filename.endswith(_THREADS):
        return False
    return not filename.startswith(STANDARD) or f"{os.sep}site-packages{os.sep}" in filename


def is_users_class(kind: type) -> bool:
    """Whether a class is the user's own."""
    module = sys.modules.get(kind.__module__)
    return kind.__module__ == "__main__" or (module is not None and is_users(getattr(module, "__file__", None)))


def put(place: Any, name: str, value: Any) -> None:
    """Let a namespace, a cell, a class or an object with slots hold a value, or none if that is `MISSING`."""
    if isinstance(place, dict):
        place[name] = value
        if value is MISSING:
            del place[name]
        return
    name = "cell_contents" if isinstance(place, types.CellType) else name
    kind: Any = type if isinstance(place, type) else object
    if value is MISSING:
        kind.__delattr__(place, name)
    else:
        kind.__setattr__(place, name, value)


@functools.lru_cache(maxsize=1024)
def globals_of(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that a function looks up among its globals."""
    found = (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=1024)
def attributes_of(code: types.CodeType) -> frozenset[str]:
    """Return the names of attributes that a function may look up: those in its code, and its texts, for `getattr`."""
    found = (each.argval for each in dis.get_instructions(code) if each.opname in READS_ATTRIBUTES)
    texts = (each for each in code.co_consts if isinstance(each, str) and each.isidentifier())
    return frozenset((*found, *texts, *(name for name in globals_of(code) if name in LOOKS_AT_ALL)))


def look_up(place: Any, name: str) -> Any:
    """Return what a namespace, a cell, a class or an object with slots holds now."""
    if isinstance(place, types.CellType):
        try:
            return place.cell_contents
        except ValueError:
            return MISSING
    if isinstance(place, dict):
        return place.get(name, MISSING)
    return vars(place).get(name, MISSING) if isinstance(place, type) else getattr(place, name, MISSING)


def slots_of(kind: type) -> list[str]:
    """Return the names of the slots of a class's objects."""
    attributes = (pair for each in kind.__mro__ for pair in vars(each).items())
    return [name for name, value in attributes if isinstance(value, types.MemberDescriptorType)]


def functions_of(code: types.CodeType, variables: dict[str, Any]) -> list[types.FunctionType]:
    """Return the functions of this code whose closure holds these values."""
    found = []
    for each in gc.get_referrers(code):
        if isinstance(each, types.FunctionType) and each.__code__ is code:
            cells = zip(code.co_freevars, each.__closure__ or (), strict=True)
            if all(look_up(cell, name) is variables.get(name, MISSING) for name, cell in cells):
                found.append(each)
    return found


def where() -> str:
    """Return the line of the user's code that is running, for a message."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return line_of(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return ""


def line_of(code: types.CodeType, number: int) -> str:
    """Return a line of code as messages end with it."""
    return f" ({code.co_filename}:{number}, in {code.co_name})"


def levels_to_caller() -> int:
    """Return the `stacklevel` with which a warning of the caller's points at the line that called into the library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def callers_are_users() -> bool:
    """Whether the code that called into the library is the user's own."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            inner = name[len(PACKAGE) :]
            if not inner.startswith(f"backend{os.sep}"):
                return False
        elif is_users(name):
            return True
        frame = frame.f_back
    return False


def is_whole(*spaces: Mapping[str, Any]) -> bool:
    """Say whether no function of the user's stands where one of the library's or of NumPy's was.

    Looked at are the modules of the library that compute, with their classes, NumPy, and `spaces`; some 2 ms.
    """
    found: list[Mapping[str, Any]] = [vars(numpy), *spaces]
    for name, module in list(sys.modules.items()):
        own, _, inner = name.partition(".")
        if own == _OWN and inner.partition(".")[0] in COMPUTING and module is not None:
            found.append(vars(module))
            found += [vars(each) for each in vars(module).values() if isinstance(each, type)]
    return not any(_is_users_own(value) for space in found for value in list(space.values()))


def _is_users_own(value: Any) -> bool:
    value = getattr(value, "__func__", getattr(value, "fget", value))  # of a method, of a property
    code = getattr(value, "__code__", None)
    if not isinstance(code, types.CodeType):
        return callable(value) and not isinstance(value, type) and is_users_class(type(value))
    if code.co_filename == "<string>":  # methods that `dataclass` and `NamedTuple` have made
        made_by = str(value.__globals__.get("__name__"))
        return not made_by.startswith((f"{_OWN}.", "namedtuple_"))
    return is_users(code.co_filename)
