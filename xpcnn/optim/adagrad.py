"""Adagrad (Duchi, Hazan and Singer, 2011, JMLR 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from xpcnn.backend import Array, Backend
from xpcnn.functional.primitive import primitive
from xpcnn.nn import Parameter
from xpcnn.optim.groups import Group, Number, check_range
from xpcnn.optim.optimizer import Optimizer


class Adagrad(Optimizer):
    """p -= lr / (1 + lr_decay * t) * g / (sqrt(sum of g**2) + eps), where t counts the steps from 0.

    Parameters
    ----------
    parameters : iterable of Parameter, or of dict
        Parameters, or groups with options of their own.
    lr : float
        Learning rate.
    lr_decay : float
        How the rate falls with the steps.
    weight_decay : float
        Added to the gradient, times the parameter (L2 decay).
    initial_accumulator_value : float
        What the sums of squares start at.
    eps : float
        Added to the root.

    Raises
    ------
    ConfigError
        A value is out of its range.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = optim.Adagrad(layer.parameters(), lr=0.1)
    >>> layer.weight.data[...], layer.weight.grad[...] = 1.0, 0.5
    >>> optimizer.step()
    >>> layer.weight.data.round(3)
    array([[0.9, 0.9]], dtype=float32)
    """

    identity = (0.0, 1.0, 0.0)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        super().__init__(parameters, {**options, "initial_accumulator_value": initial_accumulator_value})

    def _check(self, group: Group) -> None:
        for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            check_range(name, group[name], 0.0)

    def _fresh(self, group: Group) -> dict[str, Number]:
        return {"step": 0}

    def _state(self, group: Group) -> dict[str, float]:
        return {"square_sum": group["initial_accumulator_value"]}

    def _hyper(self, group: Group, counters: dict[str, Number]) -> tuple[float, ...]:
        rate = group["lr"] / (1.0 + counters["step"] * group["lr_decay"])
        counters["step"] += 1
        return rate, group["eps"], group["weight_decay"]

    def _update(self, group: Group) -> tuple[Callable[..., None], dict[str, bool]]:
        return adagrad_update, {"decays": group["weight_decay"] != 0.0}


@primitive
def adagrad_update(
    backend: Backend, data: Array, grad: Array, square_sum: Array, hyper: Array, *, decays: bool
) -> None:
    """Update `data` and `square_sum` in place.

    Parameters
    ----------
    data, grad, square_sum : (n,) arrays
        Parameters, gradients (left as they are), and the sum of their squares.
    hyper : (3,) array of the same dtype
        rate, eps, weight_decay; read when the update runs, so that a captured step can change them.
    decays : bool
        Whether weight_decay * data is added to the gradient.
    """
    xp = backend.xp
    work = backend.scratch("update", data.shape, data.dtype)
    slope = grad
    with backend.errstate():
        if decays:
            slope = backend.scratch("slope", data.shape, data.dtype)
            xp.multiply(data, hyper[2:3], slope)
            xp.add(slope, grad, slope)
        xp.square(slope, work)
        xp.add(square_sum, work, square_sum)
        xp.sqrt(square_sum, work)
        xp.add(work, hyper[1:2], work)
        xp.divide(slope, work, work)
        xp.multiply(work, hyper[0:1], work)
        xp.subtract(data, work, data)
