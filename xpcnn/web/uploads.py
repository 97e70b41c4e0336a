"""Pictures that come from anybody: bytes to a PIL image, within bounds that are known before anything is decoded."""

from __future__ import annotations

import io
from typing import Any

from xpcnn.datasets.formats import PEEK, describe
from xpcnn.datasets.pictures import pillow
from xpcnn.datasets.stored import Stored
from xpcnn.errors import DataError

LARGEST = 1 << 24  # bytes of a picture, 16 MiB
MOST_PIXELS = 1 << 25  # 33 million: a photograph, a screenshot of 8K
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what browsers show
_PAGE_SIDE = 512  # pixels; a JPEG of a digit is decoded at about this, as `load_image` does


def read_picture(content: bytes, stored: Stored) -> Any:
    """Return a picture as a PIL image that is decoded, and no larger than it has to be for images of that form.

    Raises
    ------
    DataError
        It is none of `FORMATS`, is damaged, or has more than `MOST_PIXELS`; Pillow is not installed.
    """
    image = pillow()
    if not content:
        raise DataError("the picture is empty")
    try:
        picture = image.open(io.BytesIO(content), formats=FORMATS)
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise DataError(f"{width} x {height} pixels are too many, {MOST_PIXELS:,} are taken; shrink the picture")
        side = _PAGE_SIDE if stored.digits else 2 * max(stored.size or (0, 0))
        if side:
            picture.draft(None, (side, side))  # lets the JPEG decoder leave out detail
        picture.load()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever they stumble over: SyntaxError, struct.error, ...
        found = describe(content[:PEEK])
        kind = "" if found is None else found.split()[1].upper()
        what = "this is no picture, or a damaged one" if found is None or kind in FORMATS else f"this is {found}"
        raise DataError(f"{what}; PNG, JPEG, WebP, GIF and BMP are read") from error
    return picture
