"""The optimisers' updates as CUDA kernels, one launch over a flat buffer; entered in the table of `cupy/fused.py`.

With an `ok` (1,) that is False on the device an update changes nothing (`Flat.guard`). Of float16 parameters, which are
the `rounded` of what is updated, gradients come in float16 too, and are divided by `scale` (1,) where that is given
(`Flat.apply`).
"""

from __future__ import annotations

from typing import Any

from xpcnn.backend.base import Array
from xpcnn.backend.cupy import convolution, steps  # noqa: F401 - enter their functions in the table
from xpcnn.backend.cupy.fused import FUSED, blocks, fits, fused

__all__ = ["FUSED"]  # the whole table, once this module is imported


def _update(
    backend: Any,
    name: str,
    data: Array,
    grad: Array,
    rest: tuple[Array | None, ...],
    flags: tuple[bool, ...],
    *,
    ok: Array | None = None,
    rounded: Array | None = None,
    scale: Array | None = None,
) -> Any:
    stored = (grad,) if rounded is None else (grad, rounded)
    computed = [array for array in (data, *rest, scale) if array is not None]
    if not fits(*stored, computed=computed):
        return NotImplemented
    arguments = data, grad, rounded, scale, *rest, ok, *map(int, flags), data.size
    backend.kernels.launch(name, grad.dtype, blocks(data.size), *arguments)
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
    **options: Array | None,
) -> Any:
    """Update `data` in place without momentum."""
    return _update(backend, "sgd_update", data, grad, (None, hyper), (decays, nesterov, shrinks), **options)


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
    **options: Array | None,
) -> Any:
    """Update `data` and `velocity` in place."""
    return _update(backend, "sgd_update", data, grad, (velocity, hyper), (decays, nesterov, shrinks), **options)


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
    **options: Array | None,
) -> Any:
    """Update `data` and both sums in place."""
    rest = gradient_sum, square_sum, None, hyper
    return _update(backend, "adam_update", data, grad, rest, (decays, shrinks), **options)


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
    **options: Array | None,
) -> Any:
    """Update `data` and the three sums in place."""
    rest = gradient_sum, square_sum, largest_square_sum, hyper
    return _update(backend, "adam_update", data, grad, rest, (decays, shrinks), **options)


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
    **options: Array | None,
) -> Any:
    """Update `data` and the state in place."""
    average, velocity = rest[0] if centered else None, rest[-2] if momentum else None
    arrays = square_average, average, velocity, rest[-1]
    return _update(backend, "rmsprop_update", data, grad, arrays, (decays,), **options)


@fused
def adagrad_update(
    backend: Any,
    data: Array,
    grad: Array,
    square_sum: Array,
    hyper: Array,
    *,
    decays: bool,
    **options: Array | None,
) -> Any:
    """Update `data` and `square_sum` in place."""
    return _update(backend, "adagrad_update", data, grad, (square_sum, hyper), (decays,), **options)
