"""The numbers of a training for TensorBoard, through tensorboardX."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xpcnn.datasets.source import check_path
from xpcnn.errors import ConfigError, DataError
from xpcnn.extras import install_line
from xpcnn.optim.groups import check_count
from xpcnn.training.callbacks import Callback

if TYPE_CHECKING:
    from xpcnn.training.history import History
    from xpcnn.training.trainer import Trainer

_EPOCH_TAGS = {
    "loss": "epoch/loss",
    "accuracy": "epoch/accuracy",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
    "images_per_second": "epoch/images_per_second",
}


class TensorBoard(Callback):
    """Writes loss, accuracy and rate of the steps, and what is measured of each epoch, to a folder for TensorBoard.

    The numbers are those of `History`, by step. A training that goes on from a checkpoint goes on here where the
    checkpoint was written: what an end without one had left behind is hidden.

    Parameters
    ----------
    folder : path
        Made where it is not there; `tensorboard --logdir FOLDER` shows it.
    every : int
        Of how many steps one is written.

    Raises
    ------
    ConfigError
        tensorboardX is not installed, or `every` is no integer of 1 or more.

    Examples
    --------
    >>> from xpcnn import training
    >>> board = training.TensorBoard("runs/board", every=10)  # in `callbacks`; then tensorboard --logdir runs
    >>> board.every
    10
    """

    once = True

    def __init__(self, folder: str | os.PathLike[str], every: int = 1) -> None:
        check_count("every", every)
        check_path(folder)
        load_writer()
        self.folder, self.every = os.fspath(folder), every
        self._writer: Any = None
        self._steps = self._epochs = 0  # of the history, those that are written

    def on_fit_start(self, trainer: Trainer) -> None:
        """Open the folder."""
        self._open(trainer.resumed)
        self._write(trainer.history)

    def on_step(self, trainer: Trainer) -> None:
        """Write what has been read so far, now and then."""
        if trainer.step % 64 == 0:  # a device is not waited for
            self._write(trainer.history)

    def on_metrics(self, trainer: Trainer) -> None:
        """Write an epoch."""
        self._write(trainer.history)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Write the rest and close the folder."""
        self._write(trainer.history)
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _open(self, resumed: bool) -> None:
        # Two files of one second would have one name, and the first would be lost.
        options: dict[str, Any] = {"filename_suffix": f".{time.time_ns()}"}
        if resumed or self._steps:
            options["purge_step"] = self._steps + 1
        try:
            self._writer = load_writer()(self.folder, **options)
        except OSError as error:
            raise DataError(f"folder: expected one that can be written, got {self.folder}: {error.strerror}") from error

    def _write(self, history: History) -> None:
        if self._writer is None:
            return
        for i in range(self._steps, len(history)):
            if i % self.every == 0:
                for name, column in history.steps.items():
                    self._add(f"train/{name}", column[i], i + 1)
        self._steps = len(history)
        count = len(history.epochs["loss"])
        for i in range(self._epochs, count):
            for name, tag in _EPOCH_TAGS.items():
                self._add(tag, history.epochs[name][i], int(history.epochs["step"][i]))
        self._epochs = count

    def _add(self, tag: str, value: float, step: int) -> None:
        if not math.isnan(value):
            self._writer.add_scalar(tag, value, step)

    def state_dict(self) -> dict[str, Any]:
        """Return how much is written, all of it on the disk."""
        if self._writer is not None:
            self._writer.flush()
        return {"steps": self._steps, "epochs": self._epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        DataError
            It is not the state of a `TensorBoard`.
        """
        for name in ("steps", "epochs"):
            value = state.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0 or len(state) != 2:
                raise DataError(f"tensorboard state: expected steps and epochs of 0 or more, got {dict(state)!s:.60}")
        self._steps, self._epochs = state["steps"], state["epochs"]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_writer": None}


def load_writer() -> Any:
    """Return the class that writes event files.

    Raises
    ------
    ConfigError
        tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            f"TensorBoard needs tensorboardX, which is not installed: {install_line('tensorboard')}"
        ) from None
    return SummaryWriter
