"""What a schedule is: it counts steps, writes the optimiser's rates, and is restored by plain numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, ClassVar

from xpcnn.backend.graph import host
from xpcnn.errors import ConfigError, DataError
from xpcnn.optim.optimizer import Optimizer

_made = count()  # tells which of several schedules was made first, and so met the rates before any wrote them


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
    monitors : bool
        Whether `step` wants to know how the training goes; a `Trainer` then calls it after each epoch.
    total_steps : int or None
        After how many steps it ends; one more is an error.

    Examples
    --------
    >>> class Halving(optim.Schedule):
    ...     def factor(self, step):
    ...         return 0.5**step
    ...
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = Halving(optimizer)
    >>> schedule.step()
    >>> optimizer.param_groups[0]["lr"]
    0.5
    """

    asks_unit: ClassVar[bool] = False
    monitors: ClassVar[bool] = False
    total_steps: int | None = None

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.made = next(_made)
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
        """Count one step and set the rates of the next.

        Raises
        ------
        ConfigError
            It was the last one before.
        """
        host(self._advance)

    def _advance(self) -> None:
        if self.total_steps is not None and self.last_step >= self.total_steps:
            raise ConfigError(f"total_steps: expected {self.total_steps} steps at most, got one more")
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
