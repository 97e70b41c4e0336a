"""MNIST's four IDX files wherever and under whatever names they lie: part, kind and axes tell them apart."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from xpcnn.datasets.dataset import Dataset
from xpcnn.datasets.idx import read_idx
from xpcnn.datasets.source import PathLike, Source, look_at, read_file, shown
from xpcnn.errors import DataError, XpcnnError

_NAME = re.compile(
    r"(?P<set>.*?)[-_. ]?(?P<part>train|t10k|test)[-_. ](?P<kind>images|labels)[-_. ]idx(?P<axes>[13])"
    r"[-_. ]?ubyte(?P<zipped>\.gz)?",
    re.IGNORECASE,
)
_PARTS = {"train": "train", "t10k": "test", "test": "test"}
_AXES = {"images": "3", "labels": "1"}
_WANTED = [(part, kind) for part in ("train", "test") for kind in ("images", "labels")]
_DEPTH = 3  # folders below the one named
_MOST_FOLDERS = 200  # looked into, so that nobody's home directory is searched through
_TRANSPOSED = "emnist"  # the authors of EMNIST stored the pixels column by column

Files = dict[tuple[str, str], Path]


def find_sets(folder: PathLike) -> dict[str, Files]:
    """Return the IDX files in and below a folder by the name of their set: "" for MNIST's own, "emnist-digits".

    Raises
    ------
    DataError
        The folder cannot be read.
    """
    place = Path(folder)
    sets: dict[str, Files] = defaultdict(dict)
    for looked, (here, folders, names) in enumerate(os.walk(place, onerror=_refuse)):
        if looked >= _MOST_FOLDERS or len(Path(here).relative_to(place).parts) >= _DEPTH:
            folders.clear()
        folders.sort()
        # Gzipped ones first, and those above before those below: the first of a kind stays.
        for name in sorted(names, key=lambda name: (not name.lower().endswith(".gz"), name)):
            found = _NAME.fullmatch(name)
            if found and _AXES[found["kind"].lower()] == found["axes"]:
                key = _PARTS[found["part"].lower()], found["kind"].lower()
                sets[found["set"].lower()].setdefault(key, Path(here) / name)
    return dict(sets)


def load_mnist_folder(folder: PathLike) -> tuple[Dataset, Dataset]:
    """Load the training and test set from IDX files of MNIST, Fashion-MNIST, EMNIST and the like.

    Parameters
    ----------
    folder : str or os.PathLike
        The folder that holds the four files, raw or gzipped, or one above it; `train-images-idx3-ubyte`,
        `train-images.idx3-ubyte`, `TEST-labels-idx1-ubyte.gz`, `emnist-letters-train-images-idx3-ubyte` are all read.
        Where several sets lie there, FOLDER/NAME-OF-SET chooses one. EMNIST's pictures are transposed.

    Returns
    -------
    train, test : Dataset
        `images` uint8 (N, H, W) or float (N, H, W) in [0, 1], and `labels` integers (N,).

    Raises
    ------
    DataError
        A file is missing (the message says what was found), is not of this form, or does not fit its labels.
    """
    place = Path(folder)
    wanted = None
    if look_at(place) != "folder":  # FOLDER/NAME-OF-SET
        place, wanted = place.parent, place.name.lower()
    sets = find_sets(place)
    if wanted is None and len(sets) > 1:
        whole = [name for name, files in sets.items() if len(files) == len(_WANTED)]
        if len(whole) != 1:
            names = ", ".join(sorted(name or "mnist" for name in sets))
            raise DataError(f"{shown(place)}: several sets lie here: {names}; choose one as {place.name}/NAME")
        wanted = whole[0]
    name = next(iter(sets), "") if wanted is None else wanted
    files = sets.get(name) or sets.get("" if name == "mnist" else name, {})
    missing = [f"{part} {kind}" for part, kind in _WANTED if (part, kind) not in files]
    if missing:
        found = ", ".join(sorted(path.name for path in files.values())) or "none"
        raise DataError(
            f"{shown(place)}: expected MNIST's four IDX files, got {found}; {', '.join(missing)} missing: names like "
            "train-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"
        )
    transposed = name.startswith(_TRANSPOSED)
    train, test = (_load(files[part, "images"], files[part, "labels"], transposed) for part in ("train", "test"))
    return train, test


def _load(images: Path, labels: Path, transposed: bool) -> Dataset:
    pixels = read_pixels(images)
    if transposed:
        pixels = np.ascontiguousarray(pixels.swapaxes(1, 2))  # (N, W, H) -> (N, H, W)
    try:
        return Dataset(pixels, read_idx(Source(labels, read_file(labels))))
    except XpcnnError as error:
        if str(labels) in str(error):
            raise
        raise DataError(f"{shown(labels)} for {images.name}: {error}") from error


def read_pixels(path: PathLike) -> np.ndarray:
    """Return the images of an IDX file: bytes, or floats from 0 to 1.

    Raises
    ------
    DataError
        The file is none, has not three axes, or its numbers are no pixels.
    """
    pixels = read_idx(Source(path, read_file(path)))
    if pixels.ndim != 3 or not pixels.size:
        raise DataError(f"{shown(path)}: expected images (N, H, W), got shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:  # nan is neither
        return pixels
    if low >= 0 and high <= 255:
        whole = pixels.dtype.kind == "i" or bool((pixels == np.floor(pixels)).all())
        return pixels.astype(np.uint8) if whole else pixels / pixels.dtype.type(255)
    raise DataError(
        f"{shown(path)}: expected pixels as bytes, or as numbers from 0 to 255 or floats from 0 to 1, got "
        f"{pixels.dtype} from {low} to {high}; scale them"
    )


def _refuse(error: OSError) -> None:
    if not isinstance(error, PermissionError):
        raise DataError(f"{shown(error.filename)}: cannot be read: {error.strerror}") from error
