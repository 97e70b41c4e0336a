"""What a trainer tells others while it works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

EVENTS = ("on_fit_start", "on_step", "on_epoch", "on_fit_end")


class Callback:
    """Base of callbacks; every method may be left out, and so may the base."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Run before the first step."""

    def on_step(self, trainer: Trainer) -> None:
        """Run after each step; `trainer.history` holds what has been read so far (on a GPU some steps less)."""

    def on_epoch(self, trainer: Trainer) -> None:
        """Run after each epoch, its validation and its checkpoint."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Run after the last step, also where an error ended the training."""


def methods(callbacks: Sequence[Any]) -> tuple[list[Callable[[Any], None]], ...]:
    """Return for each event the methods to call, without those that do nothing."""
    lists: tuple[list[Callable[[Any], None]], ...] = tuple([] for _ in EVENTS)
    for callback in callbacks:
        for event, found in zip(EVENTS, lists, strict=True):
            method = getattr(callback, event, None)
            if method is not None and getattr(method, "__func__", None) is not getattr(Callback, event):
                found.append(method)
    return lists
