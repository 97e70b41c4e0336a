"""Learning rates that change from step to step: a schedule writes the optimiser's options before the next update.

A step is a batch or an epoch, as whoever calls `step()` has it; a `Trainer` is told by `schedule_every`.

Each is a formula of the number of steps so far, so a schedule is restored by that number alone (and by the rates it
started from).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from xpcnn.backend.graph import host
from xpcnn.errors import ConfigError, DataError
from xpcnn.optim.groups import check_flag, check_range
from xpcnn.optim.optimizer import Optimizer


class Schedule:
    """Base of the schedules: `step()` once per batch, or once per epoch, after the optimiser's.

    A subclass gives `factor(step)`, by which each group's initial rate is multiplied.

    Parameters
    ----------
    optimizer : Optimizer
        Its groups' rates now are the initial ones.

    Attributes
    ----------
    asks_unit : bool
        Whether a `Trainer` must be told what it counts, by `schedule_every`: the same numbers are usual per epoch,
        where per batch they bring the rate to nothing.
    """

    asks_unit: ClassVar[bool] = False

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.last_step = 0
        self.initial = [float(group["lr"]) for group in optimizer.param_groups]
        self._write()

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        options = [f"{name}={vars(self)[name]!r}" for name in names if name != "optimizer" and name in vars(self)]
        return f"{type(self).__name__}({', '.join([*options, f'last_step={self.last_step}'])})"

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Count one step and set the rates of the next."""
        host(self._advance)

    def _advance(self) -> None:
        self.last_step += 1
        self._write()

    def _groups(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Yield each group with its initial rate; a group that was added since begins with the rate that it has."""
        groups = self.optimizer.param_groups
        del self.initial[len(groups) :]
        self.initial += [float(group["lr"]) for group in groups[len(self.initial) :]]
        return zip(groups, self.initial, strict=True)

    def _write(self) -> None:
        factor = self.factor(self.last_step)
        for group, initial in self._groups():
            group["lr"] = initial * factor

    def state_dict(self) -> dict[str, float | int]:
        """Return the position as plain numbers."""
        return {"last_step": self.last_step, **{f"initial.{i}": lr for i, lr in enumerate(self.initial)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned and set the rates that belong to it.

        Raises
        ------
        DataError
            It is not the state of a schedule over as many groups.
        """
        names = ["last_step", *(f"initial.{i}" for i in range(len(self.initial)))]
        if not isinstance(state, Mapping) or set(state) != set(names):
            raise DataError(f"schedule state: expected the numbers {', '.join(names)}, got {state!s:.80}")
        for name in names:
            value = state[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise DataError(f"schedule state: expected a number of 0 or more as {name}, got {value!r:.80}")
        if not isinstance(state["last_step"], int):
            raise DataError(f"schedule state: expected an integer as last_step, got {state['last_step']!r}")
        self.last_step = state["last_step"]
        self.initial = [float(state[name]) for name in names[1:]]
        self._write()


class StepLR(Schedule):
    """lr = initial * gamma ** (step // step_size); a `Trainer` wants to know whether it counts batches or epochs."""

    asks_unit = True

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = _count("step_size", step_size)
        check_range("gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return float(self.gamma ** (step // self.step_size))


class ExponentialLR(Schedule):
    """lr = initial * gamma ** step; a `Trainer` wants to know whether it counts batches or epochs."""

    asks_unit = True

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        check_range("gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return float(self.gamma**step)


class InverseTimeLR(Schedule):
    """lr = initial / (1 + decay * step)."""

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        check_range("decay", decay, 0.0)
        self.decay = decay
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return what the initial rate is multiplied by after `step` steps."""
        return 1.0 / (1.0 + self.decay * step)


class CosineAnnealingLR(Schedule):
    """lr = eta_min + (initial - eta_min) * (1 + cos(pi * step / T_max)) / 2 (Loshchilov, Hutter, arXiv:1608.03983)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = _count("T_max", T_max)
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


class OneCycleLR(Schedule):
    """Up from max_lr / div_factor to max_lr, then down to a tiny rate; momentum goes the other way.

    Smith and Topin (arXiv:1708.07120), with torch's arguments, of which those after `total_steps` are given by name,
    and formula.

    Parameters
    ----------
    optimizer : Optimizer
        Its rates are overwritten.
    max_lr : float
        Highest rate.
    total_steps : int
        Steps of the cycle; one more `step()` is an error.
    pct_start : float
        Share of the steps in which the rate rises.
    anneal_strategy : "cos" or "linear"
        Shape of both flanks.
    cycle_momentum : bool
        Whether momentum (Adam: beta1) falls while the rate rises. Left alone where the optimiser has none.
    base_momentum, max_momentum : float
        Its lowest and highest value.
    div_factor, final_div_factor : float
        Initial rate is max_lr / div_factor, the last one initial / final_div_factor.

    Raises
    ------
    ConfigError
        A value is out of its range, or a step beyond the last.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        *,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        check_range("max_lr", max_lr, 0.0)
        self.total_steps = _count("total_steps", total_steps)
        if isinstance(pct_start, bool) or not isinstance(pct_start, (int, float)) or not 0 <= pct_start <= 1:
            raise ConfigError(f"pct_start: expected a number from 0 to 1, got {pct_start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ConfigError(f'anneal_strategy: expected "cos" or "linear", got {anneal_strategy!r}')
        check_flag("cycle_momentum", cycle_momentum)
        check_range("base_momentum", base_momentum, 0.0, 1.0)
        check_range("max_momentum", max_momentum, 0.0, 1.0)
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"{name}: expected a number above 0, got {value!r}")
        self.max_lr, self.pct_start, self.anneal_strategy = max_lr, pct_start, anneal_strategy
        self.lowest = max_lr / div_factor / final_div_factor
        self.start = max_lr / div_factor
        self.cycle_momentum = cycle_momentum
        self.base_momentum, self.max_momentum = base_momentum, max_momentum
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        super().__init__(optimizer)

    def _anneal(self, start: float, end: float, share: float) -> float:
        if self.anneal_strategy == "linear":
            return (end - start) * share + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1.0)

    def step(self) -> None:
        """Count one step and set the rates of the next."""
        if self.last_step >= self.total_steps:
            raise ConfigError(f"total_steps: expected {self.total_steps} steps at most, got one more")
        super().step()

    def _write(self) -> None:
        # One call of step() follows every update, so the last one sets a rate that nothing uses.
        step = min(self.last_step, self.total_steps - 1)
        top = float(self.pct_start * self.total_steps) - 1.0
        last = self.total_steps - 1.0
        if step <= top:
            share = step / top if top else 1.0
            lr = self._anneal(self.start, self.max_lr, share)
            momentum = self._anneal(self.max_momentum, self.base_momentum, share)
        else:
            share = (step - top) / (last - top) if last > top else 1.0
            lr = self._anneal(self.max_lr, self.lowest, share)
            momentum = self._anneal(self.base_momentum, self.max_momentum, share)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if self.cycle_momentum:
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                elif group.get("momentum"):
                    group["momentum"] = momentum


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: expected an integer of 1 or more, got {value!r}")
    return value
