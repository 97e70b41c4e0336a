"""From images as they are stored to the float32 (N, C, H, W) that a network takes: scaled, padded, channels first.

Every transform is a line in a plan: (x - offset) / divisor for the pixels, rings of constant border around them.
However many are composed, the plan is carried out in one go (`prepare`), straight into batch-last memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.functional.layout import batch_first
from xpcnn.functional.primitive import primitive
from xpcnn.windows import pair

LARGEST_PIXEL = 255.0  # of integer pixels; they are brought to [0, 1] first
COLOURS = (1, 3, 4)  # numbers of channels by which channels-last images are known: grey, RGB, RGBA

Values = float | Sequence[float]  # one for all channels, or one for each


@dataclass(frozen=True)
class Ring:
    """A border around the image, in pixels, with one value for all channels or one for each."""

    height: int
    width: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be done to a batch of stored images.

    Attributes
    ----------
    channels_last : bool
        The images are stored as (N, H, W, C).
    stored, channels : int
        Channels as stored and as given out; where they differ, the one channel stored is given out several times.
    offset, divisor : tuple of float
        Pixels become (x - offset) / divisor; one value for all channels or one for each.
    rings : tuple of Ring
        Borders, from the innermost to the outermost.
    """

    channels_last: bool
    stored: int
    channels: int
    offset: tuple[float, ...]
    divisor: tuple[float, ...]
    rings: tuple[Ring, ...] = ()


class Transform:
    """Base of the transforms here: callable on a batch, composable, and described by `settings()` for a run's json.

    Called with stored images (N, H, W), (N, C, H, W) or (N, H, W, C) on any backend, a transform returns a new array,
    float32 (N, C, H, W) in batch-last memory. Integer pixels are divided by 255 first. Integers whose last axis is 1, 3
    or 4 and whose second axis is not are taken as (N, H, W, C); `ChannelsFirst` says so where that is not clear.

    Attributes
    ----------
    is_random : bool
        Whether it draws numbers.
    labels : bool
        Whether it is called as (images, labels), and returns both.
    """

    is_random: bool = False
    labels: bool = False

    def __call__(self, batch: Array) -> Array:
        """Return a batch as stored as a new float32 (N, C, H, W)."""
        plan = planned(self, tuple(batch.shape[1:]), batch.dtype.kind in "iu")
        return batch_first(prepare(backend_of(batch), batch, plan))

    def run(self, batch: Array, labels: Array | None, rng: Any) -> tuple[Array, Array | None]:
        """Return images and labels as a loader takes them; `rng` is a NumPy Generator, None where nothing is drawn."""
        return self(batch), labels

    def _extend(self, plan: Plan, image: tuple[int, ...]) -> Plan:
        """Return `plan` with this transform at its end, for images stored as `image` (their shape)."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the name and arguments as plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"name": type(self).__name__} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
        }


@dataclass(frozen=True)
class ToFloat(Transform):
    """Divide integer pixels by 255 and add the channel axis where there is none: the loader's default.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.ToFloat()(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 32, 32), 'float32')
    """

    def _extend(self, plan: Plan, image: tuple[int, ...]) -> Plan:
        return plan


@dataclass(frozen=True)
class Normalize(Transform):
    """Return (x - mean) / std, where x is in [0, 1] for integer pixels.

    Parameters
    ----------
    mean, std : float or sequence of float
        One value for all channels, or one for each; `std` above 0.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.Normalize(0.5, 0.25)(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 32, 32), 'float32')
    """

    mean: Values
    std: Values

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = values_of(name, getattr(self, name))
            if name == "std" and min(values) <= 0:
                raise ConfigError(f"std: expected values above 0, got {values}")
            object.__setattr__(self, name, values)

    def _extend(self, plan: Plan, image: tuple[int, ...]) -> Plan:
        mean, std = (_per_channel(getattr(self, name), plan.channels, name) for name in ("mean", "std"))
        return replace(
            plan,
            offset=_zip(lambda offset, divisor, m: offset + m * divisor, plan.offset, plan.divisor, mean),
            divisor=_zip(lambda divisor, s: divisor * s, plan.divisor, std),
            rings=tuple(
                replace(ring, values=_zip(lambda v, m, s: (v - m) / s, ring.values, mean, std)) for ring in plan.rings
            ),
        )


@dataclass(frozen=True)
class Pad(Transform):
    """Put a border around the images.

    Before `Normalize`, the border is normalised too: `Compose(Pad(2), Normalize(0.1307, 0.3081))` gives 28x28 digits a
    border of (0 - 0.1307) / 0.3081, as the LeNet notebook has it.

    Parameters
    ----------
    padding : int or (height, width)
        Pixels on each side.
    value : float
        What the border holds, on the scale that the images have at that point ([0, 1] before any other transform).

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.Pad(2)(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 36, 36), 'float32')
    """

    padding: Any
    value: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", pair("padding", self.padding, 0))
        object.__setattr__(self, "value", values_of("value", self.value)[0])

    def _extend(self, plan: Plan, image: tuple[int, ...]) -> Plan:
        return replace(plan, rings=(*plan.rings, Ring(self.padding[0], self.padding[1], (self.value,))))


@dataclass(frozen=True)
class ChannelsFirst(Transform):
    """Take the stored images as (N, H, W, C), whatever their shape suggests; stands first in a `Compose`.

    Examples
    --------
    >>> from xpcnn import data
    >>> data.ChannelsFirst()(np.zeros((4, 32, 32, 3), "float32")).shape
    (4, 3, 32, 32)
    """

    def _extend(self, plan: Plan, image: tuple[int, ...]) -> Plan:
        if len(image) != 3 or plan.offset != (0.0,) or plan.rings or plan.channels != plan.stored:
            raise ShapeError(
                f"ChannelsFirst: expected stored images (N, H, W, C) and to come first, got images {image}"
            )
        return replace(plan, channels_last=True, stored=image[2], channels=image[2])


@dataclass(frozen=True)
class Repeat(Transform):
    """Give grey images several equal channels.

    Parameters
    ----------
    channels : int
        How many.

    Examples
    --------
    >>> from xpcnn import data
    >>> data.Repeat(3)(np.zeros((4, 1, 8, 8), "float32")).shape
    (4, 3, 8, 8)
    """

    channels: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", pair("channels", self.channels, 1)[0])

    def _extend(self, plan: Plan, image: tuple[int, ...]) -> Plan:
        if plan.channels != 1:
            raise ShapeError(f"Repeat: expected images of one channel, got {plan.channels}; leave it out")
        return replace(plan, channels=self.channels)


def is_channels_last(image: tuple[int, ...], integers: bool) -> bool:
    """Say whether stored images of this shape are (H, W, C); raise ShapeError where they are none."""
    if len(image) not in (2, 3):
        sizes = ", ".join(map(str, image))
        raise ShapeError(f"batch: expected (N, H, W), (N, C, H, W) or (N, H, W, C), got (N, {sizes})")
    return len(image) == 3 and integers and image[2] in COLOURS and image[0] not in COLOURS


@functools.lru_cache(maxsize=256)
def planned(transform: Any, image: tuple[int, ...], integers: bool, is_first: bool = False) -> Plan:
    """Return what a transform does to images stored so; with `is_first` they are (C, H, W), whatever they look like."""
    last = not is_first and is_channels_last(image, integers)
    channels = 1 if len(image) == 2 else image[2] if last else image[0]
    plan = Plan(last, channels, channels, (0.0,), (LARGEST_PIXEL if integers else 1.0,))
    made: Plan = transform._extend(plan, image)
    return made


@primitive
def prepare(backend: Backend, batch: Array, plan: Plan) -> Array:
    """Carry out a plan: a batch as stored becomes a new float32 (C, H, W, N), C-contiguous.

    `DataLoader` states what it costs.
    """
    memory = batch_last(backend, batch)
    if batch.ndim == 3:
        memory = memory[None]  # (1, H, W, N)
    elif plan.channels_last:
        memory = memory.transpose(2, 0, 1, 3)  # (C, H, W, N)
    _, height, width, count = memory.shape
    height += 2 * sum(ring.height for ring in plan.rings)
    width += 2 * sum(ring.width for ring in plan.rings)
    out = backend.empty((plan.channels, height, width, count), "float32")
    inner = out
    for ring in reversed(plan.rings):
        _each_channel(lambda channel, value: channel.fill(value), inner, ring.values)
        inner = inner[:, ring.height : inner.shape[1] - ring.height, ring.width : inner.shape[2] - ring.width]
    backend.copyto(inner, memory)
    if any(plan.offset):
        _each_channel(lambda channel, value: backend.xp.subtract(channel, value, out=channel), inner, plan.offset)
    if any(value != 1 for value in plan.divisor):
        _each_channel(lambda channel, value: backend.xp.divide(channel, value, out=channel), inner, plan.divisor)
    return out


def batch_last(backend: Backend, batch: Array) -> Array:
    """Return images (N, ...) as (..., N), integers as a contiguous copy.

    Bytes are transposed as bytes: to convert them along the strides takes twice as long.
    """
    memory = batch.transpose(*range(1, batch.ndim), 0)
    return memory if batch.dtype.kind == "f" else backend.contiguous(memory)


def _each_channel(change: Callable[[Array, float], Any], array: Array, values: tuple[float, ...]) -> None:
    """Call `change(part, value)` on the whole array, or on each channel where each has a value of its own."""
    if len(values) == 1:
        change(array, values[0])
    else:
        for c, value in enumerate(values):
            change(array[c], value)


def values_of(name: str, value: Any) -> tuple[float, ...]:
    """Return one number or several as finite floats."""
    try:
        values = tuple(float(v) for v in value) if hasattr(value, "__len__") else (float(value),)
    except (TypeError, ValueError):
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise ConfigError(f"{name}: expected a finite number, or one for each channel, got {value!r}")
    return values


def _per_channel(values: tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ShapeError(f"{name}: expected 1 value or one for each of the {channels} channels, got {len(values)}")
    return values


def _zip(function: Callable[..., float], *several: tuple[float, ...]) -> tuple[float, ...]:
    """Map over tuples of equal length, or of length 1, which are repeated."""
    length = max(map(len, several))
    return tuple(function(*each) for each in zip(*(v * (length // len(v)) for v in several), strict=True))
