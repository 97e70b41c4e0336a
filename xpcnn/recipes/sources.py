"""Where a recipe's data comes from: the carried MNIST, or a folder or file that the user names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from xpcnn.datasets import Dataset, concatenate, load_cifar10, load_mnist, load_mnist_pickle
from xpcnn.datasets.checks import check_labels
from xpcnn.datasets.formats import describe
from xpcnn.datasets.mnist.folder import find_sets, load_mnist_folder
from xpcnn.datasets.source import Source, look_at, read_file, shown
from xpcnn.datasets.tree import has_pictures
from xpcnn.errors import ConfigError, DataError
from xpcnn.recipes.pictures import KIND, Pictures, load_pictures

_CIFAR = ("data_batch_1", "data_batch_1.bin", "cifar-10-batches-py", "cifar-10-batches-bin")
_IMAGE = {"mnist": (28, 28), "cifar10": (3, 32, 32)}
MOST_CLASSES = 1000
_TAKEN = (
    "mnist, a folder with one sub-folder of pictures a class, of MNIST's four IDX files or of CIFAR-10's batches, an "
    ".npz file or mnist.pkl.gz"
)


class Loaded(NamedTuple):
    """The kind of data and its parts, as the files have them."""

    kind: str
    train: Dataset
    test: Dataset
    validation: Dataset | None = None


def load(data: str | None, kinds: Iterable[str], recipe: str, pictures: Pictures | None = None) -> Loaded:
    """Return the sets of `data`.

    Parameters
    ----------
    data : str or None
        None or "mnist": the carried MNIST. A folder: the four IDX files of MNIST, EMNIST and the like
        (`load_mnist_folder`), or CIFAR-10's batches. A file: `mnist.pkl.gz`.
    kinds : iterable of str
        What the recipe takes, of "mnist" and "cifar10".
    recipe : str
        How an error calls the recipe.
    pictures : Pictures, optional
        How pictures of the user's own are read; without it they are refused.

    Raises
    ------
    DataError
        The data is not there, is damaged, or is not of a kind that the recipe takes.
    """
    loaded = _load(data, pictures)
    kind, train, test, _ = loaded
    kinds = list(kinds)
    for part in (train, test):
        check_labels(part.labels, len(part), MOST_CLASSES)
    if kind == KIND:
        return loaded
    if pictures is not None and pictures.image_size is not None:
        raise ConfigError(f"image_size: expected it with a folder of pictures alone, got it with {kind}")
    if pictures is not None and (kind not in kinds or train.images.shape[1:] != _IMAGE[kind]):
        return loaded._replace(kind=KIND)  # the network is built to them
    if kind not in kinds:
        raise DataError(
            f"data: recipe {recipe} takes {' or '.join(kinds)}, got {kind} in {data}; three-layer takes both"
        )
    for part in (train, test):
        if part.images.shape[1:] != _IMAGE[kind]:
            raise DataError(f"{data}: expected {kind} images of shape {_IMAGE[kind]}, got {part.images.shape[1:]}")
    return loaded


def is_set(folder: str) -> bool:
    """Say whether a folder holds MNIST's files, or files like them, or CIFAR-10's."""
    return any(look_at(Path(folder) / name) for name in _CIFAR) or bool(find_sets(folder))


def count_classes(least: int, *parts: Dataset) -> int:
    """Return how many classes the labels of a set have: one more than the highest, and no fewer than `least`."""
    return max(least, *(int(part.labels.max()) + 1 for part in parts))


def is_named(data: str) -> bool:
    """Say whether `data` is a place in the file system: a file, a folder, or FOLDER/NAME-OF-SET."""
    parent = os.path.dirname(data)
    return bool(look_at(data)) or (parent != "" and look_at(parent) == "folder" and bool(_set_of(data)))


def _set_of(data: str) -> bool:
    return os.path.basename(data).lower() in {name or "mnist" for name in find_sets(os.path.dirname(data))}


def _load(data: str | None, pictures: Pictures | None) -> Loaded:
    if data in (None, "mnist"):
        return Loaded("mnist", *load_mnist())
    place = Path(os.fspath(data or ""))
    found = look_at(place)
    if not found and is_named(str(data)):
        return Loaded("mnist", *load_mnist_folder(place))
    if not found:
        if data in ("cifar10", "cifar-10"):
            raise DataError(
                "data: CIFAR-10 is not carried: fetch cifar-10-python.tar.gz from "
                "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and name the folder: --data FOLDER"
            )
        raise DataError(
            f"data: expected mnist, or a folder or file that is there, got {shown(str(data))!r}; "
            "where the data of a run has moved, --data says where it is now"
        )
    if found != "folder":
        source = Source(place, read_file(place))
        if pictures is not None and describe(source.start()) == "a NumPy archive (.npz)":
            return _pictures(place, pictures)
        if describe(source.start()) not in (None, "a pickle"):
            raise source.other_than(_TAKEN) or DataError(f"{shown(place)}: expected {_TAKEN}")
        train, validation, test = load_mnist_pickle(place)
        return Loaded("mnist", concatenate([train, validation]), test)
    if any(look_at(place / name) for name in _CIFAR):
        return Loaded("cifar10", *load_cifar10(place))
    if not find_sets(place):
        if pictures is not None and has_pictures(place):
            return _pictures(place, pictures)
        raise DataError(f"{shown(place)}: expected {_TAKEN}; {_contents(place)}")
    return Loaded("mnist", *load_mnist_folder(place))


def _pictures(place: Path, options: Pictures) -> Loaded:
    train, validation, test = load_pictures(place, options)
    return Loaded(KIND, train, test, validation)


def _contents(place: Path) -> str:
    """Say what a folder holds, without its names: what somebody took for data."""
    kinds: Counter[str] = Counter()
    with os.scandir(place) as entries:
        for entry, _ in zip(entries, range(10_000), strict=False):
            kinds["folders" if entry.is_dir() else f"{os.path.splitext(entry.name)[1].lower() or 'other'} files"] += 1
    if not kinds:
        return "the folder is empty"
    return "got a folder of " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(4))
