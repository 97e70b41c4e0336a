"""What transforms that change each image in its own way have in common: drawn on the host, carried out on the device.

A stage takes a batch (N, C, H, W), integers from 0 to 255 or floats, and gives one. What moves pixels about keeps
bytes bytes, which are a quarter of the work; what computes with them gives float32 in [0, 1]. Whatever a stage draws
for a batch is drawn by `draw` from one NumPy Generator, as few arrays, so that a seed means the same on every backend
and `change` is a function of images and draws alone.
"""

from __future__ import annotations

from typing import Any

from xpcnn import random
from xpcnn.backend import Array, Backend, backend_of
from xpcnn.backend.graph import tracing
from xpcnn.data.transforms import LARGEST_PIXEL, ToFloat, Transform, is_channels_last, planned, prepare, values_of
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.functional.layout import batch_first


class Stage(Transform):
    """Base of transforms that are no line of a plan; alone, one ends in float32 (N, C, H, W) like all others."""

    is_random: bool = True
    labels: bool = False

    def draw(self, rng: Any, count: int, image: tuple[int, ...]) -> tuple[Any, ...]:
        """Return the host arrays that say what happens to each of `count` images (C, H, W)."""
        return ()

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        """Return the batch (N, C, H, W) changed; `x` itself stays as it is."""
        raise NotImplementedError

    def for_evaluation(self) -> Stage | None:
        """Return what stands in its place where nothing is drawn: itself, or nothing where it draws."""
        return None if self.is_random else self

    def run_stage(self, x: Array, labels: Array | None, rng: Any) -> tuple[Array, Array | None]:
        """Return a batch (N, C, H, W) changed, and its labels."""
        count, *image = (int(n) for n in x.shape)
        return self.change(backend_of(x), x, *self.draw(rng, count, tuple(image))), labels

    def run(self, batch: Array, labels: Array | None, rng: Any) -> tuple[Array, Array | None]:
        """Return images, float32 (N, C, H, W) in batch-last memory, and labels."""
        x, labels = self.run_stage(as_channels_first(batch), labels, rng)
        return to_float(x), labels

    def __call__(self, batch: Array, labels: Array | None = None) -> Any:
        """Return a batch as stored as a new float32 (N, C, H, W); with labels, both."""
        if self.labels and labels is None:
            raise ConfigError(f"labels: {type(self).__name__} changes them too; call it as transform(images, labels)")
        images, changed = self.run(batch, labels, host_generator(self) if self.is_random else None)
        return images if labels is None else (images, changed)


def host_generator(transform: Transform) -> Any:
    """Return the generator from which a transform draws that is called directly; such a call is never replayed."""
    found = tracing()
    if found is not None:
        found.fail(f"{type(transform).__name__} draws on the host; give a DataLoader the random transforms")
    return random.generator()


def as_channels_first(batch: Array) -> Array:
    """Return a batch as stored as a view (N, C, H, W)."""
    if is_channels_last(tuple(batch.shape[1:]), batch.dtype.kind in "iu"):
        return batch.transpose(0, 3, 1, 2)  # (N, C, H, W)
    return batch[:, None] if batch.ndim == 3 else batch


def to_float(x: Array) -> Array:
    """Return (N, C, H, W) as float32 in batch-last memory, integers divided by 255."""
    plan = planned(ToFloat(), tuple(x.shape[1:]), x.dtype.kind in "iu", True)
    return batch_first(prepare(backend_of(x), x, plan))


def unit_floats(backend: Backend, x: Array) -> Array:
    """Return (N, C, H, W) as contiguous float32, integers divided by 255."""
    floats = backend.contiguous(x.astype("float32"))
    return floats if x.dtype.kind == "f" else backend.xp.multiply(floats, 1 / LARGEST_PIXEL, out=floats)


def with_fill(backend: Backend, x: Array, fill: float) -> tuple[Array, float]:
    """Return the batch, and `fill` on its scale: bytes stay bytes where the value is one of theirs."""
    if x.dtype.kind == "f":
        return x, fill
    scaled = round(fill * LARGEST_PIXEL)
    if abs(scaled - fill * LARGEST_PIXEL) < 1e-6 and 0 <= scaled <= LARGEST_PIXEL:
        return x, scaled
    return unit_floats(backend, x), fill


def span(name: str, value: Any, least: float | None = None) -> tuple[float, float]:
    """Return a pair of finite numbers (low, high), low first, none below `least`."""
    pair = values_of(name, value)
    if len(pair) != 2 or pair[0] > pair[1] or (least is not None and pair[0] < least):
        bound = "" if least is None else f" of {least:g} or more"
        raise ConfigError(f"{name}: expected two numbers (low, high){bound}, got {value!r}")
    return pair[0], pair[1]


def probability(value: Any) -> float:
    """Return a share from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"p: expected a probability from 0 to 1, got {value!r}")
    return float(value)


def check_channels(stage: Transform, channels: int, known: tuple[int, ...]) -> None:
    """Raise ShapeError where images have another number of channels than a stage knows."""
    if channels not in known:
        raise ShapeError(f"{type(stage).__name__}: expected images of {known} channels, got {channels}")
