"""The number by which an epoch is judged: which column of the history it is, and what it was last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpcnn.errors import ConfigError
from xpcnn.training.history import EPOCH_COLUMNS

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

MONITORS = tuple(name for name in EPOCH_COLUMNS if name != "step")


def check_monitor(monitor: Any) -> None:
    """Raise ConfigError unless `monitor` is None or names a column of `History.epochs`."""
    if monitor is not None and monitor not in MONITORS:
        raise ConfigError(f"monitor: expected None or one of {', '.join(MONITORS)}, got {monitor!r:.60}")


def latest(trainer: Trainer, monitor: str | None, *, accuracy: bool = False) -> float:
    """Return what a column of `history.epochs` says of the last epoch.

    Parameters
    ----------
    trainer : Trainer
        Within `fit`.
    monitor : str or None
        None is the loss of validation, or of the training where nothing is validated.
    accuracy : bool
        None is the accuracy instead.

    Raises
    ------
    ConfigError
        The column holds what this training does not measure, such as the validation loss without validation data.
    """
    if monitor is None:
        kind = "accuracy" if accuracy else "loss"
        monitor = f"validation_{kind}" if trainer.validates else kind
    elif monitor.startswith("validation_") and not trainer.validates:
        raise ConfigError(
            f"monitor: expected what this training measures, got {monitor!r} without validation data; give "
            "fit(..., validation=...) or another monitor"
        )
    return trainer.history.epochs[monitor][-1]
