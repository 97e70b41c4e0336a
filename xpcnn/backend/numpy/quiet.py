"""NumPy's error state set to "ignore" in a fifth of the time of `numpy.errstate`, which every operation would pay."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar, Token, copy_context
from typing import Any

import numpy as np


def _find() -> tuple[ContextVar[Any], Any] | None:
    """Return the context variable of the error state and its value; None where NumPy keeps it elsewhere."""
    with np.errstate(all="ignore"):
        for variable, value in copy_context().items():
            if variable.name == "numpy.ufunc.extobj":
                return variable, value
    return None


_found = _find()


class _Quiet:
    """A context of one use in which overflow, underflow and invalid operations say nothing."""

    __slots__ = ("_token",)
    _token: Token[Any]

    def __enter__(self) -> None:
        self._token = _variable.set(_value)

    def __exit__(self, *error: object) -> None:
        _variable.reset(self._token)


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which overflow, underflow and invalid operations say nothing, in this thread or task."""
    return np.errstate(all="ignore") if _found is None else _Quiet()


if _found is not None:
    _variable, _value = _found
