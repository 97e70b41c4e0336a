"""NumPy as a backend and nothing more: what XPCNN_PORTABLE=1 computes with, and what the NumPy backend builds on."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from xpcnn.backend.base import Backend
from xpcnn.errors import DTypeError


class PlainNumpyBackend(Backend):
    """Arrays are `numpy.ndarray`, and everything runs as it is written, call by call."""

    name = "numpy"
    xp = np
    immediate = True

    def owns(self, array: Any) -> bool:
        # A masked array would lose its mask, and `*` of a matrix is another product.
        return isinstance(array, np.ndarray) and not (isinstance(array, np.matrix) or hasattr(array, "filled"))

    def asarray(self, a: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
        if not isinstance(a, (np.ndarray, np.generic, list, tuple, int, float)) and not hasattr(a, "__array__"):
            raise DTypeError(f"a: expected an array or nested lists of numbers, got {type(a).__name__}")
        return np.asarray(a, dtype=dtype)

    def to_numpy(self, a: Any) -> np.ndarray[Any, Any]:
        return np.asarray(a)

    def import_dlpack(self, x: Any) -> np.ndarray[Any, Any]:
        return np.from_dlpack(x)  # also while `xp` records

    def synchronize(self) -> None:
        """Nothing to wait for: NumPy returns when the work is done."""

    def demand(self, holds: Any, error: Exception) -> None:
        if not holds.all():
            raise error

    errstate: Any = staticmethod(partial(np.errstate, all="ignore"))

    def info(self) -> dict[str, Any]:
        return {"backend": self.name, "numpy": np.__version__, "device": "host", "threads": self.get_num_threads()}
