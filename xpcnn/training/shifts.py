"""What a model says of an image and of its shifts, averaged: less hangs on where the pooling windows happen to lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ShapeError
from xpcnn.functional.layout import batch_first, batch_last


def mean_over_shifts(probabilities: Callable[[Array], Array], x: Array, shift: int) -> Array:
    """Return the mean of `probabilities` over images and their shifts by `shift` pixels in the eight directions.

    Parameters
    ----------
    probabilities : callable
        From images (N, C, H, W) to (N, K).
    x : array
        (N, C, H, W), as the model takes them.
    shift : int
        0 leaves the images alone.

    Raises
    ------
    ShapeError
        There is something to shift, but `x` holds no images.
    """
    if not shift:
        return probabilities(x)
    if x.ndim != 4:
        raise ShapeError(f"average_shifts: expected images (N, C, H, W) to shift, got an array of shape {x.shape}")
    found = [probabilities(each) for each in shifted(x, shift)]
    return sum(found[1:], found[0]) / len(found)


def shifted(x: Array, shift: int) -> Iterator[Array]:
    """Yield (N, C, H, W) shifted in nine ways, in batch-last memory; what comes in repeats the edge."""
    backend = backend_of(x)
    xp, x = backend.xp, batch_last(backend, x)  # (C, H, W, N)
    rows, columns = xp.arange(x.shape[1]), xp.arange(x.shape[2])
    for down, right in itertools.product((-shift, 0, shift), repeat=2):
        taken = xp.take(x, xp.clip(rows - down, 0, len(rows) - 1), axis=1)
        yield batch_first(xp.take(taken, xp.clip(columns - right, 0, len(columns) - 1), axis=2))  # (N, C, H, W)
