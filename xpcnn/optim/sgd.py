"""Stochastic gradient descent with momentum, decay added to the gradient, and decay of the weights themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ConfigError
from xpcnn.functional.primitive import primitive
from xpcnn.nn import Parameter
from xpcnn.optim.groups import Group, Number, check_flag, check_range
from xpcnn.optim.optimizer import Optimizer


class SGD(Optimizer):
    """p -= lr * v, where v = momentum * v + g and g is the gradient plus weight_decay * p.

    Parameters
    ----------
    parameters : iterable of Parameter, or of dict
        Parameters, or groups with options of their own.
    lr : float
        Learning rate.
    momentum : float
        How much of the last velocity stays; 0 keeps none.
    weight_decay : float
        Added to the gradient, times the parameter (L2 decay).
    nesterov : bool
        Step along g + momentum * v instead of v (Sutskever et al., 2013, as torch has it).
    shrink : float
        The parameter is multiplied by 1 - shrink before each update.

    Raises
    ------
    ConfigError
        A value is out of its range, or nesterov without momentum.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> layer.weight.data[...], layer.weight.grad[...] = 1.0, 0.5
    >>> optimizer.step()
    >>> layer.weight.data.round(3)
    array([[0.95, 0.95]], dtype=float32)
    """

    optional_state = ("velocity",)
    identity = (0.0, 1.0, 0.0, 1.0)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        lr: float,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        shrink: float = 0.0,
    ) -> None:
        super().__init__(
            parameters,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov, "shrink": shrink},
        )

    def _check(self, group: Group) -> None:
        check_range("lr", group["lr"], 0.0)
        check_range("momentum", group["momentum"], 0.0)
        check_range("weight_decay", group["weight_decay"], 0.0)
        check_flag("nesterov", group["nesterov"])
        check_range("shrink", group["shrink"], 0.0, 1.0)
        if group["nesterov"] and not group["momentum"]:
            raise ConfigError("nesterov: expected momentum above 0 with it, got momentum=0.0")

    def _state(self, group: Group) -> dict[str, float]:
        return {"velocity": 0.0} if group["momentum"] else {}

    def _hyper(self, group: Group, counters: dict[str, Number]) -> tuple[float, ...]:
        return group["lr"], group["momentum"], group["weight_decay"], 1.0 - group["shrink"]

    def _update(self, group: Group) -> tuple[Callable[..., None], dict[str, bool]]:
        flags = {
            "decays": group["weight_decay"] != 0.0,
            "nesterov": group["nesterov"],
            "shrinks": group["shrink"] != 0.0,
        }
        return (sgd_momentum_update if group["momentum"] else sgd_update), flags


@primitive
def sgd_update(
    backend: Backend, data: Array, grad: Array, hyper: Array, *, decays: bool, nesterov: bool, shrinks: bool
) -> None:
    """Update `data` in place without momentum.

    Parameters
    ----------
    data, grad : (n,) arrays
        Parameters, changed in place, and gradients, left as they are.
    hyper : (4,) array of the same dtype
        lr, momentum, weight_decay, 1 - shrink; read when the update runs, so that a captured step can change them.
    decays, nesterov, shrinks : bool
        Whether weight_decay, nesterov and shrink take part (nesterov does nothing without momentum).
    """
    xp = backend.xp
    work = backend.scratch("update", data.shape, data.dtype)
    with backend.errstate():
        if shrinks:
            xp.multiply(data, hyper[3:4], data)
        if decays:
            xp.multiply(data, hyper[2:3], work)
            xp.add(work, grad, work)
            xp.multiply(work, hyper[0:1], work)
        else:
            xp.multiply(grad, hyper[0:1], work)
        xp.subtract(data, work, data)


@primitive
def sgd_momentum_update(
    backend: Backend,
    data: Array,
    grad: Array,
    velocity: Array,
    hyper: Array,
    *,
    decays: bool,
    nesterov: bool,
    shrinks: bool,
) -> None:
    """Update `data` and `velocity` in place; as `sgd_update`."""
    xp = backend.xp
    work = backend.scratch("update", data.shape, data.dtype)
    with backend.errstate():
        if shrinks:
            xp.multiply(data, hyper[3:4], data)
        slope: Any = grad
        if decays:
            slope = backend.scratch("slope", data.shape, data.dtype)
            xp.multiply(data, hyper[2:3], slope)
            xp.add(slope, grad, slope)
        xp.multiply(velocity, hyper[1:2], velocity)
        xp.add(velocity, slope, velocity)
        if nesterov:
            xp.multiply(velocity, hyper[1:2], work)
            xp.add(work, slope, work)
            xp.multiply(work, hyper[0:1], work)
        else:
            xp.multiply(velocity, hyper[0:1], work)
        xp.subtract(data, work, data)
