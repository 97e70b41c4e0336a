"""`Compose`: transforms one after the other. What belongs together is carried out together, from bytes to floats."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.data.stage import Stage, as_channels_first, host_generator
from xpcnn.data.transforms import Plan, ToFloat, Transform, planned, prepare
from xpcnn.errors import ConfigError
from xpcnn.functional.layout import batch_first


class Compose(Transform):
    """Apply transforms one after the other; neighbours of this package are carried out together.

    Parameters
    ----------
    *transforms : callable
        Transforms of this package, or functions of one's own from a batch to a batch (the last gives float32
        (N, C, H, W), in batch-last memory if it is to be fast). One with an attribute `labels` that is true is called
        as (images, labels) and returns both.

    Notes
    -----
    A `DataLoader` gives random transforms a generator that follows from its seed, the epoch and the number of the
    batch alone. Called directly, they draw from `xpcnn.random`.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> augment = data.Compose(data.RandomCrop(32, padding=4), data.RandomHorizontalFlip(), data.Normalize(0.5, 0.25))
    >>> augment(images).shape
    (4, 3, 32, 32)
    """

    transforms: tuple[Callable[..., Any], ...]

    def __init__(self, *transforms: Callable[..., Any]) -> None:
        flat: list[Callable[..., Any]] = []
        for transform in transforms:
            if not callable(transform):
                raise ConfigError(f"transforms: expected callables, got {transform!r}")
            flat.extend(transform.transforms if isinstance(transform, Compose) else [transform])
        self.transforms = tuple(flat)
        self.is_random = any(getattr(each, "is_random", False) for each in flat)
        self.labels = any(getattr(each, "labels", False) for each in flat)
        self._stages: list[Callable[..., Any]] = []
        for ours, group in itertools.groupby(flat, _has_plan):
            neighbours = tuple(group)
            self._stages.extend([_Chain(neighbours)] if ours else neighbours)
        if not self._stages or isinstance(self._stages[-1], Stage):
            self._stages.append(_Chain((ToFloat(),)))

    def __call__(self, batch: Array, labels: Array | None = None) -> Any:
        """Return what the last transform makes of it all: images, or images and labels where it was given both."""
        images, changed = self.run(batch, labels, host_generator(self) if self.is_random else None)
        return images if labels is None else (images, changed)

    def run(self, batch: Array, labels: Array | None, rng: Any) -> tuple[Array, Array | None]:
        """Return images and labels as a loader takes them."""
        if self.labels and labels is None:
            raise ConfigError("labels: a transform changes them too; call it as transform(images, labels)")
        is_first = False  # as long as nothing of ours has brought the channels forward
        for stage in self._stages:
            if isinstance(stage, _Chain):
                batch, is_first = stage.carry_out(batch, is_first), True
            elif isinstance(stage, Stage):
                batch = batch if is_first else as_channels_first(batch)  # (N, C, H, W)
                (batch, labels), is_first = stage.run_stage(batch, labels, rng), True
            elif getattr(stage, "labels", False):
                (batch, labels), is_first = stage(batch, labels), False
            else:
                batch, is_first = stage(batch), False
        return batch, labels

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"

    def settings(self) -> dict[str, Any]:
        """Return the names and arguments of all, in their order."""
        return {"name": "Compose", "transforms": [describe(transform) for transform in self.transforms]}


@dataclass(frozen=True)
class _Chain(Transform):
    transforms: tuple[Any, ...]

    def carry_out(self, batch: Array, is_first: bool) -> Array:
        plan = planned(self, tuple(batch.shape[1:]), batch.dtype.kind in "iu", is_first)
        return batch_first(prepare(backend_of(batch), batch, plan))

    def _extend(self, plan: Plan, image: tuple[int, ...]) -> Plan:
        for transform in self.transforms:
            plan = transform._extend(plan, image)
        return plan


def _has_plan(transform: Any) -> bool:
    return isinstance(transform, Transform) and not isinstance(transform, Stage)


def describe(transform: Callable[..., Any]) -> dict[str, Any]:
    """Return a transform's name and arguments as plain values; of a function of one's own, its name.

    Examples
    --------
    >>> from xpcnn import data
    >>> data.describe(data.Normalize(0.5, 0.25))
    {'name': 'Normalize', 'mean': [0.5], 'std': [0.25]}
    """
    if isinstance(transform, Transform):
        return transform.settings()
    return {"name": getattr(transform, "__qualname__", type(transform).__qualname__)}


def takes_images_singly(transform: Callable[..., Any]) -> bool:
    """Whether each image becomes what it does whatever others are in its batch; draws, and users' own, may not."""
    if isinstance(transform, Compose):
        return all(map(takes_images_singly, transform.transforms))
    ours = isinstance(transform, Transform) and type(transform).__module__.startswith("xpcnn.")
    return ours and not getattr(transform, "is_random", True) and not getattr(transform, "labels", False)
