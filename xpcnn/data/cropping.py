"""Pixels moved about or painted over, each image in its own way: crops, flips, erased rectangles. Bytes stay bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.data.stage import Stage, probability, span, with_fill
from xpcnn.data.transforms import values_of
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.functional.primitive import primitive
from xpcnn.windows import pair

_MODES = ("constant", "edge", "reflect")


@dataclass(frozen=True)
class RandomCrop(Stage):
    """Cut a window out of each image, at a place drawn for it, after a border was put around.

    Parameters
    ----------
    size : int or (height, width)
        Of the window; a number is a square.
    padding : int or (height, width)
        Pixels of border on each side.
    fill : float
        What the border holds, on the scale that the images have at that point ([0, 1] for stored bytes).
    padding_mode : str
        "constant" (`fill`), "edge" or "reflect".

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", arXiv:1512.03385, section 4.2: padding 4 at 32x32.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.RandomCrop(32, padding=4)(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 32, 32), 'float32')
    """

    size: Any
    padding: Any = 0
    fill: float = 0.0
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair("size", self.size, 1))
        object.__setattr__(self, "padding", pair("padding", self.padding, 0))
        object.__setattr__(self, "fill", values_of("fill", self.fill)[0])
        if self.padding_mode not in _MODES:
            raise ConfigError(f"padding_mode: expected one of {', '.join(_MODES)}, got {self.padding_mode!r}")

    def draw(self, rng: Any, count: int, image: tuple[int, ...]) -> tuple[Any, ...]:
        """Return the top row and the left column of each window, int64 (N,)."""
        rooms = [n + 2 * p - s for n, p, s in zip(image[1:], self.padding, self.size, strict=True)]
        if min(rooms) < 0:
            raise ShapeError(f"RandomCrop: expected images of {self.size} or more with their border, got {image[1:]}")
        return tuple(rng.integers(0, room + 1, count) for room in rooms)

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        tops, lefts = draws
        (rows, columns), (above, beside) = self.size, self.padding
        x, fill = with_fill(backend, x, self.fill)
        if self.padding_mode != "constant":
            x = backend.xp.pad(x, ((0, 0), (0, 0), (above, above), (beside, beside)), self.padding_mode)
        elif above or beside:
            count, channels, height, width = x.shape
            padded = backend.empty((count, channels, height + 2 * above, width + 2 * beside), x.dtype)
            padded.fill(fill)
            padded[:, :, above : above + height, beside : beside + width] = x
            x = padded
        x = backend.contiguous(x)
        return cut_windows(backend, x, backend.asarray(tops), backend.asarray(lefts), rows, columns)

    def for_evaluation(self) -> Stage:
        """Return the window in the middle; of images of its own size, all of them."""
        return CenterCrop(self.size, self.fill)


@dataclass(frozen=True)
class CenterCrop(Stage):
    """Cut the window in the middle out of each image; what the image is too small for is border.

    Parameters
    ----------
    size : int or (height, width)
        Of the window; a number is a square.
    fill : float
        What the border holds, on the scale that the images have at that point ([0, 1] for stored bytes).

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.CenterCrop(24)(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 24, 24), 'float32')
    """

    size: Any
    fill: float = 0.0
    is_random = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair("size", self.size, 1))
        object.__setattr__(self, "fill", values_of("fill", self.fill)[0])

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        if tuple(x.shape[2:]) == self.size:
            return x
        x, fill = with_fill(backend, x, self.fill)
        out = backend.empty((*x.shape[:2], *self.size), x.dtype)
        out.fill(fill)
        inner, outer = [], []
        for size, wanted in zip(x.shape[2:], self.size, strict=True):
            length = min(size, wanted)
            inner.append(slice((size - length) // 2, (size - length) // 2 + length))
            outer.append(slice((wanted - length) // 2, (wanted - length) // 2 + length))
        out[:, :, outer[0], outer[1]] = x[:, :, inner[0], inner[1]]
        return out


@primitive
def cut_windows(backend: Backend, x: Array, tops: Array, lefts: Array, rows: int, columns: int) -> Array:
    """Return (N, C, rows, columns) of a contiguous (N, C, H, W): of image n from row tops[n] and column lefts[n] on."""
    xp = backend.xp
    count, channels, height, width = x.shape
    plane = xp.arange(0, count * channels, dtype="int64").reshape(count, channels, 1, 1) * (height * width)
    row = tops.reshape(-1, 1, 1, 1) + xp.arange(0, rows, dtype="int64").reshape(1, 1, rows, 1)
    column = lefts.reshape(-1, 1, 1, 1) + xp.arange(0, columns, dtype="int64")
    return xp.take(x.reshape(-1), plane + (row * width + column))  # (N, C, rows, columns)


@dataclass(frozen=True)
class RandomHorizontalFlip(Stage):
    """Mirror each image, left for right, with a probability. Not for digits and letters.

    Parameters
    ----------
    p : float

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.RandomHorizontalFlip()(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 32, 32), 'float32')
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", probability(self.p))

    def draw(self, rng: Any, count: int, image: tuple[int, ...]) -> tuple[Any, ...]:
        """Return the numbers of the images that are mirrored, int64."""
        return ((rng.random(count) < self.p).nonzero()[0],)

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        (chosen,) = draws
        out = backend.copy(x)
        if len(chosen):
            chosen = backend.asarray(chosen)
            out[chosen] = x[chosen][:, :, :, ::-1]
        return out


@dataclass(frozen=True)
class RandomErasing(Stage):
    """Paint over a rectangle of each image, with a probability.

    Parameters
    ----------
    p : float
    scale : (low, high)
        The rectangle's share of the image's area, from which it is drawn uniformly.
    ratio : (low, high)
        Its height by its width, the logarithm drawn uniformly; what is larger than the image is cut to it.
    value : float
        What is painted, on the scale that the images have at that point ([0, 1] for stored bytes).

    References
    ----------
    Z. Zhong et al., "Random erasing data augmentation", arXiv:1708.04896.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.RandomErasing(p=1.0)(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 32, 32), 'float32')
    """

    p: float = 0.5
    scale: Any = (0.02, 0.33)
    ratio: Any = (0.3, 3.3)
    value: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", probability(self.p))
        object.__setattr__(self, "scale", span("scale", self.scale, 0))
        object.__setattr__(self, "ratio", span("ratio", self.ratio, 1e-3))
        object.__setattr__(self, "value", values_of("value", self.value)[0])
        if self.scale[1] > 1:
            raise ConfigError(f"scale: expected shares of at most 1, got {self.scale}")

    def draw(self, rng: Any, count: int, image: tuple[int, ...]) -> tuple[Any, ...]:
        """Return (4, N) int64: top, bottom, left and right of each rectangle, ends excluded; all 0 where none is."""
        _, height, width = image
        is_erased = rng.random(count) < self.p
        area = rng.uniform(*self.scale, count) * (height * width)
        ratio = math.e ** rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), count)
        rows = ((area * ratio) ** 0.5).round().clip(1, height) * is_erased
        columns = ((area / ratio) ** 0.5).round().clip(1, width) * is_erased
        tops = (rng.random(count) * (height - rows + 1)) // 1 * is_erased
        lefts = (rng.random(count) * (width - columns + 1)) // 1 * is_erased
        return tuple(edges.astype("int64") for edges in (tops, tops + rows, lefts, lefts + columns))

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        xp = backend.xp
        top, bottom, left, right = (backend.asarray(edges).reshape(-1, 1, 1, 1) for edges in draws)
        x, value = with_fill(backend, x, self.value)
        row, column = xp.arange(0, x.shape[2]).reshape(-1, 1), xp.arange(0, x.shape[3])
        inside = ((row >= top) & (row < bottom)) & ((column >= left) & (column < right))  # (N, 1, H, W)
        out = backend.copy(x)
        xp.copyto(out, value, where=inside)
        return out
