"""Which learning rate to take: a short training in which it grows, after which everything is as before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from xpcnn.errors import ConfigError, NonFiniteError, StateError
from xpcnn.optim.groups import check_count, check_range
from xpcnn.training.batches import check_batches
from xpcnn.training.history import History
from xpcnn.training.interrupt import unbroken
from xpcnn.training.state import capture_state, restore_state

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer


class LearningRateFinder:
    """Trains a few steps with a rate that grows from step to step, and notes the losses.

    Parameters
    ----------
    start_lr, end_lr : float
        The first and the last rate; each is the one before times the same factor. Groups with rates of their own keep
        their ratio to the first.
    steps : int
        How many; the data is gone through again where it has fewer batches.
    smoothing : float
        From 0 to below 1: how much of the running mean of the losses stays with each step.
    stop_at : float
        It ends early where that mean is so many times the lowest before.

    Attributes
    ----------
    lrs, losses, smoothed : list of float
        Of each step: its rate, its loss, and the running mean of the losses.

    Raises
    ------
    ConfigError
        A value is not allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from xpcnn import nn, optim
    >>> from xpcnn.training import LearningRateFinder, Trainer
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss())
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> finder = LearningRateFinder(1e-4, 10, steps=20)
    >>> rate = finder.run(trainer, batches)

    References
    ----------
    Smith 2015, Cyclical learning rates for training neural networks, arXiv:1506.01186, section 3.3.
    """

    def __init__(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        steps: int = 100,
        *,
        smoothing: float = 0.9,
        stop_at: float = 4.0,
    ) -> None:
        check_range("start_lr", start_lr, 0.0)
        check_range("end_lr", end_lr, 0.0)
        if not 0 < start_lr < end_lr:
            raise ConfigError(f"start_lr: expected a number above 0 and below end_lr={end_lr!r}, got {start_lr!r}")
        check_count("steps", steps, 2)
        check_range("smoothing", smoothing, 0.0, 1.0)
        check_range("stop_at", stop_at, 1.0)
        self.start_lr, self.end_lr, self.steps = start_lr, end_lr, steps
        self.smoothing, self.stop_at = smoothing, stop_at
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []

    def __repr__(self) -> str:
        found = f", suggestion={self.suggestion():.3g}" if len(self.lrs) > 2 else ""
        return (
            f"LearningRateFinder({self.start_lr!r}, {self.end_lr!r}, steps={self.steps}, smoothing={self.smoothing!r}, "
            f"stop_at={self.stop_at!r}{found})"
        )

    def run(self, trainer: Trainer, train: Any) -> float:
        """Train, note the losses, put everything back, and return `suggestion()`.

        Model, optimiser, loader, random state, counters and history of the trainer are as before, whatever ends it;
        neither schedule nor callbacks are called.

        Parameters
        ----------
        trainer : Trainer
            The one that is to train.
        train : DataLoader, or any iterable of (x, labels) that can be iterated again

        Raises
        ------
        ConfigError, DataError
            `train` is no iterable of batches, or has none.
        StateError
            There were too few steps before the loss rose, or was not finite, to say anything.
        """
        check_batches("train", train)
        self.lrs, self.losses, self.smoothed = [], [], []
        trainer.read()
        before, history = capture_state(trainer, train), trainer.history
        modes = [(module, module.training) for module in trainer.model.modules()]
        trainer.history, trainer.batch = History(), 0
        try:
            trainer.model.train()
            with trainer.model.backend.errstate():
                self._train(trainer, train)
        except NonFiniteError:
            pass  # a rate that is too high, as was to be found out
        finally:
            trainer.history = History()
            restore_state(trainer, before, train)
            trainer.history = history
            for module, training in modes:
                module.training = training
        return self.suggestion()

    def _train(self, trainer: Trainer, train: Any) -> None:
        groups = trainer.optimizer.param_groups
        first = float(groups[0]["lr"]) or 1.0
        ratios = [float(group["lr"]) / first if groups[0]["lr"] else 1.0 for group in groups]
        mean = 0.0
        batches: Any = iter(())
        for step in range(self.steps):
            batch = next(batches, None)
            if batch is None:
                trainer.batch = 0
                batches = trainer._steps(train)
                batch = next(batches, None)
                if batch is None:
                    return
            lr = self.start_lr * (self.end_lr / self.start_lr) ** (step / (self.steps - 1))
            for group, ratio in zip(groups, ratios, strict=True):
                group["lr"] = lr * ratio
            unbroken(trainer._do, *batch)
            trainer.read()
            loss = trainer.history.steps["loss"][-1]
            if not math.isfinite(loss):
                return
            mean = self.smoothing * mean + (1 - self.smoothing) * loss
            value = mean / (1 - self.smoothing ** (step + 1))
            if self.smoothed and value > self.stop_at * min(self.smoothed):
                return
            self.lrs.append(lr)
            self.losses.append(loss)
            self.smoothed.append(value)

    def suggestion(self) -> float:
        """Return the rate at which the running mean falls fastest, per factor of the rate.

        Raises
        ------
        StateError
            There are too few steps.
        """
        if len(self.lrs) < 3:
            raise StateError(
                f"suggestion: expected three steps or more before the loss rises, got {len(self.lrs)}; run it, with a "
                "lower start_lr or more steps"
            )
        values = self.smoothed
        slopes = [values[i + 1] - values[i - 1] for i in range(1, len(values) - 1)]
        return self.lrs[1 + min(range(len(slopes)), key=slopes.__getitem__)]

    def plot(self, path: Any = None, *, ax: Any = None) -> Any:
        """Return a figure of loss over rate, also as a PNG (`xpcnn.plot.learning_rates`; needs matplotlib)."""
        from xpcnn import plot

        return plot.learning_rates(self, path, ax=ax)
