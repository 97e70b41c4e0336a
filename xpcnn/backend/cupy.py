"""The CuPy backend: arrays on a CUDA GPU. The only file that imports CuPy, and only when it is asked for."""

from __future__ import annotations

from xpcnn.backend.base import Backend
from xpcnn.errors import BackendError


def device_names() -> list[str]:
    """Return a name for each CUDA device that answers, the first one plain "cupy"."""
    return []


def create(name: str) -> Backend:
    """Return the backend of a device, such as "cupy" or "cupy:1"."""
    raise BackendError(f"name: {name!r} is not there")
