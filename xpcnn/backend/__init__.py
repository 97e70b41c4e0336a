"""The switch: which backend is active, and which backend owns an array.

One rule: the switch says where new arrays are born (`get_backend`); an operation follows the backend that owns its
arrays (`backend_of`), found once per array type. `set_backend` sets the process default, `use_backend` overrides it
in one thread or async task.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from xpcnn.backend.base import Array, Backend, _backends, _by_type, _lock, backend_of
from xpcnn.backend.graph import changed, compile
from xpcnn.backend.numpy import NumpyBackend, cores
from xpcnn.backend.numpy.plain import PlainNumpyBackend
from xpcnn.backend.portable import is_portable
from xpcnn.errors import BackendError, ConfigError

__all__ = [
    "Array",
    "Backend",
    "available_backends",
    "backend_of",
    "compile",
    "get_backend",
    "get_num_threads",
    "get_winograd",
    "is_portable",
    "register_backend",
    "resolve",
    "set_backend",
    "set_num_threads",
    "set_winograd",
    "share_cores",
    "use_backend",
]

_backends["numpy"] = PlainNumpyBackend() if is_portable() else NumpyBackend()
_by_type[type(_backends["numpy"].asarray(0))] = _backends["numpy"]
_default: Backend | None = None
_thread = threading.local()
_override: ContextVar[Backend | None] = ContextVar("xpcnn_backend", default=None)


def get_backend() -> Backend:
    """Return the active backend: `use_backend`'s, else `set_backend`'s, else XPCNN_BACKEND's, else NumPy's.

    Examples
    --------
    >>> backend = xpcnn.get_backend()
    >>> backend.xp.zeros(3)
    array([0., 0., 0.])
    """
    backend = _override.get()
    if backend is None:
        if _default is None:
            set_backend(os.environ.get("XPCNN_BACKEND") or "numpy")
        backend = _default
    if getattr(_thread, "activated", None) is not backend:  # it was set in another thread
        _activate(backend)  # type: ignore[arg-type]
    return backend  # type: ignore[return-value]


def _activate(backend: Backend) -> None:
    """Tell a backend that it is the active one in this thread: devices are current for a thread."""
    backend.activate()
    _thread.activated = backend


def set_backend(name: str) -> None:
    """Set the process default.

    Parameters
    ----------
    name : str
        "numpy", "cupy", "cupy:1" (a device by its number), "auto" (CuPy where a CUDA device answers, else NumPy),
        or the name of a registered backend.

    Raises
    ------
    BackendError
        The name is unknown, or the backend is not there; the message says what to install or check.

    Examples
    --------
    >>> xpcnn.set_backend("numpy")  # "auto" takes a GPU where one answers
    >>> xpcnn.get_backend().name
    'numpy'
    """
    global _default
    backend = resolve(name)
    _activate(backend)
    _default = backend
    changed()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[Backend]:
    """Make a backend the active one in this thread or async task, for the length of a `with` block; nests.

    Examples
    --------
    >>> with xpcnn.use_backend("numpy") as backend:
    ...     x = backend.asarray([1.0, 2.0])
    ...
    >>> x
    array([1., 2.])
    """
    backend = resolve(name)
    token = _override.set(backend)
    _activate(backend)
    try:
        yield backend
    finally:
        _override.reset(token)
        _thread.activated = None
        get_backend()


def register_backend(backend: Backend) -> None:
    """Let a backend of the user's own take part under its `.name`; a name that is taken is replaced.

    Raises
    ------
    BackendError
        It is no `Backend`, has no name, or would replace NumPy or CuPy.

    Examples
    --------
    >>> from xpcnn.examples.backend import CountingBackend
    >>> if "counting" not in xpcnn.available_backends():
    ...     xpcnn.register_backend(CountingBackend())
    ...
    >>> "counting" in xpcnn.available_backends()
    True
    """
    if not isinstance(backend, Backend):
        raise BackendError(f"backend: expected an instance of a subclass of xpcnn.Backend, got {backend!r}")
    name = getattr(backend, "name", None)
    if not isinstance(name, str) or not name or name in ("numpy", "auto") or name.split(":")[0] == "cupy":
        raise BackendError(f"backend.name: expected a name other than numpy, cupy and auto, got {name!r}")
    with _lock:
        previous = _backends.get(name)
        _backends[name] = backend
        for kind in [kind for kind, owner in _by_type.items() if owner is previous]:
            del _by_type[kind]


def available_backends() -> list[str]:
    """Return the names that answer on this machine, such as `["numpy"]` or `["numpy", "cupy", "cupy:1"]`.

    Examples
    --------
    >>> "numpy" in xpcnn.available_backends()
    True
    """
    from xpcnn.backend import cupy

    return list(dict.fromkeys([*_backends, *cupy.device_names()]))


def get_num_threads() -> int:
    """Return how many host threads share the work of the NumPy backend.

    Examples
    --------
    >>> xpcnn.get_num_threads() >= 1
    True
    """
    return _backends["numpy"].get_num_threads()


def set_num_threads(n: int) -> None:
    """Set how many host threads share the work of the NumPy backend (never more than the process may use).

    Raises
    ------
    ConfigError
        `n` is not an integer of 1 or more.

    Examples
    --------
    >>> before = xpcnn.get_num_threads()
    >>> xpcnn.set_num_threads(1)
    >>> xpcnn.get_num_threads()
    1
    >>> xpcnn.set_num_threads(before)
    """
    _backends["numpy"].set_num_threads(n)
    changed()


def share_cores(mine: Sequence[int], masks: Sequence[Sequence[int]]) -> int:
    """Leave the other ranks of a job on this machine their share of the cores, and return this one's, one at least.

    Threads of the NumPy backend, and with them worker processes, keep to it from now on; see `cores.divide`.
    """
    share = cores.divide(mine, masks)
    pool = getattr(_backends["numpy"], "pool", None)
    if pool is not None:
        pool.reconsider()
    changed()
    return share


def get_winograd() -> bool:
    """Return whether large 3x3 convolutions on NumPy may go through Winograd's transforms.

    Examples
    --------
    >>> xpcnn.get_winograd()
    True
    """
    return bool(getattr(_backends["numpy"], "winograd", False))


def set_winograd(enabled: bool) -> None:
    """Let large 3x3 convolutions on NumPy go through Winograd's transforms (the default), or hold them to plain sums.

    The transforms need a quarter of the multiplications, at the price of rounding: see
    `xpcnn/backend/numpy/convolution/winograd.py`, which states the bounds of both ways. The setting is the process's.

    Raises
    ------
    ConfigError
        `enabled` is no bool.

    Examples
    --------
    >>> xpcnn.set_winograd(False)
    >>> xpcnn.get_winograd()
    False
    >>> xpcnn.set_winograd(True)
    """
    if not isinstance(enabled, bool):
        raise ConfigError(f"enabled: expected True or False, got {enabled!r}")
    _backends["numpy"].winograd = enabled  # type: ignore[attr-defined]
    changed()


def resolve(name: str) -> Backend:
    """Return the backend of a name as `set_backend` takes it; raise BackendError where there is none."""
    if not isinstance(name, str):
        raise BackendError(f'name: expected a backend\'s name such as "numpy", got {name!r}')
    with _lock:
        if name in _backends:
            return _backends[name]
        from xpcnn.backend import cupy

        if name == "auto":
            return resolve("cupy") if cupy.device_names() else _backends["numpy"]
        if name.split(":")[0] != "cupy":
            raise BackendError(
                f"name: expected one of {', '.join([*_backends, 'cupy', 'auto'])}, got {name!r}; "
                "a backend of your own needs xpcnn.register_backend first"
            )
        made = cupy.create(name)
        backend = _backends.setdefault(made.name, made)
    backend_of(backend.empty((0,), "float32"))  # from now on its arrays are known by their type
    return backend
