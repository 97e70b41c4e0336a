"""Compiling and launching the kernels of the `.cu` files."""

from __future__ import annotations

import functools
import importlib.resources
from typing import Any

import numpy as np

BLOCK = 256  # threads of a block, as in kernels.cu
TYPES = {"f": "float", "d": "double", "e": "Half"}  # dtype characters that there are kernels for
COMPUTED = {"f": "f", "d": "d", "e": "f"}  # those of what they compute in
OPTIONS = ("--std=c++17",)
INDEX_LIMIT = (1 << 31) - (1 << 16)  # kernels count in 32 bits, and step past the end by a grid at most

GEOMETRY = np.dtype(
    [
        (name, np.int32)
        for name in [
            "channels",
            "height",
            "width",
            "batch",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
            "top",
            "left",
            "first_row",
            "rows",
            "out_w",
        ]
    ]
)


@functools.cache
def source(file: str = "kernels.cu") -> str:
    """Return the text of a `.cu` file, after that of the types of numbers."""
    folder = importlib.resources.files(__package__)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("numbers.cu", file))


class Kernels:
    """The kernels of a file on one device, compiled for a dtype when it is first met (and kept by CuPy on disk)."""

    def __init__(self, cupy: Any, device: int, file: str = "kernels.cu", defines: tuple[str, ...] = ()) -> None:
        self._cupy, self._device, self._file, self._defines = cupy, device, file, defines
        self._found: dict[tuple[str, str], Any] = {}
        self._modules: dict[str, Any] = {}
        self._variants: dict[tuple[str, tuple[str, ...]], Kernels] = {}

    def variant(self, file: str, defines: tuple[str, ...]) -> Kernels:
        """Return the kernels of another file of this device, compiled with options `-DNAME=VALUE`."""
        key = file, defines
        if key not in self._variants:
            self._variants[key] = Kernels(self._cupy, self._device, file, defines)
        return self._variants[key]

    def launch(self, name: str, dtype: np.dtype[Any], grid: tuple[int, ...], *args: Any) -> None:
        """Queue a kernel on the device's current stream; integers go as int, floating numbers as the kernel's T."""
        if self._cupy.cuda.device.get_device_id() != self._device:
            self._cupy.cuda.Device(self._device).use()
        kernel = self._found.get((name, dtype.char)) or self._find(name, dtype.char)
        kernel(grid, (BLOCK,), convert(args, dtype))

    def address(self, array: Any) -> int:
        """Return where an array begins, for kernels that take a table of arrays."""
        return int(array.data.ptr)

    def _find(self, name: str, char: str) -> Any:
        if char not in self._modules:
            options = (*OPTIONS, f"-DREAL={TYPES[char]}", *self._defines)
            self._modules[char] = self._cupy.RawModule(code=source(self._file), options=options)
        self._found[name, char] = self._modules[char].get_function(name)
        return self._found[name, char]


def convert(args: tuple[Any, ...], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Give Python numbers the size that the kernel's parameters have; None is a null pointer."""
    kinds: dict[type, Any] = {int: np.int32, float: np.dtype(COMPUTED[dtype.char]).type}
    return tuple(kinds[type(arg)](arg) if type(arg) in kinds else arg for arg in args)
