"""A picture of one digit brought to MNIST's form, so that `predict` sees what the model was trained on."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from xpcnn.datasets.formats import PEEK, describe
from xpcnn.datasets.ink import NoDigit, find_ink
from xpcnn.datasets.source import DEFLATE_RATIO, JPEG_MAGIC, PathLike, read_file
from xpcnn.errors import DataError, XpcnnError
from xpcnn.extras import install_line

_SIDE, _BOX = 28, 20  # pixels of an MNIST image and of the box that holds its digit
_MAX_PIXELS = 1 << 26  # a 64-megapixel photograph
_MAX_PIXELS_PER_BYTE = 8 * DEFLATE_RATIO  # one bit a pixel, at deflate's best
_JPEG_NOISE = 2.0  # of 255: what its rounding leaves around strokes, at qualities in use
_WORKING_SIDE = 512  # pixels; larger pictures are shrunk to about this before anything is computed


def load_image(path: PathLike) -> np.ndarray:
    """Load a PNG or JPEG of one digit, of any size, in any colour on any other, as an image like MNIST's.

    Light may fall across the paper, a shadow lie over a part of it; rules, a dark edge, the bar of a screenshot and a
    frame round a canvas are told from the digit (`xpcnn.datasets.ink`). The digit's bounding box is scaled to fit 20x20
    pixels and placed by its centre of mass in the middle of 28x28, as the authors of MNIST did.

    Returns
    -------
    numpy.ndarray
        uint8 (28, 28), white on black.

    Raises
    ------
    DataError
        The file is missing or damaged, is neither PNG nor JPEG, or declares more pixels than 64 million or than its
        size could hold. No digit is found; the message says what was found instead. Pillow is not installed.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits": the 20x20 box and the centring.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> _, test = datasets.load_mnist()
    >>> with TemporaryDirectory() as folder:
    ...     Image.fromarray(255 - test.images[0]).save(f"{folder}/seven.png")  # ink on paper
    ...     image = datasets.load_image(f"{folder}/seven.png")
    ...
    >>> image.shape, str(image.dtype)
    ((28, 28), 'uint8')
    """
    content = read_file(path)
    return _digit(str(path), _decode(path, content), _JPEG_NOISE if content.startswith(JPEG_MAGIC) else 0.0)


def digit_of(picture: Any) -> np.ndarray:
    """Return the digit of a PIL image as `load_image` returns a file's.

    Raises
    ------
    DataError
        None is found.
    """
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(picture)
    colours = _colours(turned.reduce(max(1, -(-max(turned.size) // _WORKING_SIDE))))
    return _digit("images", colours, _JPEG_NOISE if picture.format in ("JPEG", "MPO") else 0.0)


def _digit(name: str, colours: np.ndarray, noise: float) -> np.ndarray:
    try:
        ink = find_ink(colours, noise)
    except NoDigit as reason:
        raise DataError(f"{name}: no digit found: {reason}") from None
    return _centred(_fitted(ink))


def _decode(path: PathLike, content: bytes) -> np.ndarray:
    """Return float32 (C, H, W) from 0 to 255, grey or RGB; the size is known before anything is decoded."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError(f"reading pictures needs Pillow, which is not installed: {install_line('cli')}") from None
    try:
        with warnings.catch_warnings():  # Pillow warns of sizes and oddities that are refused or harmless here
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if width * height > min(_MAX_PIXELS, _MAX_PIXELS_PER_BYTE * len(content)):
                    raise DataError(f"{path}: {width}x{height} pixels in {len(content)} bytes: refused; shrink it")
                image.draft(None, (_WORKING_SIDE, _WORKING_SIDE))  # lets the JPEG decoder leave out detail
                picture = ImageOps.exif_transpose(image)
            return _colours(picture.reduce(-(-max(picture.size) // _WORKING_SIDE)))
    except XpcnnError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they stumble over: SyntaxError, struct.error, ...
        found = describe(content[:PEEK])
        known = (
            f"it is {found}"
            if found and found.split()[1] not in ("PNG", "JPEG")
            else "damaged, or another kind of file"
            if "<_io" in str(error)
            else f"{error!s:.90}"
        )
        raise DataError(f"{path}: not a PNG or JPEG that can be read: {known}") from error


def _colours(picture: Any) -> np.ndarray:
    """Return float32 (C, H, W); what is transparent gets the shade that the opaque part stands out from."""
    if picture.mode.startswith("I"):  # 16 bits
        return np.asarray(picture).astype(np.float32)[None] / 257
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L")).astype(np.float32)[None]
    if "A" not in picture.mode and "transparency" not in picture.info:
        return _channels_first(picture.convert("RGB"))
    colours, alpha = np.split(_channels_first(picture.convert("RGBA")), [3])
    opaque = (colours.mean(axis=0, keepdims=True) * alpha).sum() / max(alpha.sum(), 1.0)
    backdrop = 0.0 if opaque > 127 else 255.0
    return np.asarray(backdrop + (colours - backdrop) * (alpha / 255))


def _channels_first(picture: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1), np.float32)  # (C, H, W)


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
