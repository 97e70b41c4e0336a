"""The switch that leaves everything away that is only there for speed: XPCNN_PORTABLE=1."""

from __future__ import annotations

import os
from functools import cache


@cache
def is_portable() -> bool:
    """Say whether the environment has XPCNN_PORTABLE=1; read once, when xpcnn is imported.

    The bodies in `functional/` then run as they stand on every backend, so that a debugger stops in them: nothing is
    recorded or replayed, no primitive is replaced by a backend's own version, and the backend "numpy" is plain NumPy
    in one thread. Results agree with the usual ones within rounding.
    """
    return os.environ.get("XPCNN_PORTABLE") == "1"
