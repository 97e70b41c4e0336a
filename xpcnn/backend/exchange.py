"""Arrays of other libraries: without a copy through DLPack, or as host arrays, PyTorch's tensors included.

Nothing here imports another library. A tensor of PyTorch is known by what it can do (`detach`, `cpu`).
DLPack: https://dmlc.github.io/dlpack/latest/ and the array API standard's `from_dlpack`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xpcnn.errors import BackendError, DTypeError

if TYPE_CHECKING:
    from xpcnn.backend.base import Array, Backend

# DLDeviceType of dlpack.h.
CPU, CUDA, CUDA_HOST, ROCM, ROCM_HOST, CUDA_MANAGED = 1, 2, 3, 10, 11, 13
_NAMES = {CPU: "the host", CUDA: "CUDA device", CUDA_HOST: "the host (pinned)", 8: "Metal device", ROCM: "ROCm device",
          ROCM_HOST: "the host (pinned)", CUDA_MANAGED: "CUDA device", 14: "oneAPI device"}  # fmt: skip


def from_dlpack(backend: Backend, x: Any) -> Array:
    """Do what `Backend.from_dlpack` says."""
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise DTypeError(
            f"x: expected an array that speaks DLPack, such as a tensor of PyTorch, got {type(x).__name__}; "
            "xpcnn.get_backend().asarray(x) takes lists and numbers"
        )
    try:
        kind, number = (int(part) for part in x.__dlpack_device__())
        if not backend.reaches(kind, number):
            place = f"{_NAMES.get(kind, f'a device of type {kind}')}{f' {number}' if kind not in _HOST else ''}"
            raise BackendError(
                f"x: expected memory that {backend.name} reaches, got {type(x).__name__} on {place}; copy it to the "
                "host first (x.cpu() in PyTorch, numpy.asarray(x) in JAX, x.get() in CuPy) and hand that to asarray, "
                "or choose another backend"
            )
        if backend.owns(x):
            return x
        array = backend.import_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        if isinstance(error, (BackendError, DTypeError)):
            raise
        raise _explained(x, error) from error
    if not backend.owns(array):
        raise BackendError(f"x: expected an array of {backend.name}, got {type(array).__name__} from its from_dlpack")
    return array


_HOST = frozenset({CPU, CUDA_HOST, ROCM_HOST})


def _explained(x: Any, error: Exception) -> Exception:
    """Return the error for what no exporter or importer would hand over."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    what = f"{type(x).__name__} of {getattr(x, 'dtype', 'an unknown dtype')}"
    if "dtype" in reason.lower() or "byte order" in reason:
        return DTypeError(
            f"x: expected a dtype that can be shared, got {what} ({reason}); convert it first, a bfloat16 to float32"
        )
    if getattr(x, "requires_grad", False):
        return BackendError(f"x: expected a tensor outside of autograd, got {what}; hand over x.detach()")
    return BackendError(f"x: expected an array that can be shared without a copy, got {what} ({reason})")


def widen_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return bfloat16 numbers, given as uint16, as float32: the upper half of its bits, so that none is rounded."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_host(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Return anything that is an array as one of NumPy, bfloat16 as float32; without a copy where that can be.

    Parameters
    ----------
    value : array or tensor
        Of NumPy, of a backend of ours, PyTorch (on a device and part of an autograd graph too), JAX, or of anything
        else that NumPy or DLPack can read.
    name : str
        What an error calls it.

    Raises
    ------
    DTypeError
        It is no array, or one whose values cannot be read.
    """
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise DTypeError(f"{name}: expected an array, got {type(value).__name__}")
    try:
        return _numbers(_read(value), name)
    except (BufferError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, (BackendError, DTypeError)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DTypeError(
            f"{name}: expected an array that can be read, got {type(value).__name__} of {value.dtype} ({reason})"
        ) from error


def _read(value: Any) -> Any:
    from xpcnn.backend.base import backend_of

    if isinstance(value, np.ndarray):
        return value
    try:
        return backend_of(value).to_numpy(value)
    except DTypeError:
        pass
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # PyTorch
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype):  # which neither NumPy nor DLPack's reader in it knows
            value = value.float()
    if hasattr(value, "__array__"):
        return np.asarray(value)
    return np.from_dlpack(value)


def _numbers(value: Any, name: str) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.asarray(value)
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which JAX brings along
        return widen_bfloat16(array.view(np.uint16))
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array
