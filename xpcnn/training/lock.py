"""A lock on a folder: one process trains in it, and the lock of a killed process is gone with it."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from xpcnn.errors import DataError, StateError
from xpcnn.training.files import explained

NAME = "lock"
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
# What network and FUSE file systems answer that have no locks, or whose lock server is away.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class FolderLock:
    """Hold `folder/lock` for the length of a `with` block.

    The operating system keeps the lock with the open file, so that neither SIGKILL nor a power cut leaves one behind;
    the file itself stays and means nothing. Where the file system has no locks, a RuntimeWarning says so.

    Raises
    ------
    StateError
        Another process, or another trainer of this one, holds it.
    DataError
        The folder cannot be written or locked.

    Examples
    --------
    >>> from xpcnn import training
    >>> from tempfile import TemporaryDirectory
    >>> folder = TemporaryDirectory()
    >>> lock = training.FolderLock(folder.name)
    >>> lock.acquire()
    >>> lock.release()
    >>> folder.cleanup()
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._file: IO[str] | None = None

    def __repr__(self) -> str:
        return f"FolderLock({str(self.folder)!r}, {'held' if self._file is not None else 'free'})"

    def acquire(self) -> None:
        """Take the lock at once or raise."""
        if self._file is not None:
            return
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / NAME, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the lock is held)
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                self._file = file
                warnings.warn(
                    f"{self.folder}: no locks on this file system ({error.strerror}): take care that one process alone "
                    "trains here",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
            if error.errno not in _HELD:
                file.close()
                raise DataError(f"{self.folder}: expected to lock it, got {error.strerror or error}") from error
            file.seek(0)
            owner = file.read(20).strip() if os.name != "nt" else ""
            file.close()
            by = f" (process {owner})" if owner.isdecimal() else ""
            raise StateError(
                f"{self.folder}: expected to be the only one to train here, got a folder that is in use{by}; "
                "wait for it, stop it, or choose another folder"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _lock(file: IO[Any]) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
