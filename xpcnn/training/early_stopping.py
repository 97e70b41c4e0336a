"""The end of a training that no longer gets better, and its best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ConfigError, DataError
from xpcnn.optim.groups import check_count, check_flag, check_range
from xpcnn.training.callbacks import Callback
from xpcnn.training.monitor import check_monitor, latest

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer


class EarlyStopping(Callback):
    """Stops a training whose monitored number has not got better for `patience` epochs.

    Parameters
    ----------
    monitor : str or None
        A column of `History.epochs`, such as "validation_loss" or "validation_accuracy"; None is the validation loss,
        or the training's where nothing is validated.
    patience : int
        Epochs in a row that are not better; the last of them ends the training.
    min_delta : float
        By how much more a number must be better to count.
    restore_best : bool
        Whether the model has the weights (and running statistics) of the best epoch when `fit` has ended, by itself or
        by `stop`. The optimiser keeps its own state: a later `fit` goes on from the best weights.
    mode : "min", "max" or None
        Whether lower or higher is better; None is "max" for accuracies and images per second, else "min".

    Attributes
    ----------
    best, best_epoch : float, int
        The best number, and after how many epochs it was there.
    wait : int
        Epochs since then.

    Raises
    ------
    ConfigError
        A value is not allowed.

    Examples
    --------
    >>> from xpcnn import training
    >>> stopping = training.EarlyStopping("loss", patience=1, min_delta=10.0)
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss(), callbacks=[stopping])
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> history = trainer.fit(batches, epochs=9)
    >>> trainer.stopped, stopping.best_epoch, trainer.epoch
    (True, 1, 2)
    """

    def __init__(
        self,
        monitor: str | None = None,
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best: bool = True,
        *,
        mode: str | None = None,
    ) -> None:
        check_monitor(monitor)
        check_count("patience", patience)
        check_range("min_delta", min_delta, 0.0)
        check_flag("restore_best", restore_best)
        if mode not in (None, "min", "max"):
            raise ConfigError(f'mode: expected "min", "max" or None, got {mode!r}')
        if mode is None:
            mode = "max" if monitor is not None and ("accuracy" in monitor or monitor == "images_per_second") else "min"
        self.monitor, self.patience, self.min_delta, self.restore_best = monitor, patience, min_delta, restore_best
        self.mode = mode
        self._reset()

    def _reset(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.best_epoch = self.wait = 0
        self._weights: dict[str, Array] = {}

    @property
    def restores(self) -> bool:
        """Whether the end of `fit` puts weights into the model."""
        return self.restore_best and bool(self._weights)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin anew, or go on where a checkpoint left off."""
        if not trainer.resumed:
            self._reset()
        elif self.wait >= self.patience:
            self._stop(trainer)

    def on_metrics(self, trainer: Trainer) -> None:
        """Judge an epoch."""
        value = latest(trainer, self.monitor)
        better = value < self.best - self.min_delta if self.mode == "min" else value > self.best + self.min_delta
        if better:
            self.best, self.best_epoch, self.wait = value, trainer.epoch, 0
            if self.restore_best:
                state = trainer.model.state_dict()
                self._weights = {name: backend_of(array).copy(array) for name, array in state.items()}
            return
        self.wait += 1
        if self.wait >= self.patience:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        name = (self.monitor or "loss").replace("_", " ")
        trainer.stop(
            f"the {name} has not got better than {self.best:.4g}, of epoch {self.best_epoch}, for {self.wait} "
            f"epoch{'s' * (self.wait != 1)}"
        )

    def on_fit_end(self, trainer: Trainer) -> None:
        """Put the best weights back."""
        if trainer.completed and self.restores:
            trainer.model.load_state_dict(self._weights)

    # --- what is saved ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen, with the best weights."""
        arrays = {f"best.{name}": array for name, array in self._weights.items()}
        return {"best": self.best, "best_epoch": self.best_epoch, "wait": self.wait, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        DataError
            It is not the state of an `EarlyStopping`.
        """
        numbers = [state.get(name) for name in ("best", "best_epoch", "wait")]
        if any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in numbers):
            raise DataError(f"early stopping state: expected best, best_epoch and wait, got {numbers!s:.60}")
        weights = {}
        for name, array in state.items():
            part, _, rest = name.partition(".")
            if part == "best" and rest and hasattr(array, "shape"):
                weights[rest] = array
            elif name not in ("best", "best_epoch", "wait"):
                raise DataError(f"early stopping state: expected arrays of best, got {name!r:.60}")
        self.best, self.best_epoch, self.wait = state["best"], state["best_epoch"], state["wait"]
        self._weights = weights
