"""MNIST: the four IDX files that lie in this folder, and the `mnist.pkl.gz` that older programs pass around."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from typing import Any

import numpy as np

from xpcnn.datasets.checks import check_labels
from xpcnn.datasets.dataset import Dataset
from xpcnn.datasets.formats import describe
from xpcnn.datasets.idx import read_idx
from xpcnn.datasets.source import PathLike, Source, read_file
from xpcnn.datasets.unpickle import integers, unpickle
from xpcnn.errors import DataError, XpcnnError

# Of the gzipped files; LICENSE has those of the originals inside.
SHA256 = {
    "train-images-idx3-ubyte.gz": "2ce76402208db033b8fb8adf154377f167e6ad5549666edae1721ad0044d194e",
    "train-labels-idx1-ubyte.gz": "a39e25d76989c6c8bb91e9bd7c63daa3ab0b57c11d59bdca6116c4cf9f9fbfc5",
    "t10k-images-idx3-ubyte.gz": "cd0584269ee376ff86e8473f5a760b60cfd49a36916034774e6fbb1c1c576020",
    "t10k-labels-idx1-ubyte.gz": "13b77ae552e5a3dc842ae163cbeab0da18822ff4b77a4a37a18414cc1c6110fe",
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
        A file is not the one that was packed (SHA-256).

    Examples
    --------
    >>> from xpcnn import datasets
    >>> train, test = datasets.load_mnist()
    >>> train.images.shape, str(train.images.dtype), test.labels[:5]
    ((60000, 28, 28), 'uint8', array([7, 2, 1, 0, 4], dtype=uint8))
    """
    train, test = (
        Dataset(_carried(f"{part}-images-idx3-ubyte.gz"), _carried(f"{part}-labels-idx1-ubyte.gz"))
        for part in ("train", "t10k")
    )
    return train, test


def _carried(name: str) -> np.ndarray:
    # Not by its path: the package may lie in a zip file.
    content = importlib.resources.files(__package__).joinpath(name).read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise DataError(f"{name}: the package's copy is damaged (SHA-256); install xpcnn again")
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
    if (found := describe(source.start())) not in (None, "a pickle"):
        raise source.other_than("mnist.pkl.gz, gzipped or not") or DataError(f"{source.name}: got {found}")
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
