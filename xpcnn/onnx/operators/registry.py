"""The table of ONNX's operators that are read, and what a function of one is told.

An operator is a function of a `Call` and its inputs (None for one left out) that returns the result, or a tuple of
results, and `backward(*dys)`, which returns a gradient for each input (None for none). It computes over `call.xp`, with
NumPy for numbers of the host such as shapes, with the backend's module for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Array, Backend
from xpcnn.errors import DataError

Results = tuple[Any, Callable[..., Sequence[Any]] | None]


class Call:
    """One call of a node.

    Attributes
    ----------
    attributes : mapping
    version : int
        The opset of the file, by which the meaning of some operators differs.
    outputs : int
        How many results are asked for.
    backend : Backend or None
        None where it computes on the host.
    training : bool
    """

    __slots__ = ("attributes", "backend", "batch", "outputs", "training", "version", "xp")

    def __init__(
        self,
        attributes: Mapping[str, Any],
        version: int,
        outputs: int,
        backend: Backend | None,
        training: bool = False,
        batch: int | None = None,
    ) -> None:
        self.attributes, self.version, self.outputs, self.backend = attributes, version, outputs, backend
        self.training, self.batch = training, batch
        self.xp: Any = np if backend is None else backend.xp

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def array(self, value: Any, like: Array) -> Array:
        """Return numbers of the host as an array where the call computes, with the dtype of another."""
        values = np.asarray(value, str(like.dtype))
        return values if self.backend is None else self.backend.asarray(values)

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        """Return zeros with the dtype of another array."""
        return np.zeros(shape, like.dtype) if self.backend is None else self.backend.zeros(shape, like.dtype)

    def full(self, shape: tuple[int, ...], value: Any, like: Array) -> Array:
        """Return an array of one value with the dtype of another array."""
        y = self.zeros(shape, like)
        self.xp.copyto(y, value)
        return y


class Operator(NamedTuple):
    """An operator: its function, and which of its inputs are numbers of the host."""

    function: Callable[..., Results]
    host: tuple[int, ...]


OPERATORS: dict[str, Operator] = {}


def operator(name: str, *, host: tuple[int, ...] = ()) -> Callable[[Callable[..., Results]], Callable[..., Results]]:
    """Put a function into the table; `host` are the places of inputs such as shapes and axes."""

    def add(function: Callable[..., Results]) -> Callable[..., Results]:
        OPERATORS[name] = Operator(function, host)
        return function

    return add


def integers(value: Any) -> list[int]:
    """Return numbers of the host as a list of Python's."""
    return [int(each) for each in np.asarray(value).reshape(-1)]


def unbroadcast(call: Call, d: Array, shape: tuple[int, ...]) -> Array:
    """Return a gradient summed over the axes along which an input of this shape was repeated."""
    if tuple(d.shape) == tuple(shape):
        return d
    extra = d.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and d.shape[i + extra] != 1)
    return call.xp.sum(d, axis=axes, keepdims=True).reshape(shape)


def is_float(x: Any) -> bool:
    """Whether an array is one of floating numbers."""
    return bool(x.dtype.kind == "f")


def wrong(message: str) -> DataError:
    """Return the error of a node that its own numbers contradict."""
    return DataError(message)
