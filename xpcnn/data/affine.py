"""`RandomAffine`: each image turned, shifted and scaled in its own way, with bilinear interpolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.backend.split import split_evenly
from xpcnn.data.stage import Stage, span, unit_floats
from xpcnn.data.transforms import values_of
from xpcnn.errors import ConfigError
from xpcnn.functional.primitive import primitive

_WORK = 40.0  # elementary operations for a pixel
_LIVE = 5  # numbers a pixel of a piece: fresh arrays of more than a piece takes cost more in pages than in arithmetic
_PLACES = "y", "x", "top", "left"


@dataclass(frozen=True)
class RandomAffine(Stage):
    """Turn, shift and scale each image about its centre, by amounts drawn for it; gives float32.

    Parameters
    ----------
    degrees : float or (low, high)
        Of the turn, clockwise; a number is (-degrees, degrees).
    translate : (horizontal, vertical), optional
        The largest shifts, as shares of width and height.
    scale : (low, high), optional
        Factors of the size.
    fill : float
        What lies outside of the image, on the scale that the images have at that point ([0, 1] for stored bytes).

    Notes
    -----
    A pixel at offset d from the centre of the result is the image at R(-angle) (d - t) / s from its own, interpolated
    between the four pixels around it; beyond the border, pixels have the value `fill`.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.RandomAffine(10, translate=(0.1, 0.1))(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 32, 32), 'float32')
    """

    degrees: Any
    translate: Any = None
    scale: Any = None
    fill: float = 0.0

    def __post_init__(self) -> None:
        turn = self.degrees
        if isinstance(turn, int | float) and not isinstance(turn, bool):
            if not turn >= 0:
                raise ConfigError(f"degrees: expected 0 or more, or (low, high), got {turn!r}")
            turn = (-turn, turn)
        object.__setattr__(self, "degrees", span("degrees", turn))
        if self.translate is not None:
            shares = values_of("translate", self.translate)
            if len(shares) != 2 or not all(0 <= share <= 1 for share in shares):
                raise ConfigError(f"translate: expected two shares from 0 to 1, got {self.translate!r}")
            object.__setattr__(self, "translate", shares)
        if self.scale is not None:
            object.__setattr__(self, "scale", span("scale", self.scale, 1e-3))
        object.__setattr__(self, "fill", values_of("fill", self.fill)[0])

    def draw(self, rng: Any, count: int, image: tuple[int, ...]) -> tuple[Any, ...]:
        """Return angles in radians, horizontal and vertical shifts in pixels, and factors: float32 (N,) each."""
        _, height, width = image
        across, down = self.translate or (0.0, 0.0)
        draws = (
            rng.uniform(*self.degrees, count) * (math.pi / 180),
            rng.uniform(-across * width, across * width, count),
            rng.uniform(-down * height, down * height, count),
            rng.uniform(*(self.scale or (1.0, 1.0)), count),
        )
        return tuple(each.astype("float32") for each in draws)

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        angle, right, down, factor = (backend.asarray(each) for each in draws)
        xp = backend.xp
        cos, sin = xp.cos(angle) / factor, xp.sin(angle) / factor
        count, channels, height, width = x.shape
        out = backend.empty(x.shape, "float32")

        def sample(part: range) -> None:
            some = slice(part.start, part.stop)
            padded = backend.empty((len(part), channels, height + 2, width + 2), "float32")
            padded.fill(self.fill)
            padded[:, :, 1:-1, 1:-1] = unit_floats(backend, x[some])
            sample_bilinear(backend, padded, cos[some], sin[some], right[some], down[some], out[some])

        work = _WORK * x.size
        threads = backend.get_num_threads() if backend.shares(work) else 1
        slab = backend.slab_bytes
        pieces = 1 if slab is None else -(-_LIVE * 4 * count * height * width // slab)
        backend.parallel(sample, split_evenly(count, -(-pieces // threads) * threads), work, products=False)
        return out


@primitive
def sample_bilinear(
    backend: Backend, padded: Array, cos: Array, sin: Array, right: Array, down: Array, out: Array
) -> None:
    """Fill `out` (N, C, H, W) with what lies at its pixels' places in images with a border of one pixel.

    `cos` and `sin`, of the angle and by the factor, and the shifts `right` and `down` in pixels are (N,) each.
    """
    xp = backend.xp
    count, channels, height, width = out.shape
    rows = (xp.arange(0, height, dtype="float32") - (height - 1) / 2).reshape(1, height, 1) - down.reshape(-1, 1, 1)
    columns = (xp.arange(0, width, dtype="float32") - (width - 1) / 2).reshape(1, 1, width) - right.reshape(-1, 1, 1)
    cos, sin = cos.reshape(-1, 1, 1), sin.reshape(-1, 1, 1)
    y, x, top, left = (backend.scratch(f"affine {name}", (count, height, width), "float32") for name in _PLACES)
    corner, index = (backend.scratch(f"affine {name}", y.shape, "int64") for name in ("corner", "index"))
    # From the corner of the border on, and no further than the border: beyond it everything is alike.
    xp.subtract(cos * rows + (height + 1) / 2, sin * columns, out=y)
    xp.add(sin * rows + (width + 1) / 2, cos * columns, out=x)
    for place, whole, last in ((y, top, height), (x, left, width)):
        xp.clip(place, 0, last + 1, out=place)
        xp.floor(place, out=whole)
        xp.clip(whole, 0, last, out=whole)
        xp.subtract(place, whole, out=place)
    stride, plane = width + 2, (height + 2) * (width + 2)
    xp.multiply(top, stride, out=top)
    xp.add(top, left, out=top)
    corner[...] = top
    xp.add(corner, xp.arange(0, count, dtype="int64").reshape(-1, 1, 1) * (channels * plane), out=corner)
    flat = padded.reshape(-1)
    for channel in range(channels):
        xp.add(corner, channel * plane, out=index)
        upper = _between(xp, flat, index, x)
        xp.add(index, stride - 1, out=index)  # the line below
        lower = _between(xp, flat, index, x)
        xp.subtract(lower, upper, out=lower)
        xp.multiply(lower, y, out=lower)
        xp.add(upper, lower, out=out[:, channel])


def _between(xp: Any, flat: Array, index: Array, share: Array) -> Array:
    """Return what lies by `share` between the values at `index` and those behind them; leaves `index` at these."""
    left = xp.take(flat, index)
    xp.add(index, 1, out=index)
    difference = xp.take(flat, index)
    xp.subtract(difference, left, out=difference)
    xp.multiply(difference, share, out=difference)
    return xp.add(left, difference, out=left)
