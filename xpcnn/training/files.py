"""Files that are whole or not there: a temporary name in the same folder, flush, fsync, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xpcnn.datasets.source import check_path, shown
from xpcnn.errors import DataError

Path_ = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Path_) -> Iterator[Path]:
    """Give a temporary path to write to; at the end of the block it takes the place of `path`, or goes.

    Raises
    ------
    DataError
        The folder is missing or read-only, or the disk is full; `path` is as it was.
    """
    check_path(path)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with explained(target):
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, target)
            flush(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: Path_, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path_, content: bytes) -> None:
    """Write `content`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def save(path: Path_, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)` and put what it wrote in the place of `path`."""
    with replacing(path) as temporary:
        write(temporary)


@contextlib.contextmanager
def explained(path: Path_) -> Iterator[None]:
    """Turn the system's refusal to write `path` into a DataError of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{shown(path)}: expected to write it, got {reason!r}; check the folder, its permissions and the free "
            "space (what was saved before is untouched)"
        ) from error


def check_format(source: Path_, found: Any, expected: str) -> None:
    """Check the format that a file says it has, "NAME NUMBER".

    Raises
    ------
    DataError
        It is another; one with a higher number is of a newer xpcnn.
    """
    if found == expected:
        return
    stem, _, mine = expected.rpartition(" ")
    name, _, number = found.rpartition(" ") if isinstance(found, str) else ("", "", "")
    if name == stem and number.isdecimal() and len(number) < 10 and int(number) > int(mine):
        raise DataError(
            f"{os.fspath(source)}: written by a newer xpcnn: format {found!r}, where this one reads {expected!r}; "
            "update xpcnn"
        )
    raise DataError(f"{os.fspath(source)}: damaged: expected format {expected!r}, got {found!r:.40}")


def flush(path: Path) -> None:
    """Ask the system to put a file, or the names of a folder, on the disk."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDWR
    try:
        handle = os.open(path, flags)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
