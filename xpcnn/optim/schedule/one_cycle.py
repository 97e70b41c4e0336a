"""One cycle of the rate, up and down, for a whole training."""

from __future__ import annotations

import math

from xpcnn.errors import ConfigError
from xpcnn.optim.groups import check_count, check_flag, check_range
from xpcnn.optim.optimizer import Optimizer
from xpcnn.optim.schedule.base import Schedule


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

    Examples
    --------
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = optim.OneCycleLR(optimizer, max_lr=1.0, total_steps=4)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    ...     schedule.step()
    ...
    >>> rates
    [0.04, 0.8117, 0.2831, 0.0]
    """

    total_steps: int

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
        self.total_steps = check_count("total_steps", total_steps)
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
