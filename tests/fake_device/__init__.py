"""A strict stand-in for a GPU, so that the suite finds on any machine what CuPy would refuse."""

from .array import (
    CaptureError,
    Counters,
    FakeArray,
    HiddenCopyError,
    UpcastError,
    allow_sync,
    capture,
    counters,
)
from .backend import FakeBackend
from .namespace import xp

__all__ = [
    "CaptureError",
    "Counters",
    "FakeArray",
    "FakeBackend",
    "HiddenCopyError",
    "UpcastError",
    "allow_sync",
    "capture",
    "counters",
    "xp",
]
