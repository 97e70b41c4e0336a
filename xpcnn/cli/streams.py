"""Standard output and error that may be closed, full, gone, or unable to hold a letter: none of it stops a command."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any


class Stream:
    """A text stream that takes what it is given, writes what can be written, and remembers the first refusal.

    Parameters
    ----------
    inner : text stream or None
        None where the process was started without it.

    Attributes
    ----------
    error : OSError or None
        Why something was not written.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, with escapes for letters that the stream's encoding does not have."""
        if self._inner is None:
            self.error = self.error or OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.error is None:
            with self._noting():
                try:
                    self._inner.write(text)
                except UnicodeEncodeError:
                    encoding = getattr(self._inner, "encoding", None) or "ascii"
                    self._inner.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Bring what was written to its reader."""
        if self.error is None and self._inner is not None:
            with self._noting():
                self._inner.flush()

    def isatty(self) -> bool:
        """Say whether somebody sits in front of it."""
        try:
            return self._inner is not None and self.error is None and bool(self._inner.isatty())
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a closed file
            self.error = error if isinstance(error, OSError) else OSError(errno.EBADF, os.strerror(errno.EBADF))
            _silence(self._inner)


def _silence(stream: Any) -> None:
    """Let the stream's own buffer go nowhere: Python writes it once more when it ends, and would complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


@contextlib.contextmanager
def standard_streams() -> Iterator[tuple[Stream, Stream]]:
    """Give standard output and error as such streams; `sys.stdout` and `sys.stderr` are they meanwhile."""
    _occupy()
    before = sys.stdout, sys.stderr
    out, err = Stream(before[0]), Stream(before[1])
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _occupy() -> None:
    """Put nothing in the place of closed standard streams, or the next file that is opened would take their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                found = os.open(os.devnull, os.O_RDWR)
                if found != number:
                    os.dup2(found, number)
                    os.close(found)
