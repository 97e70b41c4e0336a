"""How a layer makes its parameters: drawn on the host, moved to the active backend; or made to take those of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from xpcnn.backend import get_backend
from xpcnn.errors import DataError, DTypeError, ShapeError
from xpcnn.nn.init import Initializer
from xpcnn.nn.parameter import Parameter
from xpcnn.windows import integer

Kind = tuple[tuple[int, ...], str]  # shape and dtype of an array


class Expected:
    """Which parameters a file holds: layers that are made for it draw no values, and none that the file cannot fill.

    Parameters
    ----------
    kinds : mapping of str to (shape, dtype)
        By path, as in `state_dict`.

    Attributes
    ----------
    path : str
        Of the module that is being made.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._left = dict(kinds)
        self._paths: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for path, (shape, _) in reversed(list(kinds.items())):
            self._paths.setdefault((path.rpartition(".")[2], tuple(shape)), []).append(path)
        self.path = ""

    def take(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the dtype of the parameter of this name and shape, once.

        A layer that another one's constructor makes does not know its path: it takes the next one that fits.

        Raises
        ------
        DataError
            There is none.
        """
        path = f"{self.path}.{name}" if self.path else name
        if path in self._left and self._left[path][0] == tuple(shape):
            return self._left.pop(path)[1]
        fitting = self._paths.get((name, tuple(shape)), [])
        while fitting:
            other = fitting.pop()
            if other in self._left:
                return self._left.pop(other)[1]
        found = f"shape {self._left[path][0]}" if path in self._left else "none"
        raise DataError(f"expected parameters {path!r} of shape {tuple(shape)!s:.80}, got {found}")


_expected: ContextVar[Expected | None] = ContextVar("xpcnn_expected_parameters", default=None)


@contextlib.contextmanager
def expecting(expected: Expected) -> Iterator[None]:
    """Let layers that are made inside a `with` block have the parameters of a file, with zeros for values."""
    token = _expected.set(expected)
    try:
        yield
    finally:
        _expected.reset(token)


def check_channels(in_channels: int, out_channels: int, groups: int) -> tuple[int, int]:
    """Return both numbers of channels of a convolution; raise ShapeError unless `groups` divides them."""
    in_channels, out_channels = integer("in_channels", in_channels, 1), integer("out_channels", out_channels, 1)
    if in_channels % integer("groups", groups, 1) or out_channels % groups:
        raise ShapeError(
            "groups: expected a divisor of in_channels and out_channels, "
            f"got groups={groups}, in_channels={in_channels}, out_channels={out_channels}"
        )
    return in_channels, out_channels


def new_parameter(name: str, initializer: Initializer, shape: tuple[int, ...], dtype: Any) -> Parameter:
    """Return a parameter of `shape` on the active backend with values from `initializer`."""
    backend, expected = get_backend(), _expected.get()
    if expected is not None:
        return Parameter(backend.zeros(tuple(shape), expected.take(name, shape)), name)
    values = backend.asarray(initializer(shape), dtype)
    if tuple(values.shape) != tuple(shape):
        raise ShapeError(f"{name}: expected initial values of shape {tuple(shape)}, got {tuple(values.shape)}")
    if values.dtype.kind != "f":
        raise DTypeError(f"dtype: expected a floating type such as float32, got {values.dtype}")
    return Parameter(values, name)
