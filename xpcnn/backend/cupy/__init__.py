"""The CuPy backend: arrays on a CUDA GPU. CuPy is imported here and in `cupy_*.py` alone, and only when asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from xpcnn.backend import exchange
from xpcnn.backend.base import Array, Backend
from xpcnn.backend.cupy import kernel_cache
from xpcnn.backend.cupy.driver import driver_version, install_advice
from xpcnn.backend.graph import changed
from xpcnn.backend.portable import is_portable
from xpcnn.errors import BackendError, DTypeError, OutOfMemoryError

_lock = threading.RLock()
_by_device: dict[int, CupyBackend] = {}


def device_names() -> list[str]:
    """Return a name for each CUDA device that answers, the first one plain "cupy"; never raises."""
    try:
        if importlib.util.find_spec("cupy") is None:
            return []
        kernel_cache.ensure()
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception:  # a broken installation has no devices; `create` says why
        return []
    return [_name(device) for device in range(count)]


def create(name: str) -> CupyBackend:
    """Return the backend of a device, always the same one: "cupy" is device 0, "cupy:1" device 1.

    Raises
    ------
    BackendError
        CuPy is not installed or broken, no driver answers, or there is no such device; the message says which and
        what to do.
    """
    device = _device(name)
    with _lock:
        if device not in _by_device:
            _check(name, device)
            _by_device[device] = CupyBackend(device)
        return _by_device[device]


def _name(device: int) -> str:
    return f"cupy:{device}" if device else "cupy"


def _device(name: str) -> int:
    prefix, colon, number = name.partition(":")
    if prefix != "cupy" or (colon and not (number.isascii() and number.isdecimal())):
        raise BackendError(f'name: expected "cupy" or "cupy:K" with K the number of a device, got {name!r}')
    return int(number or 0)


def _check(name: str, device: int) -> None:
    """Raise BackendError unless CuPy is there and `device` answers."""
    if importlib.util.find_spec("cupy") is None:
        raise BackendError(f"name: {name!r} needs CuPy, which is not installed; {install_advice()}")
    kernel_cache.ensure()
    try:
        import cupy
    except Exception as error:
        raise BackendError(
            f"name: {name!r} needs CuPy, which is installed but cannot be imported ({_first_line(error)}); "
            f"remove every cupy package, then {install_advice()}"
        ) from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if "NoDevice" in str(error):
            count = 0
        elif runtime.is_hip or driver_version() is not None:
            raise BackendError(
                f"name: {name!r} found a driver that CuPy {cupy.__version__} cannot use ({_first_line(error)}); "
                f"{install_advice()}"
            ) from error
        else:
            raise BackendError(
                f"name: {name!r} found CuPy {cupy.__version__} but no NVIDIA driver; install the driver, and check "
                "with nvidia-smi that it sees the GPU (in a container: start it with the GPU passed through)"
            ) from error
    if device >= count:
        there = ", ".join(_name(other) for other in range(count)) or "none (check CUDA_VISIBLE_DEVICES)"
        raise BackendError(f"name: {name!r} is not there; CUDA devices that answer: {count}, named {there}")
    missing = None if runtime.is_hip else _missing_compiler(cupy)
    if missing is not None:
        raise BackendError(
            f"name: {name!r} found CuPy {cupy.__version__} and a device, but no kernel can be compiled ({missing}); "
            f"{install_advice()}, whose CuPy brings compiler and headers along"
        )


def _missing_compiler(cupy: Any) -> str | None:
    """Say what CuPy lacks to compile a kernel, the compiler or CUDA's headers (its own extra, [ctk]); None: nothing."""
    from cupy._core import core

    try:
        cupy.cuda.nvrtc.getVersion()
        core.assemble_cupy_compiler_options(())  # looks for the headers as each kernel will
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =\t")]
    return lines[0] if lines else type(error).__name__


class CupyBackend(Backend):
    """Arrays are `cupy.ndarray` of one device; work is queued on the current stream and done in order.

    Attributes
    ----------
    allow_tf32 : bool
        Whether float32 products may round their operands to TF32 (10 bits of mantissa) on tensor cores; False unless
        the environment says XPCNN_TF32=1. Needs compute capability 8.0.
    implicit_gemm : bool
        Whether convolutions of float32 and, from compute capability 8.0 on, float16 go through kernels of our own that
        keep no columns in memory (`convolution.py`), not through im2col and cuBLAS; False unless the environment says
        XPCNN_IMPLICIT_GEMM=1, for no GPU has shown yet where they are faster.
    """

    multiplies_float16 = True  # cuBLAS, with sums in float32

    def __init__(self, device: int) -> None:
        import cupy

        from xpcnn.backend.cupy.capture import GraphMemory
        from xpcnn.backend.cupy.cublas import Cublas
        from xpcnn.backend.cupy.kernels import INDEX_LIMIT, Kernels
        from xpcnn.backend.cupy.updates import FUSED

        self.name = _name(device)
        self.xp = cupy
        self.device_id = device
        self.device = cupy.cuda.Device(device)
        self.is_cuda = not cupy.cuda.runtime.is_hip
        with self.device:
            properties = cupy.cuda.runtime.getDeviceProperties(device)
        self.device_name = properties["name"].decode()
        self.compute_capability = (properties["major"], properties["minor"])
        self.multiprocessors: int = properties["multiProcessorCount"]
        self.total_bytes: int = properties["totalGlobalMem"]
        # One piece for all but the largest images, and never a large part of the device.
        self.column_bytes = max(1 << 26, min(1 << 31, self.total_bytes // 16))
        self.captures = self.is_cuda and not is_portable()
        # Modules that are compiled call their files by paths that begin at the package.
        self.tools = (os.path.dirname(cupy.__file__) + os.sep, "cupy/", "cupy_backends/")
        self._tf32 = self._implicit_gemm = False
        self.graphs = GraphMemory(cupy, self.device)
        self.lanes: list[Any] = []  # copy streams and pinned memory that `prefetch` does not use just now
        self.cublas: Cublas | None = None
        self.kernels = Kernels(cupy, device)
        self.fused: Mapping[str, Callable[..., Any]] = FUSED if self.is_cuda and not is_portable() else {}
        self.merges = self.keeps_columns = bool(self.fused)
        self.update_limit = INDEX_LIMIT - 1 if self.fused else 0
        if self.is_cuda:
            self.cublas = Cublas(cupy, self.compute_capability)
        if os.environ.get("XPCNN_TF32") == "1":
            self.allow_tf32 = True
        if os.environ.get("XPCNN_IMPLICIT_GEMM") == "1":
            self.implicit_gemm = True

    @property
    def allow_tf32(self) -> bool:
        """Whether float32 products may use TF32."""
        return self._tf32

    @allow_tf32.setter
    def allow_tf32(self, allow: bool) -> None:
        if allow and (self.cublas is None or self.compute_capability < (8, 0)):
            major, minor = self.compute_capability
            raise BackendError(
                f"allow_tf32: expected a GPU of compute capability 8.0 or newer, got {self.device_name} with "
                f"{major}.{minor}; leave it off (unset XPCNN_TF32)"
            )
        self._tf32 = bool(allow)
        changed()

    @property
    def implicit_gemm(self) -> bool:
        """Whether convolutions keep no columns in memory."""
        return self._implicit_gemm

    @implicit_gemm.setter
    def implicit_gemm(self, enabled: bool) -> None:
        self._implicit_gemm = bool(enabled)
        self.keeps_columns = bool(self.fused) and not enabled  # there are none to keep
        changed()

    def settings(self) -> Any:
        return self._tf32, self._implicit_gemm

    def owns(self, array: Any) -> bool:
        return isinstance(array, self.xp.ndarray)

    def for_array(self, array: Array) -> Backend:
        device = array.data.device_id
        backend = self if device == self.device_id else create(_name(device))
        backend.activate()  # an operation runs where its arrays are
        return backend

    def spread(self, index: int) -> Backend:
        from xpcnn.backend import resolve

        if self.device.id:  # one that somebody has named
            return self
        return resolve(_name(index % self.xp.cuda.runtime.getDeviceCount()))

    def new_reducer(self, rank: int, size: int, broadcast: Callable[[bytes | None, int], bytes]) -> Any:
        from xpcnn.backend.cupy.nccl import new_reducer

        return new_reducer(self, rank, size, broadcast)

    def activate(self) -> None:
        """Make this device CUDA's current one in this thread: a thread begins with device 0."""
        if self.xp.cuda.device.get_device_id() != self.device_id:
            self.device.use()

    # --- between host and device ----------------------------------------------------------------------------------

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        from xpcnn.backend.cupy.transfer import upload

        with self.device, self.guard():
            if isinstance(a, self.xp.ndarray) or hasattr(a, "__cuda_array_interface__"):
                return self.xp.asarray(a, dtype=dtype)
            return upload(self.xp, a, dtype)

    def to_numpy(self, a: Array) -> Any:
        if not isinstance(a, self.xp.ndarray):
            raise DTypeError(f"a: expected an array of CuPy, got {type(a).__name__}")
        return self.xp.asnumpy(a)

    def import_dlpack(self, x: Any) -> Array:
        with self.device, self.guard():
            return self.xp.from_dlpack(x)

    def reaches(self, kind: int, number: int) -> bool:
        own = (exchange.CUDA, exchange.CUDA_MANAGED) if self.is_cuda else (exchange.ROCM,)
        return kind in own and number == self.device_id

    def synchronize(self) -> None:
        self.device.synchronize()

    def prefetch(self, batches: Iterable[Sequence[Any]]) -> Iterator[tuple[Array, ...]]:
        from xpcnn.backend.cupy.transfer import prefetch

        return prefetch(self, batches)

    def overlap(self, a: Array, b: Array) -> bool:
        return bool(self.xp.may_share_memory(a, b))

    def extent(self, a: Array) -> tuple[int, int]:
        first, last = self.xp.byte_bounds(a)
        return int(first), int(last)

    # --- memory ---------------------------------------------------------------------------------------------------

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        self.activate()
        try:
            return self.xp.empty(shape, dtype)
        except MemoryError as error:
            raise self._out_of_memory(error) from error

    def empty_input(self, shape: Sequence[int], dtype: Any) -> Array:
        with self.graphs.inputs():
            return self.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        self.activate()
        try:
            return self.xp.zeros(shape, dtype)
        except MemoryError as error:
            raise self._out_of_memory(error) from error

    def scratch(self, slot: str, shape: Sequence[int], dtype: Any) -> Array:
        return self.empty(shape, dtype)  # the pool is what keeps blocks from step to step

    def device_bytes_free(self) -> int | None:
        self.graphs.give_back()
        with self.device:
            pool = self.xp.get_default_memory_pool()
            free = self.xp.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
            limit = pool.get_limit()
        return max(0, min(free, limit - pool.used_bytes())) if limit else int(free)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn CuPy's out-of-memory errors inside the block into `OutOfMemoryError` with the sizes."""
        try:
            yield
        except OutOfMemoryError:
            raise
        except Exception as error:
            if not self.is_out_of_memory(error):
                raise
            raise self._out_of_memory(error) from error

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an exception says that device memory is at its end: ours, CuPy's, or CUDA's own."""
        from xpcnn.backend.cupy.capture import MEMORY_ALLOCATION

        return isinstance(error, MemoryError) or (
            isinstance(error, self.xp.cuda.runtime.CUDARuntimeError) and error.status == MEMORY_ALLOCATION
        )

    def _out_of_memory(self, error: Exception) -> OutOfMemoryError:
        asked = str(error).split("(")[0].strip() or "out of memory"
        pool = self.xp.get_default_memory_pool()
        with self.device:
            free, total = self.xp.cuda.runtime.memGetInfo()
            used, kept = pool.used_bytes(), pool.free_bytes()
        return OutOfMemoryError(
            f"{self.name}: {asked[0].lower()}{asked[1:]}; {self.device_name} has {free:,} of {total:,} bytes free, "
            f"this process uses {used:,} and keeps {kept:,} for later; use a smaller batch, "
            "or end other programs on the GPU (nvidia-smi lists them)"
        )

    # --- work -----------------------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        if self.cublas is None or not self.cublas.takes(a, b, out):
            with self.guard():
                return super().matmul(a, b, out)
        if out is None:
            lead = a.shape[:-2] if a.ndim >= b.ndim else b.shape[:-2]
            out = self.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype)
        self.cublas.product(a, b, out, tf32=self._tf32)
        return out

    def row_sums(self, a: Array, out: Array | None = None) -> Array:
        from xpcnn.backend.cupy.fused import row_sums

        result = row_sums(self, a, None, out) if self.fused else NotImplemented
        return super().row_sums(a, out) if result is NotImplemented else result

    def row_dots(self, a: Array, b: Array) -> Array:
        from xpcnn.backend.cupy.fused import row_sums

        result = row_sums(self, a, b) if self.fused else NotImplemented
        return super().row_dots(a, b) if result is NotImplemented else result

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        from xpcnn.backend.cupy.capture import CapturedStep

        return CapturedStep(self, step)

    def stores_float16(self, shape: Sequence[int]) -> bool:
        from xpcnn.backend.cupy.fused import fits_shape

        return bool(self.fused) and fits_shape(shape)

    # --- what runs here -------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        from xpcnn.backend.cupy.info import info

        return info(self)

    def hints(self) -> list[str]:
        from xpcnn.backend.cupy.info import hints

        return hints(self)
