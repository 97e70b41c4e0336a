"""`Resize`: images of another size, as two products with small matrices."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.data.stage import Stage, to_float
from xpcnn.functional.layout import batch_first
from xpcnn.windows import pair


@dataclass(frozen=True)
class Resize(Stage):
    """Bring images to a size, with a triangle filter as wide as a pixel of the coarser grid; gives float32.

    Parameters
    ----------
    size : int or (height, width)
        A number is a square, unlike torchvision's, which is the shorter side.

    Notes
    -----
    Output pixel i is the mean of input pixels j, weighted by max(0, 1 - |(j + 1/2) / s - (i + 1/2)| / w), where
    s = input / output and w = max(1, s) / s: bilinear interpolation, and where images become smaller the antialiased
    one of Pillow and of torchvision's `antialias=True`.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.Resize(16)(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 16, 16), 'float32')
    """

    size: Any
    is_random = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair("size", self.size, 1))

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        rows, columns = self.size
        count, channels, height, width = (int(n) for n in x.shape)
        memory = to_float(x).transpose(1, 2, 3, 0)  # (C, H, W, N)
        if rows != height:
            down = backend.asarray(_weights(height, rows), "float32")
            memory = backend.xp.matmul(down, memory.reshape(channels, height, width * count))
            memory = memory.reshape(channels, rows, width, count)
        if columns != width:
            across = backend.asarray(_weights(width, columns), "float32")
            memory = backend.xp.matmul(across, memory.reshape(channels * rows, width, count))
            memory = memory.reshape(channels, rows, columns, count)
        return batch_first(memory)


@functools.lru_cache(maxsize=64)
def _weights(size: int, wanted: int) -> list[list[float]]:
    """Return (wanted, size): what each pixel of the result takes of each pixel of the image."""
    scale = size / wanted
    support = max(1.0, scale)
    table = []
    for i in range(wanted):
        centre = (i + 0.5) * scale
        first, last = max(0, math.floor(centre - support)), min(size, math.ceil(centre + support))
        row = [0.0] * size
        for j in range(first, last):
            row[j] = max(0.0, 1 - abs(j + 0.5 - centre) / support)
        total = sum(row)
        table.append([share / total for share in row])
    return table
