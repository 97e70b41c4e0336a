"""Schedules one after the other, such as a warm-up before a decay."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.optim.groups import check_count
from xpcnn.optim.optimizer import Optimizer
from xpcnn.optim.schedule.base import Schedule


class SequentialLR(Schedule):
    """Schedules one after the other; each begins to count at its milestone.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of Schedule
        Over this optimiser. All start from the rates that it had before the first of them was made.
    milestones : list of int
        After how many steps the second, the third, ... takes over: one less than there are schedules, each more than
        the one before.

    Raises
    ------
    ConfigError
        A schedule belongs to another optimiser or watches how the training goes (`ReduceLROnPlateau`); milestones that
        are too many, too few, or do not grow.

    Examples
    --------
    >>> from xpcnn import nn, optim
    >>> optimizer = optim.SGD(nn.Linear(4, 3).parameters(), 0.1)
    >>> warm_up = optim.LinearLR(optimizer, 0.1, total_iters=5)
    >>> schedule = optim.SequentialLR(optimizer, [warm_up, optim.CosineAnnealingLR(optimizer, 95)], milestones=[5])
    """

    def __init__(self, optimizer: Optimizer, schedulers: Iterable[Schedule], milestones: Iterable[int]) -> None:
        parts = list(schedulers) if isinstance(schedulers, Iterable) else []
        if not parts or not all(isinstance(each, Schedule) for each in parts):
            raise ConfigError(f"schedulers: expected a list of schedules, got {schedulers!r:.80}")
        for each in parts:
            if each.optimizer is not optimizer:
                raise ConfigError(f"schedulers: expected ones made with this optimizer, got {each!r:.80} of another")
            if each.monitors:
                raise ConfigError(
                    f"schedulers: expected schedules that follow from the step alone, got {type(each).__name__}"
                )
        starts = [check_count("milestones", each) for each in milestones] if isinstance(milestones, Iterable) else None
        if starts is None or len(starts) != len(parts) - 1 or sorted(set(starts)) != starts:
            raise ConfigError(
                f"milestones: expected {len(parts) - 1} growing integers for {len(parts)} schedules, "
                f"got {milestones!r:.80}"
            )
        self.schedulers, self.milestones = parts, starts
        first = min(parts, key=lambda each: each.made)
        for group, initial in zip(optimizer.param_groups, first.initial, strict=False):
            group["lr"] = initial
        super().__init__(optimizer)
        self.made = first.made

    @property
    def asks_unit(self) -> bool:  # type: ignore[override]
        """Whether any of the schedules must be told what it counts."""
        return any(each.asks_unit for each in self.schedulers)

    @property
    def total_steps(self) -> int | None:  # type: ignore[override]
        """After how many steps the last schedule ends, if it does."""
        last = self.schedulers[-1].total_steps
        return None if last is None else last + (self.milestones[-1] if self.milestones else 0)

    def _write(self) -> None:
        place = bisect_right(self.milestones, self.last_step)
        part: Any = self.schedulers[place]
        part.initial = self.initial
        part.last_step = self.last_step - (self.milestones[place - 1] if place else 0)
        part._write()
