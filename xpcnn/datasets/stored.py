"""Pictures as people have them (files, PIL images, arrays) brought to images as a set stores them, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from xpcnn.backend import backend_of
from xpcnn.datasets.image import digit_of, load_image
from xpcnn.datasets.lazy import usable_cores
from xpcnn.datasets.pictures import FITS, MODES, BrokenPicture, convert, load_picture, pillow
from xpcnn.errors import ConfigError, DataError, ShapeError

MODE_OF = {channels: mode for mode, channels in MODES.items()}
DIGIT = (28, 28)  # of MNIST
_LARGEST = 1 << 26  # numbers of an image
Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class Stored:
    """How one image is stored, and so how a picture is brought there.

    Attributes
    ----------
    image_shape : tuple of int or None
        (H, W), (C, H, W), (H, W, C) or (D,); None in it for a size that may be any, None for it where nothing is known.
    fit : str
        What happens to a picture of another shape, as for `load_folder`.
    digits : bool
        Pictures are photographs of digits, of which MNIST's form is made (`load_image`).

    Raises
    ------
    ConfigError
        One is none of these.
    """

    image_shape: Sizes | None = None
    fit: str = "crop"
    digits: bool = False

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ConfigError(f"fit: expected one of {', '.join(FITS)}, got {self.fit!r:.40}")
        if not isinstance(self.digits, bool):
            raise ConfigError(f"digits: expected True or False, got {self.digits!r:.40}")
        given: Any = DIGIT if self.digits and self.image_shape is None else self.image_shape
        if given is None:
            return
        if not isinstance(given, (list, tuple)):
            raise ConfigError(f"image_shape: expected (H, W), (C, H, W) or (H, W, C), got {given!r:.40}")
        shape = tuple(each.item() if hasattr(each, "item") else each for each in given)
        numbers = [each for each in shape if each is not None]
        if not 1 <= len(shape) <= 3 or not all(type(each) is int and 1 <= each <= _LARGEST for each in numbers):
            raise ConfigError(f"image_shape: expected (H, W), (C, H, W) or (H, W, C), got {shape!r:.60}")
        if np.prod(numbers, dtype=float) > _LARGEST:
            raise ConfigError(f"image_shape: expected at most {_LARGEST} numbers, got {shape}")
        object.__setattr__(self, "image_shape", shape)

    @property
    def channels_last(self) -> bool:
        """Whether images are stored as (H, W, C)."""
        shape = self.image_shape
        return shape is not None and len(shape) == 3 and shape[2] in MODE_OF and shape[0] not in MODE_OF

    @property
    def channels(self) -> int | None:
        """Channels of an image; None where they may be any."""
        if self.image_shape is None or len(self.image_shape) == 1:
            return None
        if len(self.image_shape) == 2:
            return 1
        return self.image_shape[2 if self.channels_last else 0]

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W); None where they may be any."""
        if self.image_shape is None or len(self.image_shape) == 1:
            return None
        shape = self.image_shape
        height, width = shape if len(shape) == 2 else shape[:2] if self.channels_last else shape[1:]
        return None if height is None or width is None else (height, width)

    def batches(self, images: Any, size: int) -> Iterator[np.ndarray]:
        """Yield images (n, ...) as stored, at most `size` at a time and of one shape, in their order.

        Parameters
        ----------
        images : path, PIL image, array, or sequence of any of these
        size : int

        Raises
        ------
        DataError, ShapeError
            A picture cannot be read; an array is no image of this form, nor a picture of bytes.
        """
        if _is_array(images):
            images = self._split(_on_host(images))
        elif isinstance(images, (str, bytes, PathLike)) or _is_picture(images):
            images = [images]
        if isinstance(images, np.ndarray):
            for start in range(0, len(images), size):
                yield images[start : start + size]
            return
        if not isinstance(images, Sequence):
            try:
                images = list(images)
            except TypeError:
                raise DataError(f"images: expected paths, PIL images or arrays, got {type(images).__name__}") from None
        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(images), size):
                part = images[start : start + size]
                read = list(pool.map(self._one, part)) if len(part) > 1 else [self._one(part[0])]
                yield from _of_one_shape(read)

    def _split(self, array: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Return an array as images (N, ...) as stored, or as a list of pictures that are yet to be brought there."""
        if self._fits(array.shape):
            return array[None]
        if array.ndim > 1 and self._fits(array.shape[1:]):
            return array
        if array.dtype != np.uint8 or array.ndim not in (2, 3, 4) or (self.image_shape and len(self.image_shape) == 1):
            if self.image_shape is None and array.ndim in (2, 3, 4):
                return array[None] if array.ndim == 2 else array
            raise ShapeError(f"images: expected images of shape {self._shown()}, one or several, got {array.shape}")
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in MODE_OF and array.shape[0] not in MODE_OF):
            return [array]
        return list(array)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Say whether an array of a shape is one image as stored; grey ones may have an axis of channels or not."""
        wanted = self.image_shape
        if wanted is None:
            return False
        if len(wanted) != 1 and self.channels == 1 and len(shape) in (2, 3):
            shape = shape if len(shape) == 2 else shape[1:] if shape[0] == 1 else shape
            size = self.size or (None, None)
            return len(shape) == 2 and all(b is None or a == b for a, b in zip(shape, size, strict=True))
        return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))

    def _one(self, item: Any) -> np.ndarray:
        if isinstance(item, (str, PathLike)):
            if self.digits:
                return self._laid_out(load_image(item))
            return self._laid_out(load_picture(item, size=self.size, mode=self._mode(), fit=self.fit))
        if _is_picture(item):
            return self._of_picture(item)
        if not _is_array(item):
            raise DataError(f"images: expected paths, PIL images or arrays, got {type(item).__name__}")
        array = _on_host(item)
        if self._fits(array.shape) or (self.image_shape is None and array.dtype != np.uint8):
            return array
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ShapeError(
                f"images: expected images of shape {self._shown()}, got {array.shape} of {array.dtype}; those of other "
                "sizes are brought there where they are pictures of bytes (uint8)"
            )
        if array.ndim == 3 and array.shape[2] not in MODE_OF:
            array = array.transpose(1, 2, 0)  # (H, W, C)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]  # (H, W)
        if array.ndim == 3 and array.shape[2] not in MODE_OF:
            raise ShapeError(f"images: expected pictures of 1, 3 or 4 channels, got an array of shape {item.shape}")
        return self._of_picture(pillow().fromarray(np.ascontiguousarray(array)))

    def _of_picture(self, picture: Any) -> np.ndarray:
        try:
            if self.digits:
                return self._laid_out(digit_of(picture))
            return self._laid_out(convert(picture, self.size, self._mode(), self.fit))
        except BrokenPicture as reason:
            raise DataError(f"images: a PIL image that cannot be taken: {reason}") from reason

    def _mode(self) -> str:
        if self.image_shape is None:
            return "RGB"
        if self.channels not in MODE_OF:
            raise ShapeError(f"images: expected arrays of shape {self._shown()}, got a picture, which has no such form")
        return MODE_OF[self.channels]

    def _laid_out(self, image: np.ndarray) -> np.ndarray:
        """Return (H, W) or (C, H, W) with the channels where they are stored."""
        if image.ndim == 2 and self.image_shape is not None and len(self.image_shape) == 3:
            image = image[None]  # (1, H, W)
        return image.transpose(1, 2, 0) if self.channels_last and image.ndim == 3 else image

    def _shown(self) -> str:
        if self.image_shape is None:
            return "(H, W) or (C, H, W)"
        names = {1: "D", 2: "HW", 3: "HWC" if self.channels_last else "CHW"}[len(self.image_shape)]
        sizes = [name if each is None else str(each) for name, each in zip(names, self.image_shape, strict=True)]
        return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def _of_one_shape(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield neighbours of one shape and dtype as one array."""
    first = 0
    for i in range(1, len(images) + 1):
        if i == len(images) or (images[i].shape, images[i].dtype) != (images[first].shape, images[first].dtype):
            yield np.stack(images[first:i])
            first = i


def _is_array(thing: Any) -> bool:
    return hasattr(thing, "shape") and hasattr(thing, "dtype")


def _is_picture(thing: Any) -> bool:
    return hasattr(thing, "getbands") and hasattr(thing, "convert")  # a PIL image, without importing Pillow


def _on_host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else np.asarray(backend_of(array).to_numpy(array))
