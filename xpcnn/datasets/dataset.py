"""A set of images with their labels: what every loader of a file returns, and how it is cut and joined."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpcnn.datasets.checks import check_images, check_labels
from xpcnn.datasets.lazy import LazyImages
from xpcnn.errors import DataError, DTypeError, ShapeError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their labels, equally many, on the host.

    Parameters
    ----------
    images : numpy.ndarray or LazyImages
        (N, H, W), (N, C, H, W) or (N, H, W, C), integers or floats.
    labels : numpy.ndarray
        Class indices (N,), or rows of probabilities (N, K).
    classes : list of str, optional
        The names of the classes, in the order of their indices; None where they have no others.
    paths : list of str, optional
        The file of each image; None where images have none of their own.

    Raises
    ------
    ShapeError, DTypeError, DataError
        The arrays are not of these forms, are empty, or differ in length.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> pictures = datasets.Dataset(np.zeros((6, 28, 28), "uint8"), np.arange(6) % 2, classes=["cat", "dog"])
    >>> pictures
    Dataset(6 images uint8 [28, 28], labels int64, 2 classes)
    >>> len(pictures.subset([0, 2]))
    2
    """

    images: Any  # numpy.ndarray or LazyImages
    labels: np.ndarray
    classes: list[str] | None = None
    paths: list[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", check_images(self.images))
        number = None if self.classes is None else len(self.classes)
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.images), number))
        if self.paths is not None and len(self.paths) != len(self.images):
            raise ShapeError(f"paths: expected one for each of the {len(self.images)} images, got {len(self.paths)}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = list(self.images.shape[1:])
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"Dataset({len(self)} images {self.images.dtype} {shape}, labels {self.labels.dtype}{classes})"

    def subset(self, indices: Any) -> Dataset:
        """Return the images at `indices` (integers, booleans or a slice), in that order."""
        chosen = indices if isinstance(indices, slice) else np.asarray(indices)
        try:
            images = self.images.subset(chosen) if isinstance(self.images, LazyImages) else self.images[chosen]
            paths = None if self.paths is None else [self.paths[i] for i in np.arange(len(self))[chosen]]
            return Dataset(images, self.labels[chosen], self.classes, paths)
        except IndexError as error:
            raise DataError(f"indices: expected integers below {len(self)} or {len(self)} booleans: {error}") from error

    def split(self, first: int) -> tuple[Dataset, Dataset]:
        """Return the first `first` images and the rest, as views of the same memory."""
        start, rest = split(self, first, len(self) - first)
        return start, rest


def split(dataset: Dataset, *sizes: int) -> tuple[Dataset, ...]:
    """Cut a set, in its order, into parts that never overlap.

    Parameters
    ----------
    dataset : Dataset
        The set to cut.
    *sizes : int
        The number of images in each part, each at least 1; together exactly `len(dataset)`.

    Returns
    -------
    tuple of Dataset
        One part for each size, as views of the same memory.

    Raises
    ------
    DataError
        The sizes do not add up, or one is below 1.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> pictures = datasets.Dataset(np.zeros((6, 28, 28), "uint8"), np.arange(6))
    >>> [len(part) for part in datasets.split(pictures, 4, 2)]
    [4, 2]
    """
    if min(sizes, default=0) < 1 or sum(sizes) != len(dataset):
        raise DataError(f"sizes: expected sizes of 1 or more that add up to {len(dataset)}, got {sizes}")
    ends = np.cumsum(sizes).tolist()
    return tuple(dataset.subset(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True))


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """Join sets of equal image and label forms, one after the other, into a new one.

    Raises
    ------
    ShapeError
        There is no set, or the shapes of images or labels differ.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> pictures = datasets.Dataset(np.zeros((6, 28, 28), "uint8"), np.arange(6))
    >>> len(datasets.concatenate([pictures, pictures]))
    12
    """
    kinds = {(each.images.shape[1:], each.labels.shape[1:]) for each in datasets}
    if len(kinds) != 1:
        raise ShapeError(f"datasets: expected one or more of equal image and label shapes, got {sorted(kinds)}")
    if any(each.classes != datasets[0].classes for each in datasets):
        raise DataError("datasets: expected sets of the same classes; load them together, or leave the names out")
    images, labels = ([getattr(each, name) for each in datasets] for name in ("images", "labels"))
    paths = [path for each in datasets for path in each.paths or ()]
    whole = len(paths) == sum(map(len, datasets))
    return Dataset(
        np.concatenate(images), np.concatenate(labels), datasets[0].classes, paths if whole and paths else None
    )


def fingerprint(*datasets: Dataset) -> str:
    """Return what tells sets of different contents apart, wherever their files lie: a SHA-256."""
    digest = hashlib.sha256()
    for each in datasets:
        if isinstance(each.images, LazyImages):  # their files, for to read them all would take long
            stamps = [(os.path.basename(path), os.path.getsize(path)) for path in each.paths or ()]
            digest.update(f"{each.images.shape} {stamps}".encode())
        arrays = [each.labels] if isinstance(each.images, LazyImages) else [each.images, each.labels]
        for array in arrays:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def to_categorical(labels: Any, num_classes: int) -> np.ndarray:
    """Return class indices as one-hot rows.

    Parameters
    ----------
    labels : array_like
        (N,) integers from 0 to `num_classes` - 1.
    num_classes : int
        The number of columns.

    Returns
    -------
    numpy.ndarray
        float32 (N, num_classes): 1 in the label's column, 0 elsewhere.

    Raises
    ------
    ShapeError, DTypeError, DataError
        `labels` is not one axis of integers in that range.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> datasets.to_categorical([0, 2], 3)
    array([[1., 0., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    indices = np.asarray(labels)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 1:
        raise DTypeError(f"num_classes: expected an integer of 1 or more, got {num_classes!r}")
    if indices.ndim != 1:
        raise ShapeError(f"labels: expected class indices (N,), got shape {indices.shape}")
    indices = check_labels(indices, len(indices), int(num_classes))
    rows = np.zeros((len(indices), num_classes), np.float32)
    rows[np.arange(len(indices)), indices] = 1
    return rows
