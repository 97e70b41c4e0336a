"""IDX, the format of the MNIST files: a magic number, the sizes of the axes, the numbers in C order, big-endian."""

from __future__ import annotations

import math
import struct

import numpy as np

from xpcnn.datasets.source import PathLike, Source, read_file

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_AXES = 8  # one byte could declare 255; NumPy has 64, images have 3 or 4


def load_idx(path: PathLike) -> np.ndarray:
    """Load an IDX file, raw or gzipped.

    Parameters
    ----------
    path : str or os.PathLike
        The file. Gzip is known by its content, not by its name.

    Returns
    -------
    numpy.ndarray
        The shape and type that the file declares: uint8, int8, int16, int32, float32 or float64, in native byte order.

    Raises
    ------
    DataError
        The file is missing, is not IDX, is truncated, goes on after its data, or declares more than it holds. Nothing
        beyond what the file's own size justifies is ever allocated.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", section "File formats".

    Examples
    --------
    >>> from xpcnn import datasets
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     labels = datasets.load_idx(f"{folder}/labels-idx1-ubyte")
    ...
    >>> labels
    array([7, 2, 1], dtype=uint8)
    """
    return read_idx(Source(path, read_file(path))).copy()


def read_idx(source: Source) -> np.ndarray:
    """Read the one array of an IDX file to the file's end; it may be a read-only view of what was read."""
    zeros, code, axes = struct.unpack(">HBB", source.take(4))
    if zeros or code not in _DTYPES or not 1 <= axes <= _MAX_AXES:
        raise source.other_than("an IDX file, raw or gzipped") or source.damaged(
            f"expected an IDX file's magic number, got {zeros:04x}{code:02x}{axes:02x}"
        )
    shape = struct.unpack(f">{axes}I", source.take(4 * axes))
    dtype = np.dtype(_DTYPES[code])
    content = source.take(math.prod(shape) * dtype.itemsize)
    source.finish()
    try:
        return np.ndarray(shape, dtype, content).astype(dtype.newbyteorder("="), copy=False)
    except ValueError as error:  # axes that no array can have, such as (0, 2**32 - 1, 2**32 - 1)
        raise source.damaged(f"it declares the shape {shape}") from error
