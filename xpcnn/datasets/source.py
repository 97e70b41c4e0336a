"""Reading a file that nobody vouches for: never more memory than its size or its header justifies, never a hang."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

from xpcnn.datasets.formats import PEEK, describe
from xpcnn.errors import ConfigError, DataError

PathLike = str | os.PathLike[str]

GZIP_MAGIC, JPEG_MAGIC = b"\x1f\x8b", b"\xff\xd8\xff"
_SHOWN = 150  # characters of a path in an error
DEFLATE_RATIO = 1032  # no deflate stream expands further: 258 bytes from a match of 2 bits (zlib's technical notes)


def look_at(path: PathLike) -> str:
    """Return what lies at a path: "file", "folder", "other" (a pipe, a device), or "" for nothing.

    Every path that a user names is looked at here, and nowhere else: a name too long, a null character, a folder that
    nobody may enter, a loop of links are one clear error.

    Raises
    ------
    ConfigError
        It is no path.
    DataError
        The system refuses to say.
    """
    check_path(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise DataError(f"{shown(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def check_path(path: object) -> None:
    """Raise ConfigError where a path is none; a number would be read as the process's own open file."""
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"path: expected a str or os.PathLike, got {type(path).__name__}")


def shown(path: PathLike) -> str:
    """Return a path as an error shows it: whole, or its two ends."""
    check_path(path)
    text = os.fspath(path)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 3 :]}"


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeioAEIO' else 'a'} {what}"


def read_file(path: PathLike, what: str = "file", limit: int | None = None) -> bytes:
    """Return the content of a regular file.

    Parameters
    ----------
    path : str or os.PathLike
    what : str
        What an error calls that which should be there.
    limit : int, optional
        Bytes that it may have at the most.

    Raises
    ------
    DataError
        The file is missing, is not a regular file (a pipe would wait for ever, a device never end), is too large or
        unreadable.
    """
    found = look_at(path)
    if not found:
        raise DataError(f"{shown(path)}: expected {_a(what)} to read, got no such file; check the path")
    if found != "file":
        raise DataError(
            f"{shown(path)}: expected {_a(what)}, got a {'folder' if found == 'folder' else 'pipe or device'}"
        )
    try:
        size = os.stat(path).st_size
        if limit is not None and size > limit:
            raise DataError(f"{shown(path)}: expected {_a(what)} of at most {limit} bytes, got {size}")
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


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
        self._content = content
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

    def start(self) -> bytes:
        """Return the first bytes of the data, as far as they can be read; takes nothing."""
        if self._gzip is None:
            return self._content[:PEEK]
        try:
            return zlib.decompressobj(wbits=31).decompress(self._content, PEEK)
        except zlib.error:
            return b""

    def other_than(self, expected: str) -> DataError | None:
        """Return the error that says what the file is instead of `expected`; None where it is nothing known."""
        found = describe(self.start()) if self._content else "an empty file"
        if found is None or (found == "an empty file" and self._gzip):
            return None
        inside = " within a gzip file" if self._gzip else ""
        return DataError(f"{shown(self.name)}: expected {expected}, got {found}{inside}")

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
