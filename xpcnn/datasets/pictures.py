"""One picture of anybody's, brought to the size and channels that a network takes. Pillow does the decoding."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from xpcnn.datasets.formats import PEEK, describe
from xpcnn.datasets.source import PathLike, shown
from xpcnn.datasets.tree import UNREAD
from xpcnn.errors import ConfigError, DataError
from xpcnn.extras import install_line
from xpcnn.windows import pair

MODES = {"L": 1, "RGB": 3, "RGBA": 4}  # and their channels
FITS = ("crop", "pad", "stretch")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_MAX_PIXELS = 1 << 26  # to be decoded, 64 million; a JPEG is decoded at an eighth of its sides where that is enough
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange height and width
_BACKGROUND = 255  # white: what shows through where a picture is transparent
_OVERSAMPLED = 2  # sides of what a JPEG is decoded to, by those asked for: the rest is filtered properly


class BrokenPicture(Exception):
    """A file is no picture that can be read; the message says why, without its name."""


class Header(NamedTuple):
    """What a picture says of itself before it is decoded: its upright size, and whether it is grey."""

    height: int
    width: int
    is_grey: bool


def load_picture(path: PathLike, *, size: Any = None, mode: str = "RGB", fit: str = "crop") -> np.ndarray:
    """Load one picture as `load_folder` loads those of a folder.

    Parameters
    ----------
    path : str or os.PathLike
    size, mode, fit
        As for `load_folder`; without `size`, the picture's own.

    Returns
    -------
    numpy.ndarray
        uint8 (3, H, W), (4, H, W) for "RGBA", (H, W) for "L".

    Raises
    ------
    ConfigError, DataError
        An option is wrong; the file is missing or no picture; Pillow is not installed.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (48, 40), "red").save(f"{folder}/a.png")
    ...     image = datasets.load_picture(f"{folder}/a.png", size=(32, 32))
    ...
    >>> image.shape, image[:, 0, 0]
    ((3, 32, 32), array([255,   0,   0], dtype=uint8))
    """
    options = check_options(size, mode, fit)
    try:
        return decode(path, *options)
    except BrokenPicture as reason:
        raise DataError(f"{shown(path)}: {reason}") from reason


def check_options(size: Any, mode: str, fit: str) -> tuple[tuple[int, int] | None, str, str]:
    """Return `size` as (height, width) or None, `mode` and `fit`; raise ConfigError where one is wrong."""
    if mode not in MODES:
        raise ConfigError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if fit not in FITS:
        raise ConfigError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
    return None if size is None else pair("size", size, 1), mode, fit


def pillow() -> ModuleType:
    """Return Pillow's Image module.

    Raises
    ------
    DataError
        It is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"reading pictures needs Pillow, which is not installed: {install_line('cli')}") from None
    image: ModuleType = Image
    return image


def peek(path: PathLike) -> Header:
    """Return what a picture says of itself; raise BrokenPicture where it says nothing, or is a single pixel."""
    with _opened(path) as image:
        width, height = image.size
        if width * height == 1:
            raise BrokenPicture("a picture of 1x1 pixel")
        if image.getexif().get(_ORIENTATION) in _LYING:
            width, height = height, width
        return Header(height, width, image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16"))


def decode(path: PathLike, size: tuple[int, int] | None, mode: str, fit: str) -> np.ndarray:
    """Return a file's picture as uint8 (C, H, W), or (H, W) for "L"; raise BrokenPicture where there is none."""
    with _opened(path) as image:
        if size is not None:  # lets the JPEG decoder leave out detail, and colours that nobody wants
            side = _OVERSAMPLED * max(size)
            image.draft("L" if mode == "L" else None, (side, side))
        width, height = image.size
        if width * height > _MAX_PIXELS:
            raise BrokenPicture(f"{width}x{height} pixels are too many; shrink it")
        return convert(image, size, mode, fit)


def convert(image: Any, size: tuple[int, int] | None, mode: str, fit: str) -> np.ndarray:
    """Return a PIL image as `decode` returns a file's: upright, in a mode and a size."""
    from PIL import ImageOps

    picture = fitted(_in_mode(ImageOps.exif_transpose(image), mode), size, fit)
    pixels = np.asarray(picture)
    return pixels.copy() if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (C, H, W)


def fitted(picture: Any, size: tuple[int, int] | None, fit: str) -> Any:
    """Return a PIL image of a size (height, width): cut to its shape, padded to it, or stretched."""
    width, height = picture.size
    if size is None or (height, width) == size:
        return picture
    image, (rows, columns) = pillow(), size
    bilinear = image.Resampling.BILINEAR
    if fit == "stretch":
        return picture.resize((columns, rows), bilinear, reducing_gap=_OVERSAMPLED)
    if fit == "crop":
        scale = min(width / columns, height / rows)
        left, top = (width - columns * scale) / 2, (height - rows * scale) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + columns * scale, width), min(top + rows * scale, height))
        return picture.resize((columns, rows), bilinear, box=box, reducing_gap=_OVERSAMPLED)
    scale = max(width / columns, height / rows)
    inner = max(1, round(width / scale)), max(1, round(height / scale))
    out = image.new(picture.mode, (columns, rows))  # black; transparent for RGBA
    out.paste(
        picture.resize(inner, bilinear, reducing_gap=_OVERSAMPLED),
        ((columns - inner[0]) // 2, (rows - inner[1]) // 2),
    )
    return out


def _in_mode(picture: Any, mode: str) -> Any:
    """Return a PIL image in one of `MODES`; what is transparent shows white, unless the mode keeps it."""
    if picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if picture.mode == "F":
        raise BrokenPicture("its pixels are 32-bit floats; save it with 8 or 16 bits")
    if mode == "RGBA" or not picture.has_transparency_data:
        return picture if picture.mode == mode else picture.convert(mode)
    picture = picture.convert("RGBA")
    ground = pillow().new("RGBA", picture.size, (_BACKGROUND,) * 3 + (255,))
    return pillow().alpha_composite(ground, picture).convert(mode)


def _eight_bits(picture: Any) -> Any:
    """Return a picture of 16 or 32 bits a pixel as a grey one of 8."""
    pixels = np.asarray(picture).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BrokenPicture(f"its pixels go from {pixels.min()} to {pixels.max()}; save it with 8 or 16 bits")
    is_wide = picture.mode != "I" or picture.format == "PNG" or pixels.max() > 255
    return pillow().fromarray(((pixels + 128) // 257 if is_wide else pixels).astype(np.uint8))


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    """Give a file as a PIL image; end in BrokenPicture whatever its decoder stumbles over."""
    image = pillow()
    kind = os.path.splitext(path)[1].lower()
    if kind in UNREAD:  # of a raw file Pillow would find the thumbnail
        raise BrokenPicture(_other(kind[1:].upper()))
    try:
        with image.open(path, formats=_FORMATS) as picture:
            yield picture
    except (BrokenPicture, MemoryError):
        raise
    except Exception as error:  # SyntaxError, struct.error, ...: decoders raise what they stumble over
        raise BrokenPicture(_reason(path, error)) from error


def _reason(path: PathLike, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return (error.strerror or str(error)).lower()
    try:
        with open(path, "rb") as file:
            found = describe(file.read(PEEK))
    except OSError:
        found = None
    if found is None:
        return "no picture, or a damaged one"
    name, is_picture, _ = found.split(" ", 1)[1].partition(" picture")
    if not is_picture:
        return f"no picture: {found}"
    return f"a damaged {name} picture: {error!s:.60}" if name.upper() in _FORMATS else _other(name)


def _other(name: str) -> str:
    return f"{name} is not read; save as JPEG or PNG"
