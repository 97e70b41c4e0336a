"""A recipe on one's own pictures: how they are read, cut into parts, and what network is built to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xpcnn import random
from xpcnn.data import ColorJitter, Normalize, RandomAffine, RandomCrop, RandomHorizontalFlip
from xpcnn.datasets import Dataset, load_folder, load_npz
from xpcnn.datasets.picture_folder import survey
from xpcnn.datasets.source import PathLike, shown
from xpcnn.errors import ConfigError, DataError, XpcnnError
from xpcnn.recipes.recipe import Recipe, Splits

KIND = "pictures"
PREPARE = Normalize(0.5, 0.25)  # pixels of [0, 1] to about -2 ... 2
_LARGEST_KEPT = 96  # pixels a side up to which pictures of one size keep it
_IN_MEMORY = 1 << 30  # bytes of a set that is read whole; a larger one stays on the disk
TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1
_BATCHES, _SMALLEST_BATCH = 16, 8  # so many batches an epoch, or a few less, unless they were smaller
_STEPS = 500  # that a training takes at least
_SEED = 0  # of what is held out: a fact of the data, not of the run

AUGMENTATIONS = ("shift", "photo")


@dataclass(frozen=True)
class Pictures:
    """How pictures are to be read.

    Attributes
    ----------
    natural : int
        Pixels a side to which they are brought where they have several sizes, or a large one.
    image_size : int or None
        Pixels a side that the user asked for.
    skip_broken : bool
    """

    natural: int
    image_size: int | None = None
    skip_broken: bool = False


def load_pictures(place: PathLike, options: Pictures) -> tuple[Dataset, Dataset | None, Dataset]:
    """Return the training, validation (where it has one) and test part of a folder of pictures or an .npz file.

    Of a set without parts a fifth of each class is held out for the test, always the same. One with a training and a
    validation part is tested on the latter.

    Raises
    ------
    DataError
        As for `load_folder` and `load_npz`.
    """
    if Path(place).suffix.lower() == ".npz":
        if options.image_size is not None:
            raise ConfigError(f"image_size: expected none for {shown(place)}, whose arrays have a size")
        found = load_npz(place)
    else:
        count, common = survey(place)
        size: Any = options.image_size
        if size is None:
            size = common if common is not None and max(common) <= _LARGEST_KEPT else options.natural
        height, width = (size, size) if isinstance(size, int) else size
        found = load_folder(
            place,
            size=size,
            mode="auto",
            lazy=3 * count * height * width > _IN_MEMORY,
            broken="skip" if options.skip_broken else "raise",
        )
    if isinstance(found, Dataset):
        train, test = hold_out(found, TEST_SHARE)
        return train, None, test
    if len(found) == 2:
        return found[0], None, found[1]
    return found[0], found[1], found[2]


def hold_out(dataset: Dataset, share: float = _VALIDATION_SHARE) -> tuple[Dataset, Dataset]:
    """Return a set without a share of each class, at least one image of it, and that share; the order is drawn.

    Raises
    ------
    DataError
        A class has one image alone.
    """
    labels = dataset.labels.argmax(axis=1) if dataset.labels.ndim == 2 else dataset.labels
    order = random.batch_generator(_SEED, 0, 1).permutation(len(dataset)).tolist()  # on the host
    by_class: dict[int, list[int]] = {}
    for index in order:
        by_class.setdefault(int(labels[index]), []).append(index)
    held: set[int] = set()
    for label, members in sorted(by_class.items()):
        if len(members) < 2:
            name = label if dataset.classes is None else repr(dataset.classes[label])
            raise DataError(
                f"data: expected two or more images of class {name}, to train and to test on, got one; add another"
            )
        held.update(members[: max(1, round(share * len(members)))])
    return (
        dataset.subset([index for index in order if index not in held]),
        dataset.subset([index for index in order if index in held]),
    )


def adapted(recipe: Recipe, image_shape: Sequence[int], classes: int, validation: Dataset | None = None) -> Recipe:
    """Return a recipe whose network is built to images of a shape as stored, (H, W) or (C, H, W)."""
    channels, height, width = (1, *image_shape) if len(image_shape) == 2 else image_shape

    def given(train: Dataset, test: Dataset) -> Splits:
        return Splits(train, validation, test)

    return replace(
        recipe,
        transforms={**recipe.transforms, KIND: PREPARE},
        split=given,
        classes=classes,
        built_to=(channels, height, width),
    )


def sized(recipe: Recipe, count: int) -> Recipe:
    """Return a recipe whose batches and epochs, made for tens of thousands of images, fit a training set of `count`.

    The learning rate goes with the batch (Goyal et al. 2017, arXiv:1706.02677): `lr_scale`.
    """
    batch_size = min(recipe.batch_size, max(_SMALLEST_BATCH, 1 << max(1, count // _BATCHES).bit_length() - 1))
    steps = recipe.steps_per_epoch or math.ceil(count / batch_size)
    epochs = max(recipe.epochs, math.ceil(_STEPS / steps))
    return replace(recipe, batch_size=batch_size, epochs=epochs, lr_scale=batch_size / recipe.batch_size)


def augmentation(name: str | None, image_shape: Sequence[int]) -> tuple[Callable[..., Any], ...]:
    """Return the transforms of a name, for images as stored, (H, W) or (C, H, W).

    "shift" is for digits and letters: shifts, turns of 10 degrees and sizes of 0.9 to 1.1. "photo" has shifts of an
    eighth, mirror images, and other brightness, contrast and saturation.

    Raises
    ------
    ConfigError
        There is none of this name.
    """
    if name is None:
        return ()
    if name not in AUGMENTATIONS:
        raise ConfigError(f"augment: expected {' or '.join(AUGMENTATIONS)}, got {name!r}")
    height, width = (int(n) for n in image_shape[-2:])
    if name == "shift":
        return (RandomAffine(10, (2 / max(width, 20), 2 / max(height, 20)), (0.9, 1.1)),)
    shifted = (RandomCrop((height, width), (height // 8, width // 8), padding_mode="edge"), RandomHorizontalFlip())
    return *shifted, ColorJitter(0.2, 0.2, 0.2)


def explained(recipe: Recipe, error: XpcnnError) -> ConfigError:
    """Return the error that says why a recipe's network cannot be built to the images."""
    channels, height, width = recipe.built_to or (1, 28, 28)
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    return ConfigError(
        f"data: the network of recipe {recipe.name} cannot be built to {kind} images of {height}x{width}: {error}; "
        "take another recipe, or another --image-size"
    )
