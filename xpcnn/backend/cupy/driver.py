"""What the NVIDIA driver says of itself, asked without CuPy, so that an error can name the right package."""

from __future__ import annotations

import ctypes
import sys


def driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports, such as (12, 8); None where no driver answers."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def install_advice() -> str:
    """Return what to install, with the extra that fits the driver where there is one."""
    version = driver_version()
    lines = 'pip install "xpcnn[cuda12]"', 'pip install "xpcnn[cuda13]"'
    if version is None:
        return f"{lines[0]} or {lines[1]} (no NVIDIA driver answers here, so check nvidia-smi first)"
    found = f"the driver supports CUDA {version[0]}.{version[1]}"
    if version[0] >= 13:
        return f"{lines[1]} ({found})"
    if version[0] == 12:
        return f"{lines[0]} ({found})"
    return f"update the driver ({found}, CuPy needs 12 or newer), then {lines[0]}"
