"""Named arrays in safetensors files: written whole, read without trust."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from xpcnn.datasets.formats import PEEK, describe
from xpcnn.datasets.safetensors_file import read_safetensors
from xpcnn.datasets.source import read_file
from xpcnn.datasets.torch_file import read_torch
from xpcnn.errors import DataError, XpcnnError
from xpcnn.nn import Module
from xpcnn.nn.state import known, widens
from xpcnn.training.files import write_bytes

_ANOTHER = "it belongs to another model (where only names differ, `xpcnn guide exchange` pairs them)"


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
    found = describe(content[:PEEK])
    if found not in (None, _SAFETENSORS, "an IDX file"):
        raise DataError(f"{name}: expected a safetensors file, got {found}")
    return read_safetensors(content, name)


def save_parameters(model: Module, path: str | os.PathLike[str]) -> None:
    """Write a model's parameters and buffers to a safetensors file, whole or not at all.

    Raises
    ------
    DataError
        The file cannot be written; what was there before is untouched.

    Examples
    --------
    >>> from xpcnn import training
    >>> from tempfile import TemporaryDirectory
    >>> model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    >>> with TemporaryDirectory() as folder:
    ...     training.save_parameters(model, f"{folder}/p.safetensors")
    ...     training.load_parameters(other, f"{folder}/p.safetensors")
    ...
    >>> bool((model.weight.data == other.weight.data).all())
    True
    """
    write_bytes(path, encode(host_state(model)))


def load_parameters(model: Module, path: str | os.PathLike[str]) -> None:
    """Read the parameters and buffers of a file into a model of the same names and shapes.

    Parameters
    ----------
    model : Module
        The file's names are those of its `state_dict`; `load_state_dict` says what is understood beside them. All of
        them may have the "module." before them that PyTorch's `DataParallel` puts there.
    path : str or os.PathLike
        What `save_parameters` or `save_model` wrote, a safetensors file of PyTorch or Hugging Face, or a .pt or .pth
        file of PyTorch (`torch.save(model.state_dict(), path)`, or a checkpoint that holds this under a name such as
        "state_dict" or "model"), of any release. float16 and bfloat16 go into wider floats. Nothing in a file is run.

    Raises
    ------
    DataError
        The file is not there, no regular file or damaged, a name, shape or dtype differs, or a value is nan, infinite
        or a negative variance; the model is unchanged then.

    Examples
    --------
    >>> from xpcnn import training
    >>> from tempfile import TemporaryDirectory
    >>> model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    >>> with TemporaryDirectory() as folder:
    ...     training.save_parameters(model, f"{folder}/p.safetensors")
    ...     training.load_parameters(other, f"{folder}/p.safetensors")
    ...
    >>> bool((model.weight.data == other.weight.data).all())
    True
    """
    source = os.fspath(path)
    arrays = _without_wrapper(model, read_arrays(read_file(path, "safetensors or PyTorch file"), source))
    check_values(arrays, source)
    load_host_state(model, arrays, source)


_SAFETENSORS, _PYTORCH = "a safetensors file", "a PyTorch file (.pt, .pth)"
_WRAPPER = "module."


def read_arrays(content: bytes, name: str) -> dict[str, Any]:
    """Return the host arrays in the bytes of a safetensors or PyTorch file, told apart by their content.

    Raises
    ------
    DataError
        They are neither, or damaged.
    """
    found = describe(content[:PEEK])
    if found == _PYTORCH or (found == "a zip archive" and b"/data.pkl" in content):
        return read_torch(content, name)
    if found not in (None, _SAFETENSORS, "an IDX file"):
        raise DataError(f"{name}: expected a safetensors or PyTorch file, got {found}")
    return read_safetensors(content, name)


def _without_wrapper(model: Module, arrays: dict[str, Any]) -> dict[str, Any]:
    names = arrays.keys()
    if names and all(name.startswith(_WRAPPER) for name in names) and not names <= model.state_dict().keys():
        return {name.removeprefix(_WRAPPER): array for name, array in arrays.items()}
    return arrays


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
    arrays = known(model, mine, arrays)
    for name in mine:
        if name not in arrays:
            raise DataError(f"{source}: expected an array named {name!r}, got none; {_ANOTHER}")
    for name, array in arrays.items():
        if name not in mine:
            raise DataError(f"{source}: expected no array named {name!r}; {_ANOTHER}")
        expected = tuple(mine[name].shape), str(mine[name].dtype)
        got = tuple(array.shape), str(array.dtype)
        if got[0] != expected[0] or not widens(array.dtype, mine[name].dtype):
            raise DataError(
                f"{source}: expected {name!r} as {expected[1]} {expected[0]}, got {got[1]} {got[0]}; "
                "it belongs to another model"
            )
    try:
        model.load_state_dict(arrays)
    except XpcnnError as error:
        raise DataError(f"{source}: {error}") from error
