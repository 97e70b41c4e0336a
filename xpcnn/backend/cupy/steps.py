"""What a training step does beside its layers, as CUDA kernels; entered in the table of `cupy/fused.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpcnn.backend.base import Array
from xpcnn.backend.cupy.fused import class_bytes, fits, fused, segments
from xpcnn.backend.cupy.kernels import BLOCK

COPIES = 48  # arrays of one launch, as in kernels.cu
_COPIES = np.dtype([("source", np.uint64, COPIES), ("target", np.uint64, COPIES), ("words", np.int32, COPIES)])


@fused
def copy_arrays(backend: Any, targets: Sequence[Array], sources: Sequence[Array], unless: Array | None = None) -> Any:
    """Copy each of `sources` to its target, all in one launch; nothing where `unless` (1,) is true."""
    pairs = list(zip(targets, sources, strict=True))
    for target, source in pairs:
        alike = target.dtype == source.dtype and target.shape == source.shape and source.nbytes < 1 << 31
        if not alike or not (target.flags.c_contiguous and source.flags.c_contiguous) or source.nbytes % 4:
            return NotImplemented
    address = backend.kernels.address
    for first in range(0, len(pairs), COPIES):
        part = pairs[first : first + COPIES]
        copies = np.zeros(1, _COPIES)
        for i, (target, source) in enumerate(part):
            copies[0]["source"][i], copies[0]["target"][i] = address(source), address(target)
            copies[0]["words"][i] = source.nbytes // 4
        grid = max(1, -(-int(copies["words"].max()) // (4 * BLOCK))), len(part)
        backend.kernels.launch("copy_arrays", np.dtype("float32"), grid, copies, unless)
    return None


@fused
def judge(
    backend: Any,
    loss: Array,
    gradients: Sequence[Array],
    logits: Array,
    labels: Array,
    row: Array,
    ok: Array,
    sticky: bool,
) -> Any:
    """Write loss, right answers and the sum of all gradients to `row`, and to `ok` whether loss and sum are finite."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.flags.c_contiguous or logits.ndim != 2:
        return NotImplemented
    columns = logits.T  # (K, N)
    if not all(map(fits, gradients)) or not fits(computed=(loss, columns)):
        return NotImplemented
    if loss.size != 1 or labels.size != columns.shape[1]:
        return NotImplemented
    cuts = [segments(backend, 1, gradient.size) for gradient in gradients]
    partial = backend.empty((sum(cuts),), np.float64)
    launch, at = backend.kernels.launch, 0
    for gradient, cut in zip(gradients, cuts, strict=True):
        launch("row_sums", gradient.dtype, (cut, 1), gradient, None, partial[at : at + cut], None, gradient.size)
        at += cut
    arguments = loss, partial, at, columns, *class_bytes(labels), *columns.shape, row, ok, int(sticky)
    launch("judge", loss.dtype, (1,), *arguments)
    return None


@fused
def update_scale(
    backend: Any,
    scale: Array,
    good: Array,
    ok: Array,
    live: Array | None,
    factors: tuple[Array, Array],
    constants: tuple[Array, Array],
    growth_interval: int,
    bounds: tuple[float, float],
) -> Any:
    """Change `scale` and `good` (1,) after a step, in one launch."""
    if not fits(computed=(scale, good, *factors)):
        return NotImplemented
    arguments = scale, good, ok, live, *factors, float(growth_interval), *bounds
    backend.kernels.launch("update_scale", scale.dtype, (1,), *arguments)
    return None
