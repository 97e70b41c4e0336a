"""Sums over the devices of several processes, by NCCL through CuPy: no byte goes by way of the host.

Where NCCL is not there, or two processes have the same device, which it refuses, there is no such reducer and whoever
asks goes through the host. Work is queued on the current stream: nothing waits for the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpcnn.errors import BackendError

if TYPE_CHECKING:
    from xpcnn.backend.base import Array
    from xpcnn.backend.cupy import CupyBackend

Broadcast = Callable[[bytes | None, int], bytes]  # the bytes of a process, for all
# NCCL's names of types, by NumPy's letters.
_TYPES = {
    "b": "NCCL_INT8", "B": "NCCL_UINT8", "i": "NCCL_INT32", "I": "NCCL_UINT32", "l": "NCCL_INT64", "q": "NCCL_INT64",
    "L": "NCCL_UINT64", "Q": "NCCL_UINT64", "e": "NCCL_FLOAT16", "f": "NCCL_FLOAT32", "d": "NCCL_FLOAT64",
}  # fmt: skip
_OPERATIONS = {"sum": "NCCL_SUM", "max": "NCCL_MAX", "min": "NCCL_MIN"}


def new_reducer(backend: CupyBackend, rank: int, size: int, broadcast: Broadcast) -> NcclReducer | None:
    """Return the reducer of a job's processes; None, with a warning, where one of them has no NCCL.

    All processes call it alike, and all get one or none does.
    """
    if size == 1:
        return None
    nccl, reason = _load()
    reasons = [broadcast(reason.encode() if rank == each else None, each).decode() for each in range(size)]
    places = [broadcast(_place(backend) if rank == each else None, each) for each in range(size)]
    if len(set(places)) < size:
        reasons.append("two processes have the same device")
    lacking = next((each for each in reasons if each), "")
    if lacking:
        if rank == 0:
            warnings.warn(f"sums over processes go by way of the host: {lacking}", RuntimeWarning, stacklevel=2)
        return None
    # CuPy 14 gives bytes, earlier ones a tuple of numbers, of signed char.
    identity = nccl.get_unique_id() if rank == 0 else None
    if identity is not None and not isinstance(identity, bytes):
        identity = bytes(each & 0xFF for each in identity)
    with backend.device:
        return NcclReducer(nccl, backend, size, broadcast(identity, 0), rank)


def _place(backend: CupyBackend) -> bytes:
    """Return what no other device of any machine has."""
    properties = backend.xp.cuda.runtime.getDeviceProperties(backend.device.id)
    identity = properties.get("uuid", b"")
    return bytes(identity) or str(backend.device.pci_bus_id).encode()


def _load() -> tuple[Any, str]:
    """Return NCCL's module and "", or None and why it is not there."""
    try:
        from cupy.cuda import nccl
    except Exception as error:  # whatever a missing or foreign library makes of the import
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, f"CuPy cannot load NCCL ({text:.100}); pip install nvidia-nccl-cu12 (or -cu13)"
    if not getattr(nccl, "available", True):
        return None, "NCCL is not installed; pip install nvidia-nccl-cu12 (or -cu13)"
    return nccl, ""


class NcclReducer:
    """Adds up arrays of one device per process, in place.

    Parameters
    ----------
    nccl : module
        `cupy.cuda.nccl`.
    backend : CupyBackend
        Of this process's device.
    size, identity, rank
        Processes, the bytes by which they find each other, and which this is.

    Raises
    ------
    BackendError
        They cannot reach each other.
    """

    def __init__(self, nccl: Any, backend: CupyBackend, size: int, identity: bytes, rank: int) -> None:
        self._nccl, self._backend = nccl, backend
        try:
            self._communicator = nccl.NcclCommunicator(size, identity, rank)
        except Exception as error:
            raise BackendError(f"NCCL: {size} processes cannot reach each other: {error}") from error

    def takes(self, a: Array) -> bool:
        """Say whether `allreduce` does an array as it lies."""
        return a.dtype.char in _TYPES and bool(a.flags.c_contiguous)

    def allreduce(self, a: Array, op: str) -> None:
        """Queue the sum (or "max", "min") over all processes into the place of `a` on the current stream."""
        nccl, cupy = self._nccl, self._backend.xp
        with self._backend.device:
            self._communicator.allReduce(
                a.data.ptr,
                a.data.ptr,
                a.size,
                getattr(nccl, _TYPES[a.dtype.char]),
                getattr(nccl, _OPERATIONS[op]),
                cupy.cuda.get_current_stream().ptr,
            )
