"""What Winograd's transforms spread beyond a pixel's windows, found by a probe of each tile and made anew without them.

An output of a tile is a sum and difference of all pixels of the tile: what it does not see cancels, but for rounding.
A pixel far larger than its image's others so leaves an error in outputs that do not see it, and a nan or inf leaves
nan. Each tile is probed while it is transformed: at its four corner positions, each of which sees a quarter of its
pixels, the channels are added up with random factors. After all tiles are done, images of which a probe is not finite,
or out of proportion to the image's own and to the batch's, are convolved directly. That look is a call of the calling
thread's, in a record too (`NumpyBackend.call`); it takes some microseconds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from xpcnn.windows import Windows

Array = np.ndarray[Any, Any]

# How many times as large as usual a probe may be. Up to LARGE an error in what does not see the pixel stays below 5e-4
# of a usual output, and of MNIST's gradients in `deep3` one image in a thousand is above it; a sum over the whole
# batch, as dW is, drowns what is not HUGE.
LARGE, HUGE = 16.0, 1000.0


class Probe:
    """Probes of all tiles of a convolution, (positions, tiles*N), filled block by block.

    `positions` are the rows and the step between the columns at which a tile is probed, of 6 by 6.
    """

    def __init__(
        self, backend: Any, rows: tuple[int, ...], columns: slice, channels: int, total: int, dtype: Any
    ) -> None:
        self.backend, self.rows, self.columns = backend, rows, columns
        self.width = len(range(6)[columns])
        self.values = backend.empty((len(rows) * self.width, total), dtype)
        self.factors = _factors(backend.home, channels, dtype)

    def look(self, transformed: Array, part: slice, first: int) -> None:
        """Probe the tiles from `first` on, transformed (6*P, C, tiles*N), of the rows of positions in `part`."""
        count = transformed.shape[2]
        for index, row in enumerate(self.rows):
            if part.start <= row < part.stop:
                seen = transformed[6 * (row - part.start) :][:6][self.columns]  # (width, C, tiles*N)
                place = self.values[index * self.width : (index + 1) * self.width, None, first : first + count]
                self.backend.xp.matmul(self.factors, seen, out=place)


@lru_cache(maxsize=64)
def _factors(backend: Any, channels: int, dtype: Any) -> Array:
    """Return (1, channels) factors of about 1 and random sign: no channel is overlooked, no two cancel."""
    rng = np.random.default_rng(0)
    factors = rng.uniform(0.8, 1.25, channels) * rng.choice([-1, 1], channels)
    constant: Array = backend.constant(factors.astype(dtype)[None])
    return constant


def suspects(probes: Array, n: int) -> Array:
    """Return which of `n` images have a probe (positions, tiles*N) that is not finite or far out of proportion."""
    sizes = np.abs(probes)
    with np.errstate(all="ignore"):
        usual = _mean(sizes)
        if sizes.max() <= LARGE * usual:  # false for nan
            return np.empty(0, np.intp)
        if not np.isfinite(usual):
            sizes = np.where(np.isfinite(sizes), sizes, np.inf)
            usual = _mean(np.where(np.isfinite(sizes), sizes, 0))
        by_image = sizes.reshape(len(sizes), -1, n)  # (positions, tiles, N)
        found = np.flatnonzero((by_image > LARGE * usual).any(axis=(0, 1)))
        # What is usual in the image itself, which a few large ones hardly move: of an image that is large everywhere
        # nothing is spread. A pixel is in one corner of a tile; the largest of the four says nothing of the tile.
        by_image = by_image[..., found]
        others = np.sort(np.where(np.isfinite(by_image), by_image, 0), axis=0)[:-1].reshape(-1, found.size)
        roots = np.sqrt(others, dtype=np.float64)  # (3*tiles, N')
        own = (roots.sum(axis=0) / np.maximum(1, np.count_nonzero(roots, axis=0))) ** 2  # (N',)
        suspect: Array = found[(by_image > LARGE * np.maximum(usual, own)).any(axis=(0, 1))]
        return suspect


def _mean(sizes: Array) -> float:
    """Return the mean of what is not zero: an empty background is not what is usual."""
    return float(sizes.sum(dtype=np.float64)) / max(1, int(np.count_nonzero(sizes)))


def is_huge(probes: Array) -> bool:
    """Say whether a probe is not finite or larger than what a sum over all of them drowns."""
    sizes = np.abs(probes)
    with np.errstate(all="ignore"):
        return not sizes.max() <= HUGE * _mean(sizes)


def mend_outputs(
    probes: Array, x: Array, weight: Array, bias: Array | None, y: Array, windows: Windows, turned: bool
) -> None:
    """Convolve directly what images of x (C, H, W, N) are suspect, all where the weights are not finite.

    `weight` is (F, C, 3, 3); where it is `turned`, (C, F, 3, 3) of a convolution whose dX is y.
    """
    n = x.shape[3]
    images = suspects(probes, n)
    if not _is_finite(weight):
        images = np.arange(n)
    if not images.size:
        return
    filters = (weight.swapaxes(0, 1)[..., ::-1, ::-1] if turned else weight).reshape(y.shape[0], -1)
    with np.errstate(all="ignore"):
        for image in images:
            result = (filters @ _columns(x, image, windows)).reshape(y.shape[:3])
            y[..., image] = result if bias is None else result + bias[:, None, None]


def mend_weight_gradient(
    dy_probes: Array, x_probes: Array, dy: Array, x: Array, dweight: Array, windows: Windows
) -> None:
    """Sum dY X^T directly where x or dy holds what the transforms would spread to taps that do not see it."""
    if _is_finite(dweight) and not is_huge(dy_probes) and not is_huge(x_probes):
        return
    with np.errstate(all="ignore"):
        total = np.zeros((dy.shape[0], dweight[0].size), np.result_type(dweight.dtype, np.float32))
        for image in range(x.shape[3]):
            total += dy[..., image].reshape(dy.shape[0], -1) @ _columns(x, image, windows).T
        dweight[...] = total.reshape(dweight.shape)


def _columns(x: Array, image: Any, windows: Windows) -> Array:
    """Return im2col of one image of x (C, H, W, N) under 3x3 windows of stride 1: (C*9, OH*OW)."""
    h, w = windows.h, windows.w
    padded = np.zeros((x.shape[0], h.out + 2, w.out + 2), x.dtype)
    padded[:, h.before : h.before + h.size, w.before : w.before + w.size] = x[..., image]
    taps = np.lib.stride_tricks.sliding_window_view(padded, windows.out, axis=(1, 2))  # (C, 3, 3, OH, OW)
    return taps.reshape(x.shape[0] * 9, -1)


def _is_finite(a: Array) -> bool:
    flat = a.ravel()
    return bool(np.isfinite(np.dot(flat, flat)))
