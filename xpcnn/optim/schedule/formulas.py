"""Schedules that are one formula of the number of steps so far: decays, a ramp, and a function of the user's own."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.optim.groups import check_count, check_range
from xpcnn.optim.optimizer import Optimizer
from xpcnn.optim.schedule.base import Schedule


class StepLR(Schedule):
    """lr = initial * gamma ** (step // step_size); a `Trainer` wants to know whether it counts batches or epochs.

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.StepLR(optimizer, 2)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [1.0, 1.0, 0.1, 0.1]
    """

    asks_unit = True

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = check_count("step_size", step_size)
        check_range("gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return float(self.gamma ** (step // self.step_size))


class ExponentialLR(Schedule):
    """lr = initial * gamma ** step; a `Trainer` wants to know whether it counts batches or epochs.

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.ExponentialLR(optimizer, 0.5)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [1.0, 0.5, 0.25, 0.125]
    """

    asks_unit = True

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        check_range("gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return float(self.gamma**step)


class InverseTimeLR(Schedule):
    """lr = initial / (1 + decay * step).

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.InverseTimeLR(optimizer, 1.0)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [1.0, 0.5, 0.3333, 0.25]
    """

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        check_range("decay", decay, 0.0)
        self.decay = decay
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return 1.0 / (1.0 + self.decay * step)


class CosineAnnealingLR(Schedule):
    """lr = eta_min + (initial - eta_min) * (1 + cos(pi * step / T_max)) / 2 (Loshchilov, Hutter, arXiv:1608.03983).

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.CosineAnnealingLR(optimizer, 4)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = check_count("T_max", T_max)
        check_range("eta_min", eta_min, 0.0)
        self.eta_min = eta_min
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return 0.5 * (1.0 + math.cos(math.pi * step / self.T_max))

    def _write(self) -> None:
        factor = self.factor(self.last_step)
        for group, initial in self._groups():
            group["lr"] = self.eta_min + (initial - self.eta_min) * factor


class MultiStepLR(Schedule):
    """lr = initial * gamma ** (number of milestones up to step); a `Trainer` wants to know what it counts.

    Parameters
    ----------
    optimizer : Optimizer
    milestones : iterable of int
        Steps after which the rate falls; one that stands there twice counts twice.
    gamma : float

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.MultiStepLR(optimizer, [1, 3])
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [1.0, 0.1, 0.1, 0.01]
    """

    asks_unit = True

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        if not isinstance(milestones, Iterable):
            raise ConfigError(f"milestones: expected a list of integers, got {milestones!r:.40}")
        self.milestones = sorted(check_count("milestones", each) for each in milestones)
        check_range("gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return float(self.gamma ** bisect_right(self.milestones, step))


class LinearLR(Schedule):
    """lr = initial * (start_factor to end_factor, in a straight line over `total_iters` steps, then constant).

    A warm-up, as it stands.

    Parameters
    ----------
    optimizer : Optimizer
    start_factor, end_factor : float
        What the initial rate is multiplied by before the first step (above 0, at most 1) and from `total_iters` on (0
        to 1).
    total_iters : int
        Steps of the line.

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.LinearLR(optimizer, 0.25, total_iters=3)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [0.25, 0.5, 0.75, 1.0]
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        check_range("start_factor", start_factor, 0.0)
        check_range("end_factor", end_factor, 0.0)
        if not 0 < start_factor <= 1:
            raise ConfigError(f"start_factor: expected a number above 0 and at most 1, got {start_factor!r}")
        if end_factor > 1:
            raise ConfigError(f"end_factor: expected a number from 0 to 1, got {end_factor!r}")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = check_count("total_iters", total_iters)
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        share = min(step, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * share


class LambdaLR(Schedule):
    """lr = initial * lr_lambda(step), for a function of one's own.

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable, or list of callables
        From the number of steps so far to a number of 0 or more; or one such function for each group.

    Notes
    -----
    The state that is saved is the number of steps and the initial rates. The functions are the program's own business.

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [1.0, 0.5, 0.3333, 0.25]
    """

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]
    ) -> None:
        functions = lr_lambda if isinstance(lr_lambda, (list, tuple)) else [lr_lambda]
        for function in functions:
            if not callable(function):
                raise ConfigError(f"lr_lambda: expected functions of the step, got {function!r:.60}")
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def _write(self) -> None:
        groups = list(self._groups())
        given: Any = self.lr_lambda
        functions = list(given) if isinstance(given, (list, tuple)) else [given] * len(groups)
        if len(functions) != len(groups):
            raise ConfigError(f"lr_lambda: expected {len(groups)} functions, one for each group, got {len(functions)}")
        factors = [function(self.last_step) for function in functions]
        for factor in factors:
            check_range(f"lr_lambda({self.last_step})", factor, 0.0)
        for (group, initial), factor in zip(groups, factors, strict=True):
            group["lr"] = initial * float(factor)
