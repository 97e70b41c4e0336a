"""What a graph depends on besides arrays: values on the host, compared with what they were when it was traced.

Objects of the library say themselves when they change: each assignment to an attribute of a module, parameter, loss or
optimiser counts up one number (`changed`), so that a call whose number is the graph's own has nothing else to compare.
Objects of the user's own (globals, what a closure holds, containers) are compared at every call.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

DEEPEST, LARGEST = 6, 1000  # levels and values of an object that are worth a copy; beyond, its calls run as written

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
BY_IDENTITY: tuple[type, ...] = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.ModuleType, type, type(len), types.MethodWrapperType, types.GetSetDescriptorType, types.MemberDescriptorType,
)  # fmt: skip

version = [0]  # counts every change of a guarded object


def changed() -> None:
    """Say that something has changed on which graphs may depend: each looks at its guards again at its next call."""
    version[0] += 1


class Guarded:
    """Base of what tells by `changed()` that an attribute was assigned.

    Attributes
    ----------
    unguarded : frozenset of str
        Attributes that no result depends on, such as caches: they are assigned without a word.
    """

    __slots__ = ()
    unguarded: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name not in self.unguarded:
            version[0] += 1

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        version[0] += 1

    def guard_token(self, tokens: Tokens, without: frozenset[str] = frozenset()) -> Any:
        """Return what a graph that has read this object depends on, as a value that compares by `==`.

        `without` names attributes that the traced function itself assigns before anybody reads them.
        """
        return tokens.of_attributes(self, self.unguarded | without)

    def parts(self) -> Iterable[Guarded]:
        """Return the objects that count as read where this one is: itself, and what it is made of."""
        return (self,)

    def arrays(self) -> Iterable[Any]:
        """Return the arrays that it holds in other places than its attributes."""
        return ()

    def enter_trace(self) -> Any:
        """Return what `leave_trace` needs to know of the time before a function is traced."""
        return None

    def leave_trace(self, before: Any, undo: bool) -> str | None:
        """Clear up after a function was traced; say why it cannot be replayed, if so.

        `undo` asks to be as before: the function did nothing, and will be run anew.
        """
        return None

    def settle(self) -> None:
        """Bring to order what the user has changed, where a graph then still holds."""


def by_identity(kind: type) -> None:
    """Let objects of a class count by their identity alone: what they do never changes what a call computes."""
    global BY_IDENTITY
    BY_IDENTITY = (*BY_IDENTITY, kind)


class TooMuch(Exception):
    """An object is too large to be compared at every call."""


class Tokens:
    """Turns values into tokens that compare by `==`; holds on to everything that a token knows by its identity.

    Attributes
    ----------
    is_array, untraced : callable
        Whether a value is an array, which counts by its identity: its contents are read anew by each replay; and what
        stands behind it where it is traced.
    loose : bool
        Whether the last `of` met something that can change without a word: a list, a dict, an object of the user's own.
    """

    def __init__(self, is_array: Callable[[Any], bool], untraced: Callable[[Any], Any]) -> None:
        self.is_array, self.untraced = is_array, untraced
        self.held: list[Any] = []
        self.loose = False
        self._left = LARGEST

    def begin(self) -> Tokens:
        """Start anew to count how much is copied."""
        self._left, self.loose = LARGEST, False
        return self

    def of(self, value: Any, depth: int = 0) -> Any:
        """Return the token of a value.

        Raises
        ------
        TooMuch
            It holds more than is worth comparing at every call.
        """
        kind = type(value)
        if kind is float and value != value:
            return float, "nan"
        if kind in PLAIN:
            return kind, value
        value = self.untraced(value)
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            raise TooMuch
        if isinstance(value, Guarded) or self.is_array(value) or isinstance(value, BY_IDENTITY):
            return self._identity(value)
        if isinstance(value, types.MethodType):
            return "method", self.of(value.__func__, depth + 1), self.of(value.__self__, depth + 1)
        if isinstance(value, tuple):
            return kind, tuple([self.of(each, depth + 1) for each in value])
        if isinstance(value, (range, slice)):
            return kind, repr(value)
        if isinstance(value, (set, frozenset)):
            self.loose = self.loose or kind is not frozenset
            return kind, frozenset([self.of(each, depth + 1) for each in value])
        if isinstance(value, list):
            self.loose = True
            return kind, id(value), tuple([self.of(each, depth + 1) for each in value])
        if isinstance(value, dict):
            self.loose = True
            return kind, tuple([(self.of(key, depth + 1), self.of(each, depth + 1)) for key, each in value.items()])
        if not hasattr(value, "__dict__"):  # NumPy's scalars and dtypes, objects of compiled code
            if hasattr(value, "dtype") and not getattr(value, "shape", None):
                return kind, repr(value)
            return self._identity(value)
        return self._identity(value)  # whoever traces looks at the attributes that are read

    def of_attributes(self, value: Any, without: Iterable[str], depth: int = 0) -> Any:
        """Return the token of an object's attributes."""
        return tuple([(name, self.of(each, depth + 1)) for name, each in vars(value).items() if name not in without])

    def _identity(self, value: Any) -> Any:
        self.held.append(value)
        return "is", id(value)
