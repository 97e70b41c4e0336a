"""Named arrays in safetensors files: written whole, read without trust."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from xpcnn.datasets.formats import PEEK, describe
from xpcnn.datasets.source import read_file
from xpcnn.errors import DataError, XpcnnError
from xpcnn.nn import Module
from xpcnn.training.files import write_bytes


def encode(arrays: Mapping[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """Return host arrays by name as the bytes of a safetensors file."""
    from safetensors.numpy import save

    contiguous = {name: array if array.flags.c_contiguous else array.copy() for name, array in arrays.items()}
    return bytes(save(contiguous, metadata))


def decode(content: bytes, name: str) -> dict[str, Any]:
    """Return the host arrays in the bytes of a safetensors file; `name` is what an error calls it.

    Raises
    ------
    DataError
        They are no safetensors file, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    found = describe(content[:PEEK])
    # It begins with the length of its header, whose bytes may be those of any other kind of file.
    if content[8:9] != b"{" and found is not None:
        raise DataError(f"{name}: expected a safetensors file, got {found}")
    try:
        return dict(load(content))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: expected a safetensors file, got a damaged one ({reason:.120})") from error


def save_parameters(model: Module, path: str | os.PathLike[str]) -> None:
    """Write a model's parameters and buffers to a safetensors file, whole or not at all.

    Raises
    ------
    DataError
        The file cannot be written; what was there before is untouched.
    """
    write_bytes(path, encode(host_state(model)))


def load_parameters(model: Module, path: str | os.PathLike[str]) -> None:
    """Read parameters and buffers that `save_parameters` wrote into a model of the same shapes.

    Raises
    ------
    DataError
        The file is not there, no regular file or damaged, a name, shape or dtype differs, or a value is nan, infinite
        or a negative variance; the model is unchanged then.
    """
    source = os.fspath(path)
    arrays = decode(read_file(path, "safetensors file"), source)
    check_values(arrays, source)
    load_host_state(model, arrays, source)


def check_values(arrays: Mapping[str, Any], source: str) -> None:
    """Check that host arrays hold what a training may leave.

    Raises
    ------
    DataError
        A value is nan, infinite or a negative variance.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and array.size and not math.isfinite(float(abs(array).max())):
            raise DataError(f"{source}: expected finite numbers, got nan or infinity in {name!r}; its training failed")
        if name.rpartition(".")[2] == "running_var" and array.size and array.min() < 0:
            raise DataError(f"{source}: expected variances of 0 or more, got {array.min():.4g} in {name!r}")


def host_state(model: Module) -> dict[str, Any]:
    """Return copies of a model's parameters and buffers on the host."""
    from xpcnn.backend import backend_of

    return {name: backend_of(array).to_numpy(array).copy() for name, array in model.state_dict().items()}


def load_host_state(model: Module, arrays: Mapping[str, Any], source: str) -> None:
    """Copy host arrays into a model, all of them or, with a DataError that names `source`, none."""
    mine = model.state_dict()
    for name in mine:
        if name not in arrays:
            raise DataError(f"{source}: expected an array named {name!r}, got none; it belongs to another model")
    for name, array in arrays.items():
        if name not in mine:
            raise DataError(f"{source}: expected no array named {name!r}; it belongs to another model")
        expected = tuple(mine[name].shape), str(mine[name].dtype)
        got = tuple(array.shape), str(array.dtype)
        if got != expected:
            raise DataError(
                f"{source}: expected {name!r} as {expected[1]} {expected[0]}, got {got[1]} {got[0]}; "
                "it belongs to another model"
            )
    try:
        model.load_state_dict(arrays)
    except XpcnnError as error:
        raise DataError(f"{source}: {error}") from error
