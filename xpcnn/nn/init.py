"""Initial values, drawn on the host by the library's generator and moved: the same on every backend.

Shapes are (out, in) or (F, C/groups, KH, KW); fan in is the number of inputs of one output, fan out the reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xpcnn import random
from xpcnn.backend import get_backend
from xpcnn.errors import ShapeError

Initializer = Callable[[tuple[int, ...]], Any]


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        raise ShapeError(f"shape: expected (out, in) or (F, C/groups, KH, KW), got {tuple(shape)}")
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def he_normal(shape: tuple[int, ...]) -> Any:
    """Draw from N(0, 2 / fan in) (He et al. 2015, arXiv:1502.01852).

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> weight = nn.init.he_normal((64, 32, 3, 3))
    >>> weight.shape, round(float(weight.std()), 3)
    ((64, 32, 3, 3), 0.083)
    """
    return normal(shape, std=math.sqrt(2.0 / _fans(shape)[0]))


def he_uniform(shape: tuple[int, ...]) -> Any:
    """Draw evenly from +-sqrt(6 / fan in).

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> weight = nn.init.he_uniform((64, 32, 3, 3))
    >>> weight.shape, round(float(weight.std()), 3)
    ((64, 32, 3, 3), 0.083)
    """
    return _uniform(shape, math.sqrt(6.0 / _fans(shape)[0]))


def xavier_normal(shape: tuple[int, ...]) -> Any:
    """Draw from N(0, 2 / (fan in + fan out)) (Glorot and Bengio 2010).

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> weight = nn.init.xavier_normal((64, 32, 3, 3))
    >>> weight.shape, round(float(weight.std()), 3)
    ((64, 32, 3, 3), 0.048)
    """
    return normal(shape, std=math.sqrt(2.0 / sum(_fans(shape))))


def xavier_uniform(shape: tuple[int, ...]) -> Any:
    """Draw evenly from +-sqrt(6 / (fan in + fan out)).

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> weight = nn.init.xavier_uniform((64, 32, 3, 3))
    >>> weight.shape, round(float(weight.std()), 3)
    ((64, 32, 3, 3), 0.048)
    """
    return _uniform(shape, math.sqrt(6.0 / sum(_fans(shape))))


def normal(shape: tuple[int, ...], std: float = 0.01, mean: float = 0.0) -> Any:
    """Draw from N(mean, std^2).

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> round(float(nn.init.normal((1000,), std=0.5).std()), 1)
    0.5
    """
    return random.generator().standard_normal(shape) * std + mean


def zeros(shape: tuple[int, ...]) -> Any:
    """Return zeros.

    Examples
    --------
    >>> nn.init.zeros((2, 3)).sum().item()
    0.0
    """
    return get_backend().zeros(shape, "float32")


def ones(shape: tuple[int, ...]) -> Any:
    """Return ones.

    Examples
    --------
    >>> nn.init.ones((2, 3)).sum().item()
    6.0
    """
    return get_backend().zeros(shape, "float32") + 1


def _uniform(shape: tuple[int, ...], bound: float) -> Any:
    return random.generator().uniform(-bound, bound, shape)
