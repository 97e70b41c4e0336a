"""What images and labels must be, checked once on the host before anything is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.datasets.lazy import LazyImages
from xpcnn.errors import DataError, DTypeError, ShapeError

_ROW_SUM_TOLERANCE = 1e-3  # of probabilities, which may have been written as float16


def check_images(images: Any) -> Any:
    """Return `images` as a host array, `LazyImages` as they are, or raise the error that says what is wrong.

    Parameters
    ----------
    images : array_like
        Integers or floats of shape (N, H, W), (N, C, H, W) or (N, H, W, C), no axis empty.

    Raises
    ------
    ShapeError, DTypeError, DataError
        The rank or an axis, the type, or the number of images (none) is wrong.
    """
    array: Any = images if isinstance(images, LazyImages) else _host_array(images, "images")
    if array.ndim not in (3, 4):
        raise ShapeError(f"images: expected (N, H, W), (N, C, H, W) or (N, H, W, C), got {array.shape}; reshape them")
    if array.dtype.kind not in "iuf":
        raise DTypeError(f"images: expected integers or floats, got {array.dtype}; convert with .astype('uint8')")
    if len(array) == 0:
        raise DataError("images: expected at least one image, got none; check how the set was loaded or split")
    if 0 in array.shape:
        raise ShapeError(f"images: expected no empty axis, got shape {array.shape}; check how the set was loaded")
    return array


def check_labels(labels: Any, count: int, num_classes: int | None = None) -> np.ndarray:
    """Return `labels` as a host array, or raise the error that says what is wrong.

    Parameters
    ----------
    labels : array_like
        Class indices (N,), integers of 0 or more; or one-hot rows or probabilities (N, K) that sum to 1.
    count : int
        The number of images.
    num_classes : int, optional
        Where it is known, the indices must be below it, and K must equal it.

    Returns
    -------
    numpy.ndarray
        (N,) integers or (N, K) numbers, of the type given.

    Raises
    ------
    ShapeError, DTypeError, DataError
        The rank or length, the type, or a value is wrong.
    """
    array = _host_array(labels, "labels")
    if array.ndim not in (1, 2):
        raise ShapeError(f"labels: expected (N,) class indices or (N, K) probabilities, got shape {array.shape}")
    if len(array) != count:
        raise ShapeError(f"labels: expected one for each of the {count} images, got {len(array)}; pass matching arrays")
    if array.ndim == 2:
        return _check_rows(array, num_classes)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"labels: expected integers (N,), got {_describe(array)}; {_advice(array)}")
    wrong = array < 0 if num_classes is None else (array < 0) | (array >= num_classes)
    if wrong.any():
        bound = "of 0 or more" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise DataError(f"labels: expected class indices {bound}, got {array[wrong][0]} at index {wrong.argmax()}")
    return array


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype}" if array.dtype.kind in "biufc" else f"{type(array[0]).__name__}s such as {array[0]!r:.40}"


def _advice(array: np.ndarray) -> str:
    if array.dtype.kind in "biufc":
        return "convert with .astype('int64')"
    return "number the classes: classes, labels = numpy.unique(labels, return_inverse=True)"


def _check_rows(array: np.ndarray, num_classes: int | None) -> np.ndarray:
    if array.dtype.kind not in "iuf":
        raise DTypeError(f"labels: expected numbers in (N, K) rows, got {array.dtype}; convert with .astype('float32')")
    if array.shape[1] < 1 or num_classes not in (None, array.shape[1]):
        raise ShapeError(f"labels: expected rows of {num_classes or 'one or more'} classes, got shape {array.shape}")
    sums = array.sum(axis=1, dtype=np.float64)
    wrong = ~((array >= 0).all(axis=1) & (abs(sums - 1) <= _ROW_SUM_TOLERANCE))  # nan is wrong too
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"labels: expected rows of 0 or more that sum to 1, got the sum {sums[row]:.4g} in row {row}")
    return array


def _host_array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # ragged lists, a device's arrays
        raise DataError(f"{name}: expected an array on the host, got {type(values).__name__}: {error!s:.80}") from error
