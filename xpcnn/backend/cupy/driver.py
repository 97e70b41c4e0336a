"""What the NVIDIA driver says of itself, asked without CuPy, so that an error can name the right package."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from xpcnn.extras import install_line

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
OLDEST_FOR_CUDA13 = (7, 5)  # Turing: CUDA 13 has no Maxwell, Pascal or Volta, though its driver still runs them


def _driver() -> Any:
    """Return the driver's library; None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports, such as (12, 8); None where no driver answers."""
    library = _driver()
    version = ctypes.c_int()
    if library is None or library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def oldest_capability() -> tuple[int, int] | None:
    """Return the lowest compute capability among the devices, such as (7, 0); None where none answers."""
    library = _driver()
    count = ctypes.c_int()
    if library is None or library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return None
    found = []
    for number in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        try:
            if library.cuDeviceGet(ctypes.byref(device), number):
                continue
            for value, attribute in ((major, CAPABILITY_MAJOR), (minor, CAPABILITY_MINOR)):
                library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        except AttributeError:  # a stand-in for the driver may lack what CuPy does not call
            return None
        found.append((major.value, minor.value))
    return min(found, default=None)


def fitting(version: tuple[int, int], capability: tuple[int, int] | None) -> str:
    """Return the extra whose CuPy runs on a driver for CUDA `version` and on devices from `capability` on."""
    return "cuda13" if version[0] >= 13 and (capability is None or capability >= OLDEST_FOR_CUDA13) else "cuda12"


def install_advice() -> str:
    """Return what to install: the CuPy that fits driver and devices, where there are some."""
    version = driver_version()
    lines = {extra: install_line(extra) for extra in ("cuda12", "cuda13")}
    if version is None:
        return f"{lines['cuda12']} or {lines['cuda13']} (no NVIDIA driver answers here, so check nvidia-smi first)"
    found = f"the driver supports CUDA {version[0]}.{version[1]}"
    if version[0] < 12:
        return f"update the driver ({found}, CuPy needs 12 or newer), then {lines['cuda12']}"
    capability = oldest_capability()
    extra = fitting(version, capability)
    if version[0] >= 13 and extra == "cuda12" and capability is not None:
        found += f", but CUDA 13 has dropped GPUs of compute capability {capability[0]}.{capability[1]}"
    return f"{lines[extra]} ({found})"
