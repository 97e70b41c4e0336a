"""The number by which an epoch is judged: which column of the history it is, and what it was last."""

from __future__ import annotations

import math
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.training.history import EPOCH_COLUMNS, History

MONITORS = tuple(name for name in EPOCH_COLUMNS if name != "step")


def check_monitor(monitor: Any) -> None:
    """Raise ConfigError unless `monitor` is None or names a column of `History.epochs`."""
    if monitor is not None and monitor not in MONITORS:
        raise ConfigError(f"monitor: expected None or one of {', '.join(MONITORS)}, got {monitor!r:.60}")


def latest(history: History, monitor: str | None, *, accuracy: bool = False) -> float:
    """Return what a column of `history.epochs` says of the last epoch.

    Parameters
    ----------
    history : History
        Of an epoch or more.
    monitor : str or None
        None is the loss of validation, or of the training where nothing is validated.
    accuracy : bool
        None is the accuracy instead.

    Raises
    ------
    ConfigError
        The column holds what this training does not measure, such as the validation loss without validation data.
    """
    column = monitor
    if column is None:
        kind = "accuracy" if accuracy else "loss"
        column = f"validation_{kind}"
        if math.isnan(history.epochs[column][-1]) and math.isnan(history.epochs["validation_loss"][-1]):
            column = kind
    value = history.epochs[column][-1]
    if column.startswith("validation_") and math.isnan(history.epochs["validation_loss"][-1]) and monitor is not None:
        raise ConfigError(
            f"monitor: expected what this training measures, got {column!r} without validation data; give "
            "fit(..., validation=...) or another monitor"
        )
    return value


def latest_for(history: History, schedule: Any) -> float:
    """Return what a schedule that watches the training is to be told of the last epoch."""
    return latest(history, getattr(schedule, "monitor", None), accuracy=getattr(schedule, "mode", "min") == "max")
