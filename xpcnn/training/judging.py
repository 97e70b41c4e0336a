"""The ends of a training step that a device does in a launch each: what came of it, and buffers put back."""

from __future__ import annotations

from collections.abc import Sequence

from xpcnn.backend import Array, Backend
from xpcnn.functional.precision import in_float32
from xpcnn.functional.primitive import primitive
from xpcnn.training.metrics import write_hits


@primitive
def judge(
    backend: Backend,
    loss: Array,
    gradients: Sequence[Array],
    logits: Array,
    labels: Array,
    row: Array,
    ok: Array,
    sticky: bool,
) -> None:
    """Write loss, right answers and the sum of all gradients to `row`, and to `ok` whether loss and sum are finite.

    Parameters
    ----------
    loss : 0-d or (1,) array
    gradients : sequence of (n,) arrays
        Their sum is nan or inf where one is.
    logits, labels : arrays
        As of `write_hits`.
    row : (4,) array, float64
        Its first three numbers are written.
    ok : (1,) array, bool
    sticky : bool
        Whether an `ok` that is False stays so.
    """
    xp = backend.xp
    xp.copyto(row[0:1], loss)
    write_hits(logits, labels, row[1:2].reshape(()))
    slope = row[2:3]
    xp.copyto(slope, 0)
    for gradient in gradients:
        xp.add(slope, xp.sum(gradient, **in_float32(gradient.dtype)), out=slope)
    fine = xp.isfinite(xp.add(row[0:1], slope))
    if sticky:
        xp.logical_and(fine, ok, out=ok)
    else:
        xp.copyto(ok, fine)


@primitive
def copy_arrays(
    backend: Backend, targets: Sequence[Array], sources: Sequence[Array], unless: Array | None = None
) -> None:
    """Copy each of `sources` to its target; nothing where `unless` (1,) is true."""
    xp = backend.xp
    where = {} if unless is None else {"where": xp.logical_not(unless)}
    for target, source in zip(targets, sources, strict=True):
        xp.copyto(target, source, **where)
