"""CIFAR-10 from a folder of the user's: the pickled batches or the binary ones, as its authors published them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.datasets.checks import check_labels
from xpcnn.datasets.dataset import Dataset, concatenate
from xpcnn.datasets.source import PathLike, look_at, read_file
from xpcnn.datasets.unpickle import integers, unpickle
from xpcnn.errors import DataError, XpcnnError

_PICKLED = {  # size and MD5 of the members of cifar-10-python.tar.gz
    "data_batch_1": (31035704, "c99cafc152244af753f735de768cd75f"),
    "data_batch_2": (31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
    "data_batch_3": (31035999, "54ebc095f3ab1f0389bbae665268c751"),
    "data_batch_4": (31035696, "634d18415352ddfa80567beed471001a"),
    "data_batch_5": (31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
    "test_batch": (31035526, "40351d587109b95175f43aff81a1287e"),
}
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_CLASSES = 10


def load_cifar10(folder: PathLike) -> tuple[Dataset, Dataset]:
    """Load CIFAR-10 from its six batch files.

    Parameters
    ----------
    folder : str or os.PathLike
        The folder that holds data_batch_1 ... data_batch_5 and test_batch (pickled), or the same names ending in .bin
        (binary); or the folder above it, that is, the one in which the archive was unpacked.

    Returns
    -------
    train, test : Dataset
        `images` uint8 (N, 3, 32, 32), `labels` uint8 (N,) from 0 to 9; 50,000 and 10,000 in the original.

    Raises
    ------
    DataError
        A file is missing, damaged or not of this form. A pickled file of the original's size must have its MD5; a
        smaller set of one's own is checked by its form. Binary batches must be equally long. Pickles are read by
        `xpcnn.datasets.unpickle`, which can run nothing.

    References
    ----------
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.
    """
    place, suffix = _find(Path(folder))
    read = _read_binary if suffix else _read_pickled
    batches = [read(place / f"{name}{suffix}") for name in _PICKLED]
    lengths = [len(batch) for batch in batches]
    if suffix and len(set(lengths)) != 1:  # a binary file cut short between two records shows it in no other way
        raise DataError(f"{place}: expected batches of equal length, got {lengths}; unpack the archive again")
    return concatenate(batches[:-1]), batches[-1]


def _find(folder: Path) -> tuple[Path, str]:
    """Return where the batches lie and what their names end in."""
    for inner, suffix in (("cifar-10-batches-py", ""), ("cifar-10-batches-bin", ".bin")):
        for place in (folder, folder / inner):
            missing = [f"{name}{suffix}" for name in _PICKLED if not look_at(place / f"{name}{suffix}")]
            if not missing:
                return place, suffix
            if len(missing) < len(_PICKLED):
                raise DataError(f"{place}: {', '.join(missing)} missing; unpack the CIFAR-10 archive again")
    raise DataError(
        f"{folder}: no CIFAR-10 batches here; fetch cifar-10-python.tar.gz or cifar-10-binary.tar.gz (University of "
        f"Toronto, the CIFAR-10 page), unpack it in this folder and pass the folder"
    )


def _read_pickled(path: Path) -> Dataset:
    content = read_file(path)
    size, checksum = _PICKLED[path.name]
    if len(content) == size and hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
        raise DataError(f"{path}: differs from the original (MD5), though it has its size; unpack the archive again")
    batch = unpickle(content, str(path))
    if not isinstance(batch, dict):
        raise DataError(f"{path}: expected a dict of data and labels, got {type(batch).__name__}; unpack it again")
    return _checked(path, batch.get("data"), batch.get("labels"))


def _read_binary(path: Path) -> Dataset:
    content = read_file(path)
    if not content or len(content) % (1 + _PIXELS):
        raise DataError(f"{path}: expected records of {1 + _PIXELS} bytes, got {len(content)} bytes; unpack it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)  # (N, 1 + 3072)
    return _checked(path, records[:, 1:], records[:, 0])


def _checked(path: Path, data: Any, labels: Any) -> Dataset:
    """Return a batch whose every number has been looked at."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise DataError(f"{path}: expected data uint8 (N, {_PIXELS}); unpack the archive again")
    try:
        labels = check_labels(integers(labels), len(data), _CLASSES).astype(np.uint8)
        return Dataset(data.reshape(-1, *_SHAPE), labels)  # (N, 3, 32, 32)
    except XpcnnError as error:
        raise DataError(f"{path}: {error}; unpack the archive again") from error
