"""MNIST: the four IDX files that lie in this folder, and the `mnist.pkl.gz` that older programs pass around."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.datasets.checks import check_labels
from xpcnn.datasets.dataset import Dataset
from xpcnn.datasets.idx import read_idx
from xpcnn.datasets.source import PathLike, Source, read_file
from xpcnn.datasets.unpickle import integers, unpickle
from xpcnn.errors import DataError, XpcnnError

SHA256 = {
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}
_PICKLE_LIMIT = 1 << 30  # bytes unpacked; the original's 70,000 images of float32 are 220 MB, as text 800 MB
_PICKLE_RATIO, _PICKLE_SLACK = 100, 1 << 24  # and bytes unpacked per byte of the file; the original has 14, as text 50


@functools.cache
def load_mnist() -> tuple[Dataset, Dataset]:
    """Return MNIST's 60,000 training and 10,000 test images, which the package carries: no network, no download.

    Returns
    -------
    train, test : Dataset
        `images` uint8 (N, 28, 28), white on black, and `labels` uint8 (N,) from 0 to 9, in the order of the files. The
        arrays are shared by all callers of a process and therefore read-only: `.copy()` gives one of your own.

    Raises
    ------
    DataError
        A file differs from the original (SHA-256).
    """
    train, test = (
        Dataset(_carried(f"{part}-images-idx3-ubyte.gz"), _carried(f"{part}-labels-idx1-ubyte.gz"))
        for part in ("train", "t10k")
    )
    return train, test


def _carried(name: str) -> np.ndarray:
    content = read_file(Path(__file__).with_name(name))
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise DataError(f"{name}: the package's copy differs from the original (SHA-256); install xpcnn again")
    array = read_idx(Source(name, content))
    array.flags.writeable = False
    return array


def load_mnist_pickle(path: PathLike) -> tuple[Dataset, Dataset, Dataset]:
    """Load `mnist.pkl.gz`: ((x, y), (x, y), (x, y)) as Python 2 or 3 pickled it, gzipped or not.

    The pickle is read by `xpcnn.datasets.unpickle`, which builds arrays and can run nothing.

    Returns
    -------
    train, validation, test : Dataset
        `images` float (N, 28, 28) in [0, 1] of the type in the file (float32 in the original, of 50,000, 10,000 and
        10,000 images), `labels` integers (N,).

    Raises
    ------
    DataError
        The file is missing or damaged, holds anything but plain data, or is not of this form.
    """
    content = read_file(path)
    source = Source(path, content)
    limit = min(_PICKLE_LIMIT, _PICKLE_SLACK + _PICKLE_RATIO * len(content))
    parts = unpickle(source.take_rest(limit), source.name)
    if not isinstance(parts, tuple | list) or len(parts) != 3:
        raise DataError(f"{source.name}: expected ((x, y), (x, y), (x, y)) as in mnist.pkl.gz, got another object")
    train, validation, test = (_pickled_part(source.name, part) for part in parts)
    return train, validation, test


def _pickled_part(name: str, part: Any) -> Dataset:
    images, labels = part if isinstance(part, tuple | list) and len(part) == 2 else (None, None)
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f" or images.shape[1:] != (28 * 28,):
        raise DataError(f"{name}: expected images of floats (N, 784) and labels (N,) as in mnist.pkl.gz")
    if not (images >= 0).all() or not (images <= 1).all():  # nan is neither
        raise DataError(f"{name}: expected pixels from 0 to 1; the file is damaged or not mnist.pkl.gz")
    try:
        return Dataset(images.reshape(-1, 28, 28), check_labels(integers(labels), len(images), 10))
    except XpcnnError as error:
        raise DataError(f"{name}: {error}") from error
