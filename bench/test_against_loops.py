"""Fast against naive, side by side, on the exercise notebook's shapes: `functional.reference` and the library.

Every group times the loops and the library for one direction of one operation; both must give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from peers import normal
from peers.xpcnn_peer import batch_last

import xpcnn
import xpcnn.functional as F
from xpcnn.functional import reference

IMAGES, FILTERS, BIAS = (100, 3, 31, 31), (25, 3, 3, 3), 25
POOLED = (100, 3, 32, 32)
TOLERANCE = 1e-4  # of float32 sums of up to 25,600 products against float64, relative to the largest element


@cache
def inputs() -> dict[str, Any]:
    return {
        "x": batch_last(normal(0, *IMAGES)),
        "weight": normal(1, *FILTERS),
        "bias": normal(2, BIAS),
        "dy": batch_last(normal(3, 100, 25, 16, 16)),
        "pooled": batch_last(normal(4, *POOLED)),
        "dpooled": batch_last(normal(5, 100, 3, 16, 16)),
    }


def forward(module: Any, operation: str) -> Any:
    given = inputs()
    if operation == "conv2d":
        return module.conv2d(given["x"], given["weight"], given["bias"], stride=2, padding=1)
    return module.max_pool2d(given["pooled"], 2)


def backward(module: Any, operation: str, cache: Any) -> Any:
    given = inputs()
    if operation == "conv2d":
        return module.conv2d_backward(given["dy"], cache)
    return module.max_pool2d_backward(given["dpooled"], cache)


@cache
def by_loops(operation: str) -> tuple[Any, Any]:
    """What the loops give, forward and backward, once for all tests."""
    y, kept = forward(reference, operation)
    return y, backward(reference, operation, kept)


def relative_difference(got: Any, expected: Any) -> float:
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("implementation", ["loops", "xpcnn"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("operation", ["conv2d", "max_pool2d"])
def test_fast_against_naive(operation: str, direction: str, implementation: str, timed: Callable[..., Any]) -> None:
    module = reference if implementation == "loops" else F
    rounds = 1 if implementation == "loops" else 50
    group = f"{operation} {direction}"
    with xpcnn.use_backend("numpy"):
        if direction == "forward":
            result = timed(group, implementation, lambda: forward(module, operation)[0], tuple, rounds)
        else:
            result = timed(
                group,
                implementation,
                lambda kept: backward(module, operation, kept),
                lambda: (forward(module, operation)[1],),
                rounds,
            )
    expected = by_loops(operation)[direction == "backward"]
    pairs = zip(result, expected, strict=True) if isinstance(expected, tuple) else [(result, expected)]
    for got, wanted in pairs:
        assert got.shape == wanted.shape
        assert relative_difference(got, wanted) < TOLERANCE
