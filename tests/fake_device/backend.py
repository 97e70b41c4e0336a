"""The backend "fake": what the CuPy backend is to a GPU, this is to the fake device."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.backend.base import Backend

from .array import FakeArray, download
from .namespace import xp


class FakeBackend(Backend):
    """A strict stand-in for a GPU; only what a backend must give, so that every default of `Backend` is tested too."""

    name = "fake"
    xp = xp

    def owns(self, array: Any) -> bool:
        return isinstance(array, FakeArray)

    def asarray(self, a: Any, dtype: Any = None) -> FakeArray:
        return xp.asarray(a, dtype)

    def to_numpy(self, a: FakeArray) -> np.ndarray:
        if not isinstance(a, FakeArray):
            raise TypeError(f"to_numpy: expected an array of the fake device, got {type(a)}")
        return download(a)

    def synchronize(self) -> None:
        pass
