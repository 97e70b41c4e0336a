"""The optimisers' updates as CUDA kernels, one launch over a flat buffer; entered in the table of `cupy/fused.py`.

With an `ok` (1,) that is False on the device an update changes nothing (`Flat.guard`).
"""

from __future__ import annotations

from typing import Any

from xpcnn.backend.base import Array
from xpcnn.backend.cupy import convolution, steps  # noqa: F401 - enter their functions in the table
from xpcnn.backend.cupy.fused import FUSED, blocks, fits, fused

__all__ = ["FUSED"]  # the whole table, once this module is imported


def _update(backend: Any, name: str, arrays: tuple[Array | None, ...], ok: Array | None, *flags: bool) -> Any:
    given = [array for array in arrays if array is not None]
    if not fits(*given):
        return NotImplemented
    size = given[0].size
    backend.kernels.launch(name, given[0].dtype, blocks(size), *arrays, ok, *map(int, flags), size)
    return None


@fused
def sgd_update(
    backend: Any,
    data: Array,
    grad: Array,
    hyper: Array,
    *,
    decays: bool,
    nesterov: bool,
    shrinks: bool,
    ok: Array | None = None,
) -> Any:
    """Update `data` in place without momentum."""
    return _update(backend, "sgd_update", (data, grad, None, hyper), ok, decays, nesterov, shrinks)


@fused
def sgd_momentum_update(
    backend: Any,
    data: Array,
    grad: Array,
    velocity: Array,
    hyper: Array,
    *,
    decays: bool,
    nesterov: bool,
    shrinks: bool,
    ok: Array | None = None,
) -> Any:
    """Update `data` and `velocity` in place."""
    return _update(backend, "sgd_update", (data, grad, velocity, hyper), ok, decays, nesterov, shrinks)


@fused
def adam_update(
    backend: Any,
    data: Array,
    grad: Array,
    gradient_sum: Array,
    square_sum: Array,
    hyper: Array,
    *,
    decays: bool,
    shrinks: bool,
    ok: Array | None = None,
) -> Any:
    """Update `data` and both sums in place."""
    return _update(backend, "adam_update", (data, grad, gradient_sum, square_sum, None, hyper), ok, decays, shrinks)


@fused
def amsgrad_update(
    backend: Any,
    data: Array,
    grad: Array,
    gradient_sum: Array,
    square_sum: Array,
    largest_square_sum: Array,
    hyper: Array,
    *,
    decays: bool,
    shrinks: bool,
    ok: Array | None = None,
) -> Any:
    """Update `data` and the three sums in place."""
    arrays = data, grad, gradient_sum, square_sum, largest_square_sum, hyper
    return _update(backend, "adam_update", arrays, ok, decays, shrinks)


@fused
def rmsprop_update(
    backend: Any,
    data: Array,
    grad: Array,
    square_average: Array,
    *rest: Array,
    decays: bool,
    centered: bool,
    momentum: bool,
    ok: Array | None = None,
) -> Any:
    """Update `data` and the state in place."""
    average, velocity = rest[0] if centered else None, rest[-2] if momentum else None
    return _update(backend, "rmsprop_update", (data, grad, square_average, average, velocity, rest[-1]), ok, decays)


@fused
def adagrad_update(
    backend: Any,
    data: Array,
    grad: Array,
    square_sum: Array,
    hyper: Array,
    *,
    decays: bool,
    ok: Array | None = None,
) -> Any:
    """Update `data` and `square_sum` in place."""
    return _update(backend, "adagrad_update", (data, grad, square_sum, hyper), ok, decays)
