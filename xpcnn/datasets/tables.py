"""Sets in one file: an .npz of arrays, and a table of text with one image a row."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpcnn.datasets.dataset import Dataset
from xpcnn.datasets.source import DEFLATE_RATIO, PathLike, Source, read_file, shown
from xpcnn.errors import ConfigError, DataError, XpcnnError

# Pairs of names under which sets are passed around: our own, Keras', MedMNIST's.
_WHOLE = (("images", "labels"), ("x", "y"), ("X", "y"), ("data", "labels"), ("data", "target"))
_PARTS = (
    (("x_train", "y_train"), ("x_val", "y_val"), ("x_test", "y_test")),
    (("train_images", "train_labels"), ("val_images", "val_labels"), ("test_images", "test_labels")),
)
_LABEL_NAMES = ("label", "class", "target", "y")
_HEADER_BYTES = 1 << 16  # of an array in an archive
_LARGEST_PIXEL = 255
_MOST_TEXT = 1 << 31  # bytes of a table, unpacked


def load_npz(path: PathLike, *, images: str | None = None, labels: str | None = None) -> Any:
    """Load images and labels from a NumPy archive.

    Parameters
    ----------
    path : str or os.PathLike
        An .npz file, compressed or not.
    images, labels : str, optional
        The names of the two arrays. By default `images` and `labels`, or `x` and `y`; or the parts of a set as Keras
        (`x_train`, `y_train`, `x_test`, `y_test`) and MedMNIST (`train_images`, `val_labels`, ...) name them.

    Returns
    -------
    Dataset, or tuple of Dataset
        One set, or (train, test), or (train, validation, test). Labels that are text get numbers in their order;
        `classes` then has their names.

    Raises
    ------
    DataError
        The file is missing or damaged, or has no arrays of these names, or they are not of the form of images and
        labels. Arrays of Python objects are refused: to read them would run code.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/a.npz", images=np.zeros((6, 28, 28), "uint8"), labels=np.arange(6))
    ...     pictures = datasets.load_npz(f"{folder}/a.npz")
    ...
    >>> pictures.images.shape
    (6, 28, 28)
    """
    archive = _Archive(path)
    if images is not None or labels is not None:
        return archive.dataset(images or "images", labels or "labels")
    for pair in _WHOLE:
        if archive.names.issuperset(pair):
            return archive.dataset(*pair)
    for parts in _PARTS:
        found = [pair for pair in parts if archive.names.issuperset(pair)]
        if parts[0] in found:
            train = archive.dataset(*found[0])
            return (train, *(archive.dataset(*pair, train.classes) for pair in found[1:])) if found[1:] else train
    raise DataError(
        f"{shown(path)}: expected arrays named images and labels, x and y, or x_train, y_train, ..., got "
        f"{', '.join(sorted(archive.names)) or 'none'}; name yours with images= and labels="
    )


class _Archive:
    """The arrays of an .npz file, none larger than what the file holds."""

    def __init__(self, path: PathLike) -> None:
        self.path = path
        content = read_file(path)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            other = Source(path, content).other_than("a NumPy archive (.npz)")
            raise other or DataError(f"{shown(path)}: not a NumPy archive (.npz), or a damaged one: {error}") from error
        self._limit = len(content) * DEFLATE_RATIO
        self.names = {name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")}

    def dataset(self, images: str, labels: str, classes: list[str] | None = None) -> Dataset:
        pixels, given = self._array(images), self._array(labels)
        if given.ndim == 2 and given.shape[1] == 1:  # as MedMNIST has them
            given = given[:, 0]
        try:
            numbers, classes = _numbered(given, classes)
            return Dataset(pixels, numbers, classes)
        except XpcnnError as error:
            raise DataError(f"{shown(self.path)}: {images} and {labels}: {error}") from error

    def _array(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise DataError(
                f"{shown(self.path)}: no array {name!r}, got {', '.join(sorted(self.names)) or 'none'}; "
                "images= and labels= name the two"
            )
        try:
            with self._zip.open(f"{name}.npy") as file:
                head = io.BytesIO(file.read(_HEADER_BYTES))
                version = np.lib.format.read_magic(head)
                reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, is_fortran, dtype = reader[version](head)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject:
                    raise DataError(
                        f"{shown(self.path)}: {name} holds Python objects, which are not read: save numbers"
                    )
                if size > self._limit:
                    raise ValueError(f"{size} bytes are declared, more than a file of this size can hold")
                content = head.read() + file.read(max(0, size - _HEADER_BYTES + head.tell()))
            if len(content) < size:
                raise ValueError(f"it ends {size - len(content)} bytes early")
            array = np.frombuffer(content, dtype, math.prod(shape))
        except DataError:
            raise
        except Exception as error:  # zlib.error, BadZipFile, KeyError of a version, ...
            raise DataError(f"{shown(self.path)}: {name} is damaged: {error!s:.80}; save or copy it again") from error
        return array.reshape(shape, order="F" if is_fortran else "C").copy()


def load_csv(path: PathLike, image_shape: Sequence[int], *, label: str | int | None = None) -> Dataset:
    """Load a table of text with one image a row: its pixels, and its label.

    Parameters
    ----------
    path : str or os.PathLike
        Values between commas (or semicolons or tabs), with or without a first row of names, gzipped or not.
    image_shape : sequence of int
        Of the pixels of a row: (H, W), (C, H, W) or (H, W, C).
    label : str or int, optional
        The column of the label, by its name or number. By default the one called label, class, target or y, else the
        first.

    Returns
    -------
    Dataset
        `images` uint8 where all pixels are integers from 0 to 255, else float32; `labels` int64. Labels that are text
        get numbers in their order; `classes` then has their names.

    Raises
    ------
    ConfigError
        `image_shape` is no shape of an image.
    DataError
        The file is missing, is not such a table, or a row has more or fewer columns than pixels and label; the message
        says which.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.csv").write_text("7,0,1,2,3")
    ...     pictures = datasets.load_csv(f"{folder}/a.csv", (2, 2), label=0)
    ...
    >>> pictures.images.shape, pictures.labels
    ((1, 2, 2), array([7]))
    """
    try:
        shape = tuple(int(n) for n in image_shape)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ConfigError(f"image_shape: expected (height, width) or three sizes, got {image_shape!r}")
    content = read_file(path, "table", _MOST_TEXT)
    source = Source(path, content)
    try:
        text = source.take_rest(min(_MOST_TEXT, DEFLATE_RATIO * len(content))).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise source.other_than("a table of text (CSV)") or DataError(f"{shown(path)}: not text: {error}") from error
    first = text[: text.find("\n") + 1 or None]
    delimiter = max(",;\t", key=first.count)
    names = next(csv.reader([first], delimiter=delimiter), [])
    wanted = math.prod(shape) + 1
    if len(names) != wanted:
        raise DataError(
            f"{shown(path)}: expected {wanted - 1} pixels of {shape} and a label in a row, got {len(names)} columns"
        )
    has_heading = not all(map(_is_number, names[1:-1] or names))
    at = _label_column(path, label, [name.strip().lower() for name in names] if has_heading else [], wanted)
    rows = io.StringIO(text[len(first) :] if has_heading else text)
    pixels, given = _parsed(path, rows, delimiter, at, wanted, has_heading)
    try:
        numbers, classes = _numbered(given, None)
        return Dataset(pixels.reshape(-1, *shape), numbers, classes)
    except XpcnnError as error:
        raise DataError(f"{shown(path)}: {error}") from error


def _label_column(path: PathLike, label: str | int | None, names: list[str], columns: int) -> int:
    if isinstance(label, str):
        if label.strip().lower() not in names:
            raise DataError(
                f"{shown(path)}: no column {label!r}; the first are {', '.join(names[:5]) or 'without names'}"
            )
        return names.index(label.strip().lower())
    if label is not None:
        if isinstance(label, bool) or not -columns <= label < columns:
            raise DataError(f"label: expected a column below {columns}, got {label!r}")
        return label % columns
    return next((names.index(name) for name in _LABEL_NAMES if name in names), 0)


def _parsed(
    path: PathLike, rows: io.StringIO, delimiter: str, at: int, columns: int, has_heading: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (N, columns - 1), as bytes where they are, and labels (N,), numbers or text."""
    if not rows.getvalue().strip():
        raise DataError(f"{shown(path)}: expected a row for each image, got none")
    labels: list[str] = []

    def without_label() -> Any:
        """Yield the rows, their labels taken out: each is read once, whatever its length."""
        for number, line in enumerate(rows, 2 if has_heading else 1):
            if not line.strip():
                continue
            cells = line.rstrip("\r\n").split(delimiter)
            if len(cells) != columns:
                raise DataError(f"{shown(path)}: row {number}: expected {columns} columns, got {len(cells)}")
            labels.append(cells.pop(at).strip().strip('"'))
            yield delimiter.join(cells)

    try:
        pixels = np.loadtxt(without_label(), np.float32, delimiter=delimiter, comments=None, ndmin=2)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{shown(path)}: expected numbers as pixels: {error!s:.100}") from error
    if not np.isfinite(pixels).all():
        raise DataError(f"{shown(path)}: expected finite pixels, got nan or infinity")
    is_bytes = pixels.max() > 1 and pixels.min() >= 0 and pixels.max() <= _LARGEST_PIXEL
    if is_bytes and bool((pixels == np.floor(pixels)).all()):
        pixels = pixels.astype(np.uint8)
    given = np.array(labels)
    whole = all(map(_is_whole, labels))
    return pixels, given.astype(np.float64).astype(np.int64) if whole else given


def _numbered(labels: np.ndarray, classes: list[str] | None) -> tuple[np.ndarray, list[str] | None]:
    """Return labels as numbers; for text, numbers of its sorted names, and the names."""
    if labels.dtype.kind not in "US":
        return labels, classes
    words = labels.astype(str)
    names = sorted(set(words.tolist())) if classes is None else classes
    strange = sorted(set(words.tolist()) - set(names))
    if strange:
        raise DataError(f"labels: expected the classes of the training part, got also {strange[0]!r}")
    return np.searchsorted(np.array(names), words).astype(np.int64), names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_whole(cell: str) -> bool:
    return _is_number(cell) and float(cell).is_integer()
