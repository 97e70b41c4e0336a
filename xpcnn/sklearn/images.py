"""From scikit-learn's X, rows of numbers or images, to images as a network's loader takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpcnn.data import Compose, Normalize, Pad
from xpcnn.data.transforms import COLOURS
from xpcnn.errors import ShapeError


def check_shape(given: Sequence[int], image_shape: Any) -> tuple[int, ...]:
    """Return the shape of one image for samples of shape `given`.

    Raises
    ------
    ShapeError
        `image_shape` is none, or holds another number of pixels.
    """
    if image_shape is None:
        if len(given) == 1:
            side = math.isqrt(given[0] - 1) + 1  # rows that make no square are filled up
            return side, side
        if len(given) > 3:
            raise ShapeError(f"X: expected (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C), got (N, {_listed(given)})")
        return tuple(given)
    try:
        shape = tuple(int(each) for each in image_shape)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ShapeError(f"image_shape: expected (H, W), (C, H, W) or (H, W, C), got {image_shape!r:.60}")
    if math.prod(shape) != math.prod(given):
        raise ShapeError(
            f"image_shape: expected {math.prod(given)} pixels, as each sample of X has, got {shape}: {math.prod(shape)}"
        )
    return shape


def lay_out(X: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return X as images (N, H, W) or (N, C, H, W).

    Raises
    ------
    ShapeError
        Its samples have another number of pixels.
    """
    count, pixels = len(X), math.prod(image_shape)
    if X.ndim == 2 and X.shape[1] < pixels:
        rows = np.zeros((count, pixels), X.dtype)
        rows[:, : X.shape[1]] = X
        X = rows
    if math.prod(X.shape[1:]) != pixels:
        raise ShapeError(f"X: expected samples of shape {image_shape} as in fit, got {X.shape[1:]}")
    images = X.reshape(count, *image_shape)
    return images.transpose(0, 3, 1, 2) if is_channels_last(image_shape) else images  # (N, C, H, W)


def fill_up(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return images with a row and a column of zeros more where only these let a border of equal sides reach `size`."""
    more = [(wanted - length) % 2 for wanted, length in zip(size, images.shape[-2:], strict=True)]
    if not any(more):
        return images
    return np.pad(images, [(0, 0)] * (images.ndim - 2) + [(0, each) for each in more])


def is_channels_last(image_shape: Sequence[int]) -> bool:
    """Say whether an image is stored as (H, W, C)."""
    return len(image_shape) == 3 and image_shape[2] in COLOURS and image_shape[0] not in COLOURS


def standardize(images: np.ndarray, size: tuple[int, int]) -> Compose:
    """Return what brings float images to mean 0 and deviation 1, over all pixels, in the middle of zeros of a size."""
    padding = tuple((wanted - length) // 2 for wanted, length in zip(size, images.shape[-2:], strict=True))
    mean = float(images.mean(dtype=np.float64))
    deviation = float(images.std(dtype=np.float64))
    scale = Normalize(mean, deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0)
    return Compose(scale, Pad(padding)) if any(padding) else Compose(scale)


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
