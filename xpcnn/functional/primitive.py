"""The hook for kernels: a primitive is a portable function over `xp` that a backend may replace under its name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from xpcnn.backend import Backend, is_portable
from xpcnn.backend.graph.tracing import tracing

F = TypeVar("F", bound=Callable[..., Any])


def primitive(portable: F) -> F:
    """Make `portable(backend, ...)` call `backend.fused[its name]` where the backend has one.

    The portable body stays reachable as `.portable`: it is the oracle of the faster version, which takes the same
    arguments and leaves the same result, or returns NotImplemented for what it does not do. With XPCNN_PORTABLE=1 it
    is all that there is.
    """
    name = portable.__name__

    def run(backend: Backend, *args: Any, **options: Any) -> Any:
        fused = backend.fused.get(name)
        result = NotImplemented if fused is None else fused(backend, *args, **options)
        return portable(backend, *args, **options) if result is NotImplemented else result

    @functools.wraps(portable)
    def call(backend: Backend, *args: Any, **options: Any) -> Any:
        trace = tracing()
        if trace is None:
            return run(backend, *args, **options)
        with trace.within_library(backend):
            return run(backend, *args, **options)

    made = cast("Any", portable if is_portable() else call)
    made.portable = portable
    return cast("F", made)
