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
    """Draw from N(0, 2 / fan in) (He et al. 2015, arXiv:1502.01852)."""
    return normal(shape, std=math.sqrt(2.0 / _fans(shape)[0]))


def he_uniform(shape: tuple[int, ...]) -> Any:
    """Draw evenly from +-sqrt(6 / fan in)."""
    return _uniform(shape, math.sqrt(6.0 / _fans(shape)[0]))


def xavier_normal(shape: tuple[int, ...]) -> Any:
    """Draw from N(0, 2 / (fan in + fan out)) (Glorot and Bengio 2010)."""
    return normal(shape, std=math.sqrt(2.0 / sum(_fans(shape))))


def xavier_uniform(shape: tuple[int, ...]) -> Any:
    """Draw evenly from +-sqrt(6 / (fan in + fan out))."""
    return _uniform(shape, math.sqrt(6.0 / sum(_fans(shape))))


def normal(shape: tuple[int, ...], std: float = 0.01, mean: float = 0.0) -> Any:
    """Draw from N(mean, std^2)."""
    return random.generator().standard_normal(shape) * std + mean


def zeros(shape: tuple[int, ...]) -> Any:
    """Return zeros."""
    return get_backend().zeros(shape, "float32")


def ones(shape: tuple[int, ...]) -> Any:
    """Return ones."""
    return get_backend().zeros(shape, "float32") + 1


def _uniform(shape: tuple[int, ...], bound: float) -> Any:
    return random.generator().uniform(-bound, bound, shape)
