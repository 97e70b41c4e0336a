"""What holds for all modules inside a `with` block of one thread or task: `no_grad`, `trace`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from xpcnn.backend import Array
from xpcnn.backend.graph import compiled

if TYPE_CHECKING:
    from xpcnn.nn.module import Module

gradients: ContextVar[bool] = ContextVar("xpcnn_gradients", default=True)  # whether forward keeps what backward needs
traced_calls: ContextVar[list[tuple[Module, Array, Array]] | None] = ContextVar("xpcnn_trace", default=None)


class no_grad(contextlib.ContextDecorator):
    """Let forward keep nothing for backward, in this thread or task, for the length of a `with` block.

    Threads that a free-threaded Python starts inside of it begin with it, as with every context variable.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> layer = nn.Conv2d(3, 8, 3)
    >>> with xpcnn.no_grad():
    ...     y = layer(x)  # keeps nothing for a backward
    ...
    >>> y.shape
    (2, 8, 6, 6)
    """

    def __init__(self) -> None:
        self._tokens: list[Token[bool]] = []

    def __repr__(self) -> str:
        return "no_grad()"

    def _recreate_cm(self) -> no_grad:
        return no_grad()  # each call of a decorated function has tokens of its own

    def __enter__(self) -> None:
        self._tokens.append(gradients.set(False))

    def __exit__(self, *error: object) -> None:
        gradients.reset(self._tokens.pop())


def keeps_caches() -> bool:
    """Whether forward is to keep what backward needs."""
    return gradients.get()


@contextlib.contextmanager
def trace() -> Iterator[list[tuple[Module, Array, Array]]]:
    """Record (module, input, output) of every call inside a `with` block, layers before the modules that hold them."""
    record: list[tuple[Module, Array, Array]] = []
    token = traced_calls.set(record)
    try:
        yield record
    finally:
        traced_calls.reset(token)


def is_traced() -> bool:
    """Whether calls are recorded: containers then call their layers one by one."""
    return traced_calls.get() is not None


compiled.contexts.append(keeps_caches)
compiled.bypasses.append(is_traced)
