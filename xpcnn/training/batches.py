"""What `fit` and `evaluate` take: an iterable of batches (x, labels), told apart from what is often given instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.data import DataLoader
from xpcnn.errors import ConfigError, DataError
from xpcnn.functional.part import Part

_WANTED = "expected a DataLoader or another iterable of batches (x, labels)"
_ADVICE = "use DataLoader(images, labels, batch_size)"


def check_batches(name: str, data: Any) -> None:
    """Raise ConfigError where `data` is an array, a data set, or something else that holds no batches."""
    if _is_array(data) or (isinstance(data, (tuple, list)) and data and _is_array(data[0])):
        what = data if _is_array(data) else data[0]
        raise ConfigError(f"{name}: {_WANTED}, got an array of shape {tuple(what.shape)}; {_ADVICE}")
    if isinstance(data, (str, bytes)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise ConfigError(f"{name}: {_WANTED}, got {type(data).__name__}; {_ADVICE}")


def check_arrays(x: Any, labels: Any) -> None:
    """Raise DataError where one of the two is no array, or a number alone."""
    for name, value in (("x", x), ("labels", labels)):
        if not getattr(value, "shape", ()):
            raise DataError(f"{name}: expected an array of a batch, got {type(value).__name__}")


def unpack(name: str, batch: Any) -> tuple[Array, Array]:
    """Return x and labels of a batch.

    Raises
    ------
    DataError
        It is not a pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"an array of shape {tuple(batch.shape)}" if _is_array(batch) else type(batch).__name__
    if isinstance(batch, (tuple, list)):
        got += f" of {len(batch)}"
    raise DataError(f"{name}: expected batches (x, labels), got {got}; {_ADVICE}")


def shared(
    data: Iterable[Any], divide: Callable[[int], Part], name: str, done: int = 0
) -> Iterator[tuple[Array, Array, Part]]:
    """Yield a part of each batch, and which part: `part.images` of it.

    Parameters
    ----------
    data : DataLoader, or any iterable of (x, labels)
    divide : callable
        From the images of a batch to the part that is wanted.
    name : str
        What an error calls `data`.
    done : int
        Batches to pass over, of an iterable without a position of its own.
    """
    if isinstance(data, DataLoader):
        yield from data.parts(divide)
        return
    for batch in islice(iter(data), 0 if hasattr(data, "load_state_dict") else done, None):
        x, labels = unpack(name, batch)
        part = divide(x.shape[0])
        backend = backend_of(x)
        yield backend.duplicate(x[part.images]), labels[part.images], part


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
