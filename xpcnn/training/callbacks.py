"""What a trainer tells others while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import getattr_static
from typing import TYPE_CHECKING, Any

from xpcnn.errors import ConfigError

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

EVENTS = ("on_fit_start", "on_step", "on_metrics", "on_epoch", "on_fit_end")


class Callback:
    """Base of callbacks; every method may be left out, and so may the base. `trainer.stop()` ends the training.

    One that has `state_dict()` and `load_state_dict(state)`, which go by flat dicts of arrays and plain numbers,
    strings, lists and dicts, is saved in checkpoints and restored with the training. One that has
    `validation_weights(trainer)`, a context manager, is asked for it around each validation.

    Attributes
    ----------
    once : bool
        Whether, of several ranks of a job (`Trainer(communicator=)`), rank 0 alone calls it: for what shows or writes.
        Others are called on each rank, with the same numbers.

    Examples
    --------
    >>> from xpcnn import training
    >>> class Count(training.Callback):
    ...     epochs = 0
    ...
    ...     def on_epoch(self, trainer):
    ...         self.epochs += 1
    ...
    >>> count = Count()
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss(), callbacks=[count])
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> history = trainer.fit(batches, epochs=3)
    >>> count.epochs
    3
    """

    once = False

    def __repr__(self) -> str:
        options = (f"{name}={value!r:.60}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(options)})"

    def on_fit_start(self, trainer: Trainer) -> None:
        """Run before the first step."""

    def on_step(self, trainer: Trainer) -> None:
        """Run after each step; `trainer.history` holds what has been read so far (on a GPU some steps less)."""

    def on_metrics(self, trainer: Trainer) -> None:
        """Run after each epoch and its validation, before its checkpoint, which holds what changes here."""

    def on_epoch(self, trainer: Trainer) -> None:
        """Run after each epoch, its validation and its checkpoint."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Run after the last step, also where an error ended the training."""


def methods(callbacks: Sequence[Any]) -> tuple[list[Callable[[Any], None]], ...]:
    """Return for each event the methods to call, without those that do nothing.

    Raises
    ------
    ConfigError
        One is a class or has none of the methods; or has another one whose name begins with `on_`, which would never
        be called.
    """
    lists: tuple[list[Callable[[Any], None]], ...] = tuple([] for _ in EVENTS)
    for callback in callbacks:
        _check(callback)
        for event, found in zip(EVENTS, lists, strict=True):
            method = getattr(callback, event, None)
            if method is not None and getattr(method, "__func__", None) is not getattr(Callback, event):
                found.append(method)
    return lists


def stateful(callbacks: Sequence[Any]) -> list[Any]:
    """Return those whose state belongs to the training."""
    return [each for each in callbacks if hasattr(each, "state_dict") and hasattr(each, "load_state_dict")]


@contextmanager
def validation_weights(trainer: Trainer) -> Iterator[None]:
    """Let the callbacks put the weights in place that are to be validated, for the length of a `with` block."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:
            if hasattr(callback, "validation_weights"):
                stack.enter_context(callback.validation_weights(trainer))
        yield


def _check(callback: Any) -> None:
    names, kind = ", ".join(EVENTS), type(callback).__name__
    if isinstance(callback, type):
        raise ConfigError(
            f"callbacks: expected objects, got the class {callback.__name__}; write {callback.__name__}(...)"
        )
    for name in dir(callback):
        if name.startswith("on_") and name not in EVENTS and callable(getattr_static(callback, name, None)):
            raise ConfigError(f"callbacks: expected methods among {names}, got {kind}.{name}, which nothing calls")
    if not any(hasattr(callback, event) for event in EVENTS):
        raise ConfigError(f"callbacks: expected objects with any of the methods {names}, got {kind}")
