"""Elementwise primitives by those of NumPy's loops that use whole registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def relu_forward(backend: Any, x: Any, out: Any) -> None:
    """Fill `out` with max(x, 0): NumPy's `maximum` with a number takes three times as long as `clip`."""
    kind = x.dtype.type
    backend.xp.clip(x, kind(0), kind(math.inf), out=out)


FUSED: dict[str, Callable[..., Any]] = {"relu_forward": relu_forward}
