"""Where a recipe's data comes from: the carried MNIST, or a folder or file that the user names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xpcnn.datasets import Dataset, concatenate, load_cifar10, load_idx, load_mnist, load_mnist_pickle
from xpcnn.datasets.checks import check_labels
from xpcnn.errors import DataError

_CIFAR = ("data_batch_1", "data_batch_1.bin", "cifar-10-batches-py", "cifar-10-batches-bin")
_IMAGE = {"mnist": (28, 28), "cifar10": (3, 32, 32)}
_CLASSES = 10


def load(data: str | None, kinds: Iterable[str], recipe: str) -> tuple[str, Dataset, Dataset]:
    """Return (kind, training set, test set) of `data`.

    Parameters
    ----------
    data : str or None
        None or "mnist": the carried MNIST. A folder: the four IDX files of MNIST, raw or gzipped, or CIFAR-10's
        batches. A file: `mnist.pkl.gz`.
    kinds : iterable of str
        What the recipe takes, of "mnist" and "cifar10".
    recipe : str
        How an error calls the recipe.

    Raises
    ------
    DataError
        The data is not there, is damaged, or is not of a kind that the recipe takes.
    """
    kind, train, test = _load(data)
    kinds = list(kinds)
    if kind not in kinds:
        raise DataError(
            f"data: recipe {recipe} takes {' or '.join(kinds)}, got {kind} in {data}; three-layer takes both"
        )
    for part in (train, test):
        if part.images.shape[1:] != _IMAGE[kind]:
            raise DataError(f"{data}: expected {kind} images of shape {_IMAGE[kind]}, got {part.images.shape[1:]}")
        check_labels(part.labels, len(part), _CLASSES)
    return kind, train, test


def _load(data: str | None) -> tuple[str, Dataset, Dataset]:
    if data in (None, "mnist"):
        return "mnist", *load_mnist()
    place = Path(os.fspath(data or ""))
    if not place.exists():
        if data in ("cifar10", "cifar-10"):
            raise DataError(
                "data: CIFAR-10 is not carried: fetch cifar-10-python.tar.gz from "
                "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and name the folder: --data FOLDER"
            )
        raise DataError(f"data: expected mnist, or a folder or file that is there, got {data!r}")
    if place.is_file():
        train, validation, test = load_mnist_pickle(place)
        return "mnist", concatenate([train, validation]), test
    if any((place / name).exists() for name in _CIFAR):
        return "cifar10", *load_cifar10(place)
    if not any(place.glob("*-ubyte*")):
        raise DataError(f"{place}: expected MNIST's four IDX files or CIFAR-10's batches in this folder, got neither")
    return "mnist", _idx(place, "train"), _idx(place, "t10k")


def _idx(place: Path, part: str) -> Dataset:
    return Dataset(*(load_idx(_either(place / f"{part}-{what}-ubyte")) for what in ("images-idx3", "labels-idx1")))


def _either(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.exists() else path
