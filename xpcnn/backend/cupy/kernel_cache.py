"""A folder for CuPy's compiled kernels that can be written: CuPy makes it at import, and fails where it cannot.

Containers, services and read-only homes have none at ~/.cupy.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile

VARIABLE = "CUPY_CACHE_DIR"
instead_of: str | None = None  # the folder that could not be written, where another is used


def ensure() -> None:
    """Before CuPy is imported, point CUPY_CACHE_DIR to a temporary folder of the user's where its own is read-only."""
    global instead_of
    if "cupy" in sys.modules:
        return
    folder = os.environ.get(VARIABLE, os.path.expanduser("~/.cupy/kernel_cache"))
    if _can_be_written(folder):
        return
    os.environ[VARIABLE] = _temporary()
    instead_of = folder


def _can_be_written(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _temporary() -> str:
    """Return a folder that is the same for every process of the user, and nobody else's: what lies in it is run."""
    if os.name == "posix":
        folder = os.path.join(tempfile.gettempdir(), f"xpcnn-kernels-{os.getuid()}")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            found = os.lstat(folder)
        except OSError:
            pass
        else:
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
            if is_ours and _can_be_written(folder):
                return folder
    folder = tempfile.mkdtemp(prefix="xpcnn-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
