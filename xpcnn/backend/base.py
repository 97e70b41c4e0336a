"""What a backend is: the one class whose methods are everything that differs between array modules.

A backend of the user's own subclasses `Backend` and gives `name`, `xp`, `owns`, `asarray`, `to_numpy` and
`synchronize`. Everything else has a default here that is right for any NumPy-like module.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from xpcnn.backend import exchange
from xpcnn.backend.graph import guards
from xpcnn.errors import DTypeError, MixedBackendsError

Array = Any  # an array of some backend; NumPy-like modules share no base class


class Backend:
    """Where arrays live and how work on them is done.

    Attributes
    ----------
    name : str
        What `set_backend` calls it.
    xp : module or namespace
        The array module.
    fused : mapping of str to callable
        Faster versions of the primitives of `functional/` under their names, with the primitive's own signature.

    Examples
    --------
    >>> backend = xpcnn.get_backend()
    >>> isinstance(backend, xpcnn.Backend), backend.owns(np.zeros(3))
    (True, True)
    """

    name: str
    xp: Any
    fused: Mapping[str, Callable[..., Any]] = {}

    # Whether one kernel does neighbours of a chain, such as batch norm and ReLU (`functional/merged.py`).
    merges: bool = False
    # The most numbers that the updates of optimisers in `fused` take, which look at an `ok` (1,) and change nothing
    # where it is False; 0 where there are none.
    update_limit: int = 0
    # Whether a convolution keeps columns that are no larger than its result, rather than make them twice.
    keeps_columns: bool = False
    # Columns that one piece of a convolution may hold at a time, and the working set of one slab of channels.
    column_bytes: int = 1 << 28
    slab_bytes: int | None = None
    # Size of an array from which `fetch` pays before a pass that reads it out of order; None for never.
    fetch_bytes: int | None = None
    # Whether `matmul` reads float16 and adds up in float32 at full speed; float16 goes through float32 elsewhere.
    multiplies_float16: bool = False

    def owns(self, array: Any) -> bool:
        """Say whether `array` is an array of this backend."""
        raise NotImplementedError

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        """Bring `a` (host data, or an array of this backend) here; no copy where none is needed."""
        raise NotImplementedError

    def to_numpy(self, a: Array) -> Any:
        """Return `a` as a `numpy.ndarray` on the host. Waits for the device."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""
        raise NotImplementedError

    def from_dlpack(self, x: Any) -> Array:
        """Return the memory of an array of another library as an array of this backend, without a copy.

        Parameters
        ----------
        x : array or tensor
            Of PyTorch, JAX, CuPy, NumPy or any other library that speaks DLPack (`__dlpack__`, `__dlpack_device__`),
            with any shape and any strides, negative ones included.

        Returns
        -------
        array
            With the shape, strides and dtype of `x`; what one side writes, the other sees. An array of this backend
            comes back as it is. What its owner has marked as read-only (all of JAX's) stays so.

        Raises
        ------
        DTypeError
            `x` does not speak DLPack, or this backend has no such dtype (bfloat16).
        BackendError
            `x` lies where this backend does not reach, or cannot be shared: PyTorch's tensors with `requires_grad`
            (hand over `x.detach()`), with a conjugate bit, and sparse ones.

        Notes
        -----
        The other way takes nothing of ours, for arrays are NumPy's or CuPy's own: `torch.from_dlpack(array)`,
        `jax.numpy.from_dlpack(array)`, `cupy.from_dlpack(array)`. None of them heeds everything: PyTorch writes to
        read-only arrays, and ends the process for negative strides; JAX takes dense arrays alone, and copies those
        that do not begin at a multiple of 64 bytes. `backend.contiguous(array)` gives what all of them take.

        Examples
        --------
        >>> import numpy as np
        >>> from xpcnn import get_backend
        >>> theirs = np.arange(3.0)  # or torch.arange(3.0)
        >>> ours = get_backend().from_dlpack(theirs)
        >>> theirs[0] = 7
        >>> ours
        array([7., 1., 2.])
        """
        return exchange.from_dlpack(self, x)

    def import_dlpack(self, x: Any) -> Array:
        """Return the memory behind `x.__dlpack__()`, which is within reach, as an array of this backend."""
        return self.xp.from_dlpack(x)

    def reaches(self, kind: int, number: int) -> bool:
        """Say whether the memory of a device is this backend's too: DLPack's DLDeviceType, and which one."""
        return kind in (exchange.CPU, exchange.CUDA_HOST, exchange.ROCM_HOST)

    # --- which instance -------------------------------------------------------------------------------------------

    def for_array(self, array: Array) -> Backend:
        """Return the backend of the array's own device; there is one device by default."""
        return self

    @property
    def home(self) -> Backend:
        """The backend itself, also where this one only records for it: what outlives a record belongs there."""
        return self

    def spread(self, index: int) -> Backend:
        """Return the backend for process `index` of a machine: one of several devices, where there are."""
        return self

    def new_reducer(self, rank: int, size: int, broadcast: Callable[[bytes | None, int], bytes]) -> Any:
        """Return what adds up arrays over processes where they lie, or None: `takes(a)`, `allreduce(a, op)` in place.

        All `size` processes call this alike; `broadcast(content, root)` gives each the bytes of process `root`.
        """
        return None

    def activate(self) -> None:
        """Make the backend's device the current one; called when it becomes the active backend."""

    def stores_float16(self, shape: Sequence[int]) -> bool:
        """Say whether kernels read and write float16 arrays (C, ..., N) and compute in float32; copies do elsewhere."""
        return False

    def multiplies(self, dtype: Any) -> bool:
        """Say whether `matmul` takes this dtype as it is; float16 goes through copies in float32 elsewhere."""
        return dtype.char != "e" or self.multiplies_float16

    # --- memory ---------------------------------------------------------------------------------------------------

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Return an uninitialised C-contiguous array that belongs to the caller."""
        return self.xp.empty(shape, dtype=dtype)

    def empty_input(self, shape: Sequence[int], dtype: Any) -> Array:
        """Return an uninitialised array that the host writes before each replay of a graph: no call of it may."""
        return self.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """Return a C-contiguous array of zeros that belongs to the caller."""
        return self.xp.zeros(shape, dtype=dtype)

    def scratch(self, slot: str, shape: Sequence[int], dtype: Any) -> Array:
        """Return an uninitialised work array, good until this thread asks for the same slot again."""
        return self.xp.empty(shape, dtype=dtype)

    def fetch(self, a: Array) -> None:
        """Bring `a` (C, ...), whose channels are contiguous, into a core's cache, where there is one to mind."""

    def contiguous(self, a: Array) -> Array:
        """Return `a` itself where it is C-contiguous, else a C-contiguous copy."""
        return self.xp.ascontiguousarray(a)

    def copy(self, a: Array) -> Array:
        """Return a C-contiguous copy of `a` that belongs to the caller."""
        out = self.empty(a.shape, a.dtype)
        self.xp.copyto(out, a)
        return out

    def copyto(self, out: Array, a: Array) -> None:
        """Copy `a` to `out`, an array of its shape, however the two lie in memory."""
        self.xp.copyto(out, a)

    def place(self, a: Array) -> Array:
        """Return `a`, or a copy, where recorded steps reach it best: for what every step reads or writes."""
        return a

    def constant(self, a: Array) -> Array:
        """Return `a`, or a copy, that nobody will write."""
        return a

    # --- work -----------------------------------------------------------------------------------------------------

    def get_num_threads(self) -> int:
        """Return how many host threads share the work."""
        return 1

    def set_num_threads(self, n: int) -> None:
        """Set how many host threads share the work; a backend without host threads has nothing to set."""

    def shares(self, work: float) -> bool:
        """Say whether `parallel` gives tasks of so much work to several threads."""
        return False

    def parallel(
        self, function: Callable[[Any], None], tasks: Sequence[Any], work: float = 0.0, products: bool = True
    ) -> None:
        """Call `function(task)` for every task, on all threads where that pays.

        `work` is the whole cost in elementary operations; small work stays in the calling thread. Without `products`
        among it, BLAS need not be held to one thread meanwhile.
        """
        for task in tasks:
            function(task)

    def planned(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return function(backend, *arguments) for arrays, and tuples and lists of them.

        `key` and the arrays' layouts must fix all calls of `xp` that it makes; a backend may then make them anew for
        other arrays without calling `function`. It returns arrays, or a tuple of arrays and of lists that hold them,
        and writes to nothing else than these and its arguments.
        """
        return function(self, *arguments)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return the matrix product `a @ b`, stacked over leading axes, written to `out` where given."""
        if out is None:
            return self.xp.matmul(a, b)
        return self.xp.matmul(a, b, out=out)

    def strided_view(self, a: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """Return a view from the first element of `a` on; nothing checks that it stays inside."""
        return self.xp.lib.stride_tricks.as_strided(a, shape, strides)

    def row_sums(self, a: Array, out: Array | None = None) -> Array:
        """Return the sum of each row of `a` (rows, n), written to `out` (rows,) where given."""
        return self.xp.sum(a, axis=1, out=out)

    def row_dots(self, a: Array, b: Array) -> Array:
        """Return the inner product of each row of `a` (rows, n) with the same row of `b`."""
        return self.xp.sum(a * b, axis=1)

    # --- streams of batches, captured steps -----------------------------------------------------------------------

    def prefetch(self, batches: Iterable[Sequence[Any]]) -> Iterator[tuple[Array, ...]]:
        """Bring batches of host arrays here, the next one while the caller works on the last."""
        for batch in batches:
            yield tuple(self.asarray(a) for a in batch)

    def device_bytes_free(self) -> int | None:
        """Return the bytes that data may still take on the device; None where the host's memory is the device's."""
        return None

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record `step` once and return what replays it; the default runs it anew each time.

        Raises
        ------
        BackendError
            The step holds something that cannot be recorded; the message says what.
        """
        return step

    def settings(self) -> Any:
        """Return what else decides which calls an operation makes, such as the number of threads."""
        return self.get_num_threads()

    def traced(self, a: Array) -> Array:
        """Return what a function that is being captured sees of an array."""
        return a

    def untraced(self, a: Any) -> Any:
        """Return the array that stands behind what a captured function saw of it; anything else as it is."""
        return a

    def duplicate(self, a: Array) -> Array:
        """Return a copy of `a` that lies in memory as `a` does, without gaps, and belongs to the caller."""
        if not a.ndim:
            return self.copy(a)
        order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
        there = self.empty([a.shape[axis] for axis in order], a.dtype)
        there = there.transpose(sorted(range(a.ndim), key=order.__getitem__))  # the axes of a
        self.xp.copyto(there, a)
        return there

    def overlap(self, a: Array, b: Array) -> bool:
        """Say whether two arrays may share memory."""
        return a is b

    def extent(self, a: Array) -> tuple[int, int] | None:
        """Return the address of an array's first byte and of the one behind its last; None where nobody knows."""
        return None

    # Paths of the backend's own code, beside the library's: no part of a function that is traced.
    tools: tuple[str, ...] = ()
    captures: bool = False  # whether `capture` records anything
    capture_runs: bool = False  # whether recording does the step's work, once
    immediate: bool = False  # whether results are there when a call returns, so that reading one costs nothing

    def as_recorded(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which this thread cuts work as recorded steps need it.

        A sum's last bits depend on how it is cut: steps that run as written before one is recorded belong in here too.
        """
        return contextlib.nullcontext()

    @property
    def is_as_recorded(self) -> bool:
        """Whether this thread is inside `as_recorded`."""
        return False

    def cuts(self) -> Any:
        """Return what says how this thread cuts work."""
        return None

    def demand(self, holds: Array, error: Exception) -> None:
        """Raise `error` unless every element of `holds` is true: when a value is next read, so that nothing waits."""
        flag = self.demand_flag(error)
        self.xp.logical_and(flag, holds.all(), out=flag)  # in place: a replayed step goes on reporting

    def demand_flag(self, error: Exception) -> Array:
        """Return the 0-d array, true by itself, whose turning false makes `check_demands` raise `error`."""
        pending = self.__dict__.setdefault("_demands", {})
        key = str(error)
        if key not in pending:
            pending[key] = self.xp.ones((), bool), error
        return pending[key][0]

    def check_demands(self) -> None:
        """Raise the error of the first demand that did not hold; called where values are read."""
        for flag, error in self.__dict__.get("_demands", {}).values():
            if not self.to_numpy(flag):
                flag[...] = True
                raise error

    def errstate(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which overflow, underflow and invalid operations give inf, 0 and nan, unannounced."""
        return contextlib.nullcontext()

    # --- description ----------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Return versions, device and settings as plain values for `xpcnn info` and a run's json."""
        return {"backend": self.name}

    def hints(self) -> list[str]:
        """Return what the user could change to make this backend faster, a line each."""
        return []


guards.by_identity(Backend)


# --- whose an array is: the backends that there are, by name, and the owner of each type of array ---------------------

_lock = threading.RLock()
_backends: dict[str, Backend] = {}
_by_type: dict[type, Backend] = {}


def backend_of(*arrays: Array | None) -> Backend:
    """Return the backend that owns all of `arrays`; None stands for an array that is not there.

    Raises
    ------
    DTypeError
        One of them is no array of a known backend.
    MixedBackendsError
        They belong to two backends (also a TypeError and a BackendError).
    """
    found: Backend | None = None
    kind: type | None = None
    for array in arrays:
        if array is None:
            continue
        if type(array) is not kind:
            kind = type(array)
            owner = _by_type.get(kind) or _find(array)
        backend = owner.for_array(array)
        if found is not None and backend is not found:
            raise MixedBackendsError(
                f"arrays: expected all on one backend, got {found.name} and {backend.name}; bring them together with "
                f'xpcnn.get_backend().asarray(...) or model.to("{found.name}")'
            )
        found = backend
    if found is None:
        raise DTypeError("arrays: expected at least one array, got none")
    return found


def _find(array: Any) -> Backend:
    with _lock:
        for backend in [*reversed(_backends.values())]:
            if backend.owns(array):
                _by_type[type(array)] = backend
                return backend
    raise DTypeError(
        f"array: expected an array of {', '.join(_backends)}, got {type(array).__name__}; "
        "make one with xpcnn.get_backend().asarray(...)"
    )
