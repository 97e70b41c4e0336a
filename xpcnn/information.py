"""What runs here: versions, backend, device, BLAS and its kernel, threads, and hints that would speed it up."""

from __future__ import annotations

import platform
from typing import Any

import xpcnn
from xpcnn.backend import available_backends, get_backend
from xpcnn.backend.numpy.threads import has_lock


def info() -> dict[str, Any]:
    """Return what runs here as plain values, ready for JSON.

    Returns
    -------
    dict
        `xpcnn`, `python`, `platform`, `available` (backends), the active backend's own entries (`backend`,
        `device`, `threads`, `blas` with the kernel it chose, ...) and `hints`, one line each.

    Examples
    --------
    >>> sorted(xpcnn.info())[:2]
    ['available', 'backend']
    """
    backend = get_backend()
    return {
        "xpcnn": xpcnn.__version__,
        "python": platform.python_version() + ("" if has_lock() else " (free-threaded)"),
        "platform": f"{platform.system()} {platform.machine()}",
        "available": available_backends(),
        **backend.info(),
        "hints": backend.hints(),
    }
