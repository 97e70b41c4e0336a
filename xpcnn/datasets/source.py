"""Reading a file that nobody vouches for: never more memory than its size or its header justifies, never a hang."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

from xpcnn.errors import DataError

PathLike = str | os.PathLike[str]

GZIP_MAGIC, JPEG_MAGIC = b"\x1f\x8b", b"\xff\xd8\xff"
DEFLATE_RATIO = 1032  # no deflate stream expands further: 258 bytes from a match of 2 bits (zlib's technical notes)


def read_file(path: PathLike) -> bytes:
    """Return the content of a regular file.

    Raises
    ------
    DataError
        The file is missing, is not a regular file (a pipe would wait for ever, a device never end) or is unreadable.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: expected a file, got a folder, pipe or device")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{path}: cannot be read: {error}") from error


class Source:
    """The bytes of a file, gunzipped where it is gzipped, in pieces whose size the reader must name beforehand.

    Parameters
    ----------
    name : str or os.PathLike
        What error messages call the file.
    content : bytes
        What the file holds; gzip (one member, as every tool writes it) is known by its first two bytes.
    """

    def __init__(self, name: PathLike, content: bytes) -> None:
        self.name = os.fspath(name)
        self._rest: bytes | memoryview = memoryview(content)
        self._gzip = zlib.decompressobj(wbits=31) if content.startswith(GZIP_MAGIC) else None
        self._bound = len(content) * (DEFLATE_RATIO if self._gzip else 1)  # bytes that can still come, at the most

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, or raise DataError where the file cannot hold them."""
        if size > self._bound:
            raise self.damaged(f"{size} more bytes are declared than a file of this size can hold")
        piece = self._read(size)
        if len(piece) < size:
            raise self.damaged(f"it ends {size - len(piece)} bytes early")
        self._bound -= size
        return piece

    def take_rest(self, limit: int) -> bytes:
        """Return all bytes that are left, or raise DataError where they are more than `limit`."""
        piece = self._read(limit)
        self.finish(f"it holds more than the {limit} bytes allowed")
        return piece

    def finish(self, surplus: str = "it goes on after the end of its data") -> None:
        """Check that nothing is left and that gzip's checksum holds."""
        if self._read(1) or (self._gzip and self._gzip.unused_data):
            raise self.damaged(surplus)
        if self._gzip and not self._gzip.eof:
            raise self.damaged("its gzip stream ends early")

    def damaged(self, reason: str) -> DataError:
        """Return the error that says so."""
        return DataError(f"{self.name}: damaged file: {reason}; fetch or copy it again")

    def _read(self, size: int) -> bytes:
        if size == 0:  # to zlib a limit of 0 is no limit
            return b""
        if self._gzip is None:
            piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
            return piece
        try:
            piece = self._gzip.decompress(self._rest, size)
        except zlib.error as error:
            raise self.damaged(f"gzip says: {error}") from error
        self._rest = self._gzip.unconsumed_tail
        return piece
