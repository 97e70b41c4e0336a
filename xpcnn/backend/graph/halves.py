"""A graph in two halves: what is done with an array now, and with one that comes later: a network's two ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpcnn.backend import base
from xpcnn.backend.graph.guards import Tokens
from xpcnn.backend.graph.record import NotReplayable, Record
from xpcnn.backend.graph.tracing import Tracing, host
from xpcnn.errors import BackendError

if TYPE_CHECKING:
    from xpcnn.backend.base import Backend

Pause = Callable[[Any, Any], Any]


class Halves:
    """`function(x, pause)` as two replays over the same memory: up to `dy = pause(y, like)`, and from there on.

    Making one runs both, the second with the numbers of the array `like`, which lies as the later ones will.

    Raises
    ------
    BackendError
        It cannot be replayed; both halves have run.
    """

    def __init__(self, backend: Backend, function: Callable[[Any, Pause], Any], x: Any) -> None:
        self.backend = backend
        tracing = Tracing(Tokens(_is_array, backend.untraced), backend.tools)
        self._slots = [backend.place(backend.duplicate(x))]
        outcome: list[Any] = []

        def pause(y: Any, like: Any) -> Any:
            outcome.append(y)
            self._slots.append(backend.place(like))
            host(_mark)
            return backend.traced(self._slots[1])

        def step() -> None:
            tracing.consider(self._slots)
            outcome.append(function(backend.traced(self._slots[0]), pause))

        try:
            with tracing, backend.errstate():
                graph: Any = backend.capture(step)
        finally:
            tracing.arrays.put_back()
            tracing.leave(undo=False)
        if tracing.reason is None:
            try:
                self.record = Record(backend, tracing, graph, self._slots, tuple(outcome), False, [x])
            except NotReplayable as error:
                tracing.fail(str(error))
        if tracing.reason is not None:
            raise BackendError(tracing.reason)
        self._first, self._second = graph.cut(_mark)

    @property
    def x(self) -> Any:
        """The last x, as it was."""
        return self._slots[0]

    @property
    def gradients(self) -> list[Any]:
        """The parameters whose gradients the second half fills, where they were zero."""
        return self.record.filled

    def takes(self, dy: Any) -> bool:
        """Whether the second half was recorded for arrays that lie like this one."""
        slot = self._slots[1]
        if type(dy) is not type(slot) or dy.shape != slot.shape or dy.dtype != slot.dtype:
            return False
        return dy.strides == slot.strides or all(
            n == 1 or a == b for n, a, b in zip(dy.shape, dy.strides, slot.strides, strict=True)
        )

    def first(self, x: Any) -> Any:
        """Return y."""
        self.backend.xp.copyto(self._slots[0], x)
        self._first()
        return self.record.part(0, self._slots)

    def second(self, dy: Any) -> Any:
        """Return what the function did."""
        self.backend.xp.copyto(self._slots[1], dy)
        self._second()
        return self.record.part(1, self._slots)


def _mark() -> None:
    """Stand between the halves."""


def _is_array(value: Any) -> bool:
    return type(value) in base._by_type
