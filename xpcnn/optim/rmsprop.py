"""RMSprop (Tieleman and Hinton, 2012; the centred form: Graves, 2013, arXiv:1308.0850)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.functional.primitive import primitive
from xpcnn.nn import Parameter
from xpcnn.optim.groups import Group, Number, check_flag, check_range
from xpcnn.optim.optimizer import Optimizer


class RMSprop(Optimizer):
    """p -= lr * g / (sqrt(average square of g) + eps), along a momentum of such steps where asked.

    Parameters
    ----------
    parameters : iterable of Parameter, or of dict
        Parameters, or groups with options of their own.
    lr : float
        Learning rate.
    alpha : float
        How much of the average square stays in each step.
    eps : float
        Added to the root.
    weight_decay : float
        Added to the gradient, times the parameter (L2 decay).
    momentum : float
        How much of the last step stays; 0 keeps none.
    centered : bool
        Divide by the root of the variance (average square less the square of the average).

    Raises
    ------
    ConfigError
        A value is out of its range.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = optim.RMSprop(layer.parameters(), lr=0.1)
    >>> layer.weight.data[...], layer.weight.grad[...] = 1.0, 0.5
    >>> optimizer.step()
    >>> layer.weight.data.round(3)
    array([[0., 0.]], dtype=float32)
    """

    optional_state = ("gradient_average", "velocity")
    identity = (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, {**options, "momentum": momentum, "centered": centered})

    def _check(self, group: Group) -> None:
        check_range("lr", group["lr"], 0.0)
        check_range("alpha", group["alpha"], 0.0, 1.0)
        check_range("eps", group["eps"], 0.0)
        check_range("weight_decay", group["weight_decay"], 0.0)
        check_range("momentum", group["momentum"], 0.0)
        check_flag("centered", group["centered"])

    def _state(self, group: Group) -> dict[str, float]:
        names = ["square_average"]
        if group["centered"]:
            names.append("gradient_average")
        if group["momentum"]:
            names.append("velocity")
        return dict.fromkeys(names, 0.0)

    def _hyper(self, group: Group, counters: dict[str, Number]) -> tuple[float, ...]:
        alpha = group["alpha"]
        return group["lr"], alpha, 1.0 - alpha, group["eps"], group["weight_decay"], group["momentum"]

    def _update(self, group: Group) -> tuple[Callable[..., None], dict[str, bool]]:
        return rmsprop_update, {
            "decays": group["weight_decay"] != 0.0,
            "centered": group["centered"],
            "momentum": group["momentum"] != 0.0,
        }


@primitive
def rmsprop_update(
    backend: Backend,
    data: Array,
    grad: Array,
    square_average: Array,
    *rest: Array,
    decays: bool,
    centered: bool,
    momentum: bool,
) -> None:
    """Update `data` and the state in place.

    Parameters
    ----------
    data, grad, square_average : (n,) arrays
        Parameters, gradients (left as they are), and the average of their squares.
    *rest : arrays
        gradient_average (n,) where centred, velocity (n,) with momentum, and last hyper (6,) of the same dtype:
        lr, alpha, 1 - alpha, eps, weight_decay, momentum; read when the update runs.
    decays, centered, momentum : bool
        Which parts take part.
    """
    xp = backend.xp
    hyper = rest[-1]
    lr, alpha, share, eps = (hyper[i : i + 1] for i in range(4))
    work = backend.scratch("update", data.shape, data.dtype)
    slope: Any = grad
    with backend.errstate():
        if decays:
            slope = backend.scratch("slope", data.shape, data.dtype)
            xp.multiply(data, hyper[4:5], slope)
            xp.add(slope, grad, slope)
        xp.square(slope, work)
        xp.multiply(work, share, work)
        xp.multiply(square_average, alpha, square_average)
        xp.add(square_average, work, square_average)
        if centered:
            average = rest[0]
            xp.subtract(slope, average, work)
            xp.multiply(work, share, work)
            xp.add(average, work, average)
            xp.square(average, work)
            xp.subtract(square_average, work, work)
            xp.sqrt(work, work)
        else:
            xp.sqrt(square_average, work)
        xp.add(work, eps, work)
        xp.divide(slope, work, work)
        if momentum:
            velocity = rest[-2]
            xp.multiply(velocity, hyper[5:6], velocity)
            xp.add(velocity, work, velocity)
            xp.multiply(velocity, lr, work)
        else:
            xp.multiply(work, lr, work)
        xp.subtract(data, work, data)
