"""Adam (Kingma and Ba, 2015, arXiv:1412.6980) and AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101).

The moments are kept as plain decaying sums, M = b1 M + g and V = b2 V + g**2, which takes two passes over memory less
than averages. With averages m = (1 - b1) M and v = (1 - b2) V, the step is the one of the paper:

    lr / (1 - b1**t) * m / (sqrt(v / (1 - b2**t)) + eps)  =  rate * M / (sqrt(V) + eps / s)
    where s = sqrt((1 - b2) / (1 - b2**t)) and rate = lr * (1 - b1) / (1 - b1**t) / s

A beta that changes between steps rescales its sum, so that the average goes on as it would in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ConfigError
from xpcnn.functional.primitive import primitive
from xpcnn.nn import Parameter
from xpcnn.optim.groups import Group, Number, check_flag, check_range
from xpcnn.optim.optimizer import Optimizer


class Adam(Optimizer):
    """Steps along the average gradient, divided by the root of the average square of the gradient.

    Parameters
    ----------
    parameters : iterable of Parameter, or of dict
        Parameters, or groups with options of their own.
    lr : float
        Learning rate.
    betas : (float, float)
        How much of the average gradient and of the average square stays in each step.
    eps : float
        Added to the root.
    weight_decay : float
        Added to the gradient, times the parameter (L2 decay).
    amsgrad : bool
        Divide by the root of the largest average square so far (Reddi et al., 2018).

    Raises
    ------
    ConfigError
        A value is out of its range.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = optim.Adam(layer.parameters(), lr=0.1)
    >>> layer.weight.data[...], layer.weight.grad[...] = 1.0, 0.5
    >>> optimizer.step()
    >>> layer.weight.data.round(3)
    array([[0.9, 0.9]], dtype=float32)
    """

    optional_state = ("largest_square_sum",)
    identity = (0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0)
    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        )

    def _check(self, group: Group) -> None:
        check_range("lr", group["lr"], 0.0)
        try:
            group["betas"] = first, second = tuple(group["betas"])
        except (TypeError, ValueError):
            raise ConfigError(f"betas: expected two numbers, got {group['betas']!r}") from None
        check_range("betas[0]", first, 0.0, 1.0)
        check_range("betas[1]", second, 0.0, 1.0)
        check_range("eps", group["eps"], 0.0)
        check_range("weight_decay", group["weight_decay"], 0.0)
        check_flag("amsgrad", group["amsgrad"])

    def _fresh(self, group: Group) -> dict[str, Number]:
        first, second = group["betas"]
        return {"step": 0, "beta1": first, "beta2": second}

    def _state(self, group: Group) -> dict[str, float]:
        names = {"gradient_sum": 0.0, "square_sum": 0.0}
        return {**names, "largest_square_sum": 0.0} if group["amsgrad"] else names

    def _hyper(self, group: Group, counters: dict[str, Number]) -> tuple[float, ...]:
        first, second = group["betas"]
        counters["step"] = step = counters["step"] + 1
        rescale = (1.0 - counters["beta2"]) / (1.0 - second)
        decay1 = first * (1.0 - counters["beta1"]) / (1.0 - first) if first != counters["beta1"] else first
        decay2 = second * rescale if second != counters["beta2"] else second
        counters["beta1"], counters["beta2"] = first, second
        scale = math.sqrt((1.0 - second) / (1.0 - second**step))
        rate = group["lr"] * (1.0 - first) / (1.0 - first**step) / scale
        keep = 1.0 - group["lr"] * group["weight_decay"] if self.decoupled else 1.0
        return rate, decay1, decay2, group["eps"] / scale, group["weight_decay"], keep, rescale

    def _update(self, group: Group) -> tuple[Callable[..., None], dict[str, bool]]:
        decays = group["weight_decay"] != 0.0
        flags = {"decays": decays and not self.decoupled, "shrinks": decays and self.decoupled}
        return (amsgrad_update if group["amsgrad"] else adam_update), flags


class AdamW(Adam):
    """Adam whose decay shrinks the parameter by lr * weight_decay instead of going through the averages.

    Parameters
    ----------
    parameters, lr, betas, eps, amsgrad
        As in `Adam`.
    weight_decay : float
        Share of the parameter, times lr, that goes in each step.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    >>> layer.weight.data[...], layer.weight.grad[...] = 1.0, 0.5
    >>> optimizer.step()
    >>> layer.weight.data.round(3)
    array([[0.899, 0.899]], dtype=float32)
    """

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad)


@primitive
def adam_update(
    backend: Backend,
    data: Array,
    grad: Array,
    gradient_sum: Array,
    square_sum: Array,
    hyper: Array,
    *,
    decays: bool,
    shrinks: bool,
) -> None:
    """Update `data` and both sums in place.

    Parameters
    ----------
    data, grad, gradient_sum, square_sum : (n,) arrays
        Parameters, gradients (left as they are), and the decaying sums of gradients and of their squares.
    hyper : (7,) array of the same dtype
        rate, decay1, decay2, eps, weight_decay, keep, rescale, as the module's docstring has them; read when the
        update runs, so that a captured step can change them. (`rescale` is for `amsgrad_update`.)
    decays, shrinks : bool
        Whether weight_decay * data is added to the gradient; whether data is multiplied by keep first.
    """
    with backend.errstate():
        work = _moments(backend, data, grad, gradient_sum, square_sum, hyper, decays, shrinks)
        _move(backend.xp, data, gradient_sum, square_sum, hyper, work)


@primitive
def amsgrad_update(
    backend: Backend,
    data: Array,
    grad: Array,
    gradient_sum: Array,
    square_sum: Array,
    largest_square_sum: Array,
    hyper: Array,
    *,
    decays: bool,
    shrinks: bool,
) -> None:
    """Update `data` and the three sums in place; as `adam_update`."""
    xp = backend.xp
    with backend.errstate():
        work = _moments(backend, data, grad, gradient_sum, square_sum, hyper, decays, shrinks)
        xp.multiply(largest_square_sum, hyper[6:7], largest_square_sum)
        xp.maximum(largest_square_sum, square_sum, out=largest_square_sum)
        _move(xp, data, gradient_sum, largest_square_sum, hyper, work)


def _moments(
    backend: Any,
    data: Array,
    grad: Array,
    gradient_sum: Array,
    square_sum: Array,
    hyper: Array,
    decays: bool,
    shrinks: bool,
) -> Array:
    xp = backend.xp
    work = backend.scratch("update", data.shape, data.dtype)
    if shrinks:
        xp.multiply(data, hyper[5:6], data)
    if decays:
        xp.multiply(data, hyper[4:5], work)
        xp.add(work, grad, work)
        grad = work
    xp.multiply(gradient_sum, hyper[1:2], gradient_sum)
    xp.add(gradient_sum, grad, gradient_sum)
    xp.square(grad, work)
    xp.multiply(square_sum, hyper[2:3], square_sum)
    xp.add(square_sum, work, square_sum)
    return work


def _move(xp: Any, data: Array, gradient_sum: Array, square_sum: Array, hyper: Array, work: Array) -> None:
    xp.sqrt(square_sum, work)
    xp.add(work, hyper[3:4], work)
    xp.divide(gradient_sum, work, work)
    xp.multiply(work, hyper[0:1], work)
    xp.subtract(data, work, data)
