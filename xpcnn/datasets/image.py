"""A picture of one digit brought to MNIST's form, so that `predict` sees what the model was trained on."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from xpcnn.datasets.source import DEFLATE_RATIO, PathLike, read_file
from xpcnn.errors import DataError, XpcnnError

_SIDE, _BOX = 28, 20  # pixels of an MNIST image and of the box that holds its digit
_MAX_PIXELS = 1 << 26  # a 64-megapixel photograph
_MAX_PIXELS_PER_BYTE = 8 * DEFLATE_RATIO  # one bit a pixel, at deflate's best
_WORKING_SIDE = 512  # pixels; larger pictures are shrunk to about this before anything is computed
_FAINTEST = 0.5  # of 255; less is rounding
_NOISE = 4.0  # ink fainter than so many standard deviations of the background is background


def load_image(path: PathLike) -> np.ndarray:
    """Load a PNG or JPEG of one digit, of any size, dark on light or light on dark, as an image like MNIST's.

    The background is the border's median, the ink is the distance from it. The ink's bounding box is scaled to fit
    20x20 pixels and placed by its centre of mass in the middle of 28x28, as the authors of MNIST did.

    Returns
    -------
    numpy.ndarray
        uint8 (28, 28), white on black.

    Raises
    ------
    DataError
        The file is missing or damaged, is neither PNG nor JPEG, has one plain colour, or declares more pixels than 64
        million or than its size could hold. Pillow is not installed.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits": the 20x20 box and the centring.
    """
    grey = _decode(path, read_file(path))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = np.median(border)
    ink = grey - background if grey.mean() >= background else background - grey
    spread = 1.4826 * np.median(abs(border - background))  # the standard deviation, by the median absolute deviation
    threshold = max(_NOISE * spread, _FAINTEST)
    solid = (_smoothed(ink) if spread else ink) > threshold  # a speck of noise must not stretch the box
    if not solid.any():
        raise DataError(f"{path}: no digit found: the picture has one plain colour")
    ink = np.where(ink > threshold, ink, 0)
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return _centred(_fitted(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))


def _decode(path: PathLike, content: bytes) -> np.ndarray:
    """Return brightness, float32 (height, width) from 0 to 255; the size is known before anything is decoded."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError("reading pictures needs Pillow, which is not installed: pip install pillow") from None
    try:
        with warnings.catch_warnings():  # Pillow warns of sizes and oddities that are refused or harmless here
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if width * height > min(_MAX_PIXELS, _MAX_PIXELS_PER_BYTE * len(content)):
                    raise DataError(f"{path}: {width}x{height} pixels in {len(content)} bytes: refused; shrink it")
                image.draft("L", (_WORKING_SIDE, _WORKING_SIDE))  # lets the JPEG decoder leave out detail
                picture = ImageOps.exif_transpose(image)
            return _brightness(picture.reduce(-(-max(picture.size) // _WORKING_SIDE)))
    except XpcnnError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they stumble over: SyntaxError, struct.error, ...
        raise DataError(f"{path}: not a PNG or JPEG that can be read: {error!s:.90}") from error


def _brightness(picture: Any) -> np.ndarray:
    """Return float32 (height, width); what is transparent gets the colour that the opaque part stands out from."""
    if picture.mode.startswith("I"):  # 16 bits
        return np.asarray(picture).astype(np.float32) / 257
    if "A" not in picture.mode and "transparency" not in picture.info:
        return np.asarray(picture.convert("L")).astype(np.float32)
    grey, alpha = (np.asarray(band).astype(np.float32) for band in picture.convert("LA").split())
    opaque = (grey * alpha).sum() / max(alpha.sum(), 1.0)
    backdrop = 0.0 if opaque > 127 else 255.0
    return np.asarray(backdrop + (grey - backdrop) * (alpha / 255))


def _smoothed(array: np.ndarray) -> np.ndarray:
    """Return the mean of each pixel and its eight neighbours."""
    padded = np.pad(array, 1, mode="edge")
    height, width = array.shape
    neighbours = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    mean: np.ndarray = np.mean(neighbours, axis=0)
    return mean


def _fitted(ink: np.ndarray) -> np.ndarray:
    """Scale a digit to fit the box and its strongest ink to 255."""
    from PIL import Image

    height, width = ink.shape
    scale = _BOX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        ink = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    stretched: np.ndarray = np.clip(ink * (255 / ink.max()), 0, 255)
    return stretched


def _centred(digit: np.ndarray) -> np.ndarray:
    """Place a digit in a black image with its centre of mass in the middle, as far as it stays inside."""
    image = np.zeros((_SIDE, _SIDE), np.uint8)
    corner = []
    for axis, size in enumerate(digit.shape):
        mass = digit.sum(axis=1 - axis)
        centre = float((mass * np.arange(size)).sum() / mass.sum())
        corner.append(min(max(round(_SIDE / 2 - centre), 0), _SIDE - size))
    top, left = corner
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = digit.round()
    return image
