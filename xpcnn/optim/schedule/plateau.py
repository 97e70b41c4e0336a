"""A rate that falls where the training no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from xpcnn.backend.graph import host
from xpcnn.errors import ConfigError, DataError
from xpcnn.optim.groups import check_count, check_range
from xpcnn.optim.optimizer import Optimizer
from xpcnn.optim.schedule.base import Schedule

_COUNTERS = ("last_step", "num_bad_epochs", "cooldown_counter")


class ReduceLROnPlateau(Schedule):
    """Multiplies the rates by `factor` where a number has not got better for more than `patience` steps.

    A step is an epoch in a `Trainer`, which gives the validation loss (the training's where nothing is validated), or
    with `mode="max"` the accuracy; `monitor` names another column of `History.epochs`.

    Parameters
    ----------
    optimizer : Optimizer
    mode : "min" or "max"
        Whether lower or higher is better.
    factor : float
        What the rates are multiplied by, below 1.
    patience : int
        Steps without a better number that are let pass; after one more the rate falls.
    threshold : float
        How much better counts: with threshold_mode "rel" a share of the best number so far, with "abs" the difference.
    threshold_mode : "rel" or "abs"
    cooldown : int
        Steps after a fall that do not count.
    min_lr : float, or list of float
        The lowest rate, of all groups or of each.
    eps : float
        A fall by less than that is left out.
    monitor : str, optional
        What a `Trainer` gives.

    Raises
    ------
    ConfigError
        A value is out of its range.

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.ReduceLROnPlateau(optimizer, patience=1)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step(2.0)
    ...
    >>> rates
    [1.0, 1.0, 1.0, 0.1]
    """

    monitors = True

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
        *,
        monitor: str | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f'mode: expected "min" or "max", got {mode!r}')
        if threshold_mode not in ("rel", "abs"):
            raise ConfigError(f'threshold_mode: expected "rel" or "abs", got {threshold_mode!r}')
        check_range("factor", factor, 0.0, 1.0)
        for name, number in (("patience", patience), ("cooldown", cooldown)):
            if number != 0 or isinstance(number, bool):
                check_count(name, number)
        check_range("threshold", threshold, 0.0)
        check_range("eps", eps, 0.0)
        for lowest in min_lr if isinstance(min_lr, (list, tuple)) else [min_lr]:
            check_range("min_lr", lowest, 0.0)
        if monitor is not None and not isinstance(monitor, str):
            raise ConfigError(f"monitor: expected the name of a column of History.epochs, got {monitor!r:.40}")
        self.mode, self.patience, self.cooldown = mode, patience, cooldown
        self.factor = factor  # type: ignore[assignment,method-assign]  # torch's name
        self.threshold, self.threshold_mode, self.min_lr, self.eps = threshold, threshold_mode, min_lr, eps
        self.monitor = monitor
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)
        self._lowest()

    def step(self, metrics: Any = None) -> None:
        """Take in how the training goes, and lower the rates if it does not.

        Parameters
        ----------
        metrics : number
            Such as the validation loss of this epoch; nan is never better.

        Raises
        ------
        ConfigError
            It is no number.
        """
        try:
            value = float(metrics)
        except (TypeError, ValueError):
            raise ConfigError(f"metrics: expected the number that is watched, got {metrics!r:.40}") from None
        host(partial(self._watch, value))

    def _watch(self, value: float) -> None:
        self.last_step += 1
        if self._is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            share: Any = self.factor
            for group, lowest in zip(self.optimizer.param_groups, self._lowest(), strict=True):
                lr = max(group["lr"] * share, lowest)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr

    def _is_better(self, value: float) -> bool:
        if self.mode == "min":
            relative, absolute = self.best * (1.0 - self.threshold), self.best - self.threshold
            return value < (relative if self.threshold_mode == "rel" else absolute)
        relative, absolute = self.best * (1.0 + self.threshold), self.best + self.threshold
        return value > (relative if self.threshold_mode == "rel" else absolute)

    def _lowest(self) -> list[float]:
        count = len(self.optimizer.param_groups)
        if not isinstance(self.min_lr, (list, tuple)):
            return [float(self.min_lr)] * count  # type: ignore[arg-type]
        if len(self.min_lr) != count:
            raise ConfigError(f"min_lr: expected a number, or {count} for as many groups, got {len(self.min_lr)}")
        return [float(each) for each in self.min_lr]

    def _write(self) -> None:
        """Leave the rates: they follow from the past, and the optimiser has them."""

    def state_dict(self) -> dict[str, float | int]:
        """Return what it has seen as plain numbers; the rates are the optimiser's."""
        return {**{name: getattr(self, name) for name in _COUNTERS}, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        DataError
            It is not the state of such a schedule.
        """
        names = {*_COUNTERS, "best"}
        if not isinstance(state, Mapping) or set(state) != names:
            raise DataError(f"schedule state: expected the numbers {', '.join(sorted(names))}, got {state!s:.80}")
        for name in _COUNTERS:
            value = state[name]
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise DataError(f"schedule state: expected an integer of 0 or more as {name}, got {value!r:.80}")
        if isinstance(state["best"], bool) or not isinstance(state["best"], (int, float)):
            raise DataError(f"schedule state: expected a number as best, got {state['best']!r:.80}")
        for name in names:
            setattr(self, name, state[name])
