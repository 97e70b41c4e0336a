"""PyTorch's .pt and .pth files as host arrays, without PyTorch and without running what is in them.

Two formats of `torch.save`: a zip archive of `data.pkl` and `data/KEY` (since 1.6), and pickles in a row with the
storages behind them. Tensors are views of the file's bytes: no file takes more memory than a few times its size.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend.exchange import widen_bfloat16
from xpcnn.datasets.unpickle import DAMAGE, Machine
from xpcnn.errors import DataError

_ORDERED_DICT = "collections.OrderedDict"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": _BFLOAT16,
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "b1",
}
_STATE = "expected a state, as torch.save(model.state_dict(), path) writes it, got"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the old format, as torch/serialization.py has them
_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
)  # where checkpoints have it
_ENTRIES = 100_000  # of a zip archive
_LOCAL_HEADER = 30  # bytes of a zip archive's entry before its name
_MAX_AXES = 8


class _Storage(NamedTuple):
    key: str
    kind: str
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(content: bytes, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of a state in the bytes of a file that `torch.save` wrote.

    Parameters
    ----------
    content : bytes
        The whole file.
    name : str
        What error messages call it.

    Returns
    -------
    dict
        Read-only arrays by name, bfloat16 as float32. Of a checkpoint that holds its model's state among other things
        the state.

    Raises
    ------
    DataError
        The file is damaged, or holds anything else than numbers, texts, tensors and dicts of them.
    """
    try:
        return (_from_zip if content.startswith(b"PK") else _from_pickles)(content)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (*DAMAGE, zipfile.BadZipFile, NotImplementedError, EOFError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{name}: expected a PyTorch file, got a damaged one ({type(error).__name__}: {reason:.60}); fetch it again"
        ) from error


class _TorchMachine(Machine):
    globals = Machine.globals | {_ORDERED_DICT, _TENSOR, _PARAMETER, *_STORAGES}
    refusal = (
        "the file asks for {name!r}: refused, it could run code; only a state is read, as "
        "torch.save(model.state_dict(), path) writes it"
    )
    persists = True

    def __init__(self, content: bytes, position: int = 0) -> None:
        super().__init__(content, position)
        self.storages: dict[str, _Storage] = {}

    def persistent(self, key: Any) -> _Storage:
        what, kind, name, _, size, *view = key
        if what != "storage" or kind not in _STORAGES or type(name) is not str or type(size) is not int or size < 0:
            raise ValueError("a storage")
        if any(part is not None for part in view):
            raise DataError("a storage that is a view of another one is refused (PyTorch before 0.4)")
        return self.storages.setdefault(name, _Storage(name, _STORAGES[kind], size))

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        # Optimisers' states have numbers as names.
        found: dict[Any, Any] = {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            found.update({key: value} if type(key) is int else super().pairs([key, value]))
        return found

    def reduce(self, function: Any, *arguments: Any) -> Any:
        if function == _ORDERED_DICT and not arguments:
            return {}
        if function == _TENSOR:
            storage, offset, shape, stride = arguments[:4]
            if isinstance(storage, _Storage):
                return _checked(_Tensor(storage, offset, shape, stride))
        if function == _PARAMETER and isinstance(arguments[0], _Tensor):
            return arguments[0]
        return super().reduce(function, *arguments)

    def build(self, state: Any) -> None:
        if type(self.stack[-1]) is dict and type(state) is dict:  # `_metadata` of an OrderedDict
            return
        super().build(state)


def _checked(tensor: _Tensor) -> _Tensor:
    """Return the tensor, which lies inside its storage and has no more elements than it."""
    shape, stride = tensor.shape, tensor.stride
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise ValueError("a tensor's shape")
    numbers = (tensor.offset, *shape, *stride)
    if len(shape) > _MAX_AXES or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        raise ValueError("a tensor's shape or strides")
    last = tensor.offset + sum((extent - 1) * step for extent, step in zip(shape, stride, strict=True))
    if math.prod(shape) > tensor.storage.size or (0 not in shape and last >= tensor.storage.size):
        raise ValueError("a tensor that does not fit into its storage")
    return tensor


# --- the two formats --------------------------------------------------------------------------------------------------


def _from_zip(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DataError("expected a PyTorch file, got a zip archive of something else")
    top = pickles[0].removesuffix("data.pkl")
    if f"{top}constants.pkl" in entries:
        raise DataError(f"{_STATE} a TorchScript program")
    order = bytes(_entry(content, entries[f"{top}byteorder"])) if f"{top}byteorder" in entries else b"little"
    left = len(content)

    def fetch(storage: _Storage) -> memoryview:
        nonlocal left
        data = _entry(content, entries[f"{top}data/{storage.key}"])
        left -= len(data)
        if left < 0:
            raise ValueError("entries that lie on one another")
        return data

    state = _TorchMachine(bytes(_entry(content, entries[pickles[0]]))).run()
    return _arrays(state, fetch, ">" if order == b"big" else "<")


def _entry(content: bytes, entry: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a zip archive's entry where they lie; PyTorch compresses none."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise DataError(
            f"expected entries as PyTorch writes them, got {entry.filename[-40:]!r} compressed or encrypted"
        )
    start = entry.header_offset
    if start < 0 or content[start : start + 4] != b"PK\x03\x04":
        raise ValueError("an entry's header")
    start += _LOCAL_HEADER + sum(struct.unpack_from("<HH", content, start + 26))
    data = memoryview(content)[start : start + entry.file_size]
    if len(data) != entry.file_size or zlib.crc32(data) != entry.CRC:
        raise ValueError(f"the checksum of {entry.filename[-40:]!r}")
    return data


def _from_pickles(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    position = 0

    def following(machine: type[Machine] = Machine) -> tuple[Any, Any]:
        nonlocal position
        reader = machine(content, position)
        found = reader.run(whole=False)
        position = reader.position
        return found, reader

    start = _long_magic(content)
    if start is None:
        raise DataError("expected a PyTorch file, got a pickle of something else")
    position = start
    (protocol, _), (system, _), (state, reader), (keys, _) = (
        following(), following(), following(_TorchMachine), following()
    )  # fmt: skip
    if protocol != _PROTOCOL or type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError("the header")
    order = "<" if system["little_endian"] else ">"
    places = {}
    for key in keys:
        (size,) = struct.unpack_from("<q", content, position)
        storage = reader.storages[key]
        if size != storage.size or key in places:
            raise ValueError("a storage's size")
        end = position + 8 + size * _itemsize(storage.kind)
        if end > len(content):
            raise ValueError("it ends early")
        places[key] = memoryview(content)[position + 8 : end]
        position = end
    if position != len(content):
        raise ValueError("bytes are left over")
    return _arrays(state, lambda storage: places[storage.key], order)


def _long_magic(content: bytes) -> int | None:
    """Return where the pickle of the magic number ends; None where there is none. It is longer than 64 bits."""
    magic = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
    return 2 + len(magic) if content[2 : 2 + len(magic)] == magic and content[:1] == b"\x80" else None


# --- from what the pickle says to arrays ------------------------------------------------------------------------------


def _tensors(content: Any) -> dict[str, _Tensor]:
    """Return the tensors of a state, or of the state that a checkpoint holds among other things."""
    found = content
    if isinstance(content, dict) and not any(isinstance(value, _Tensor) for value in content.values()):
        found = next((content[name] for name in _NESTED if isinstance(content.get(name), dict)), content)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, _Tensor) for name, value in found.items()
    ):
        inside = ", ".join(str(name)[:20] for name in list(found)[:5]) if isinstance(found, dict) else ""
        raise DataError(
            f"{_STATE} {type(found).__name__}{f' of {inside}' if inside else ''}; "
            f"checkpoints keep it under one of {_NESTED}"
        )
    return found


def _arrays(state: Any, fetch: Callable[[_Storage], memoryview], order: str) -> dict[str, np.ndarray[Any, Any]]:
    storages: dict[_Storage, np.ndarray[Any, Any]] = {}
    arrays = {}
    for name, tensor in _tensors(state).items():
        if tensor.storage not in storages:
            storages[tensor.storage] = _storage(tensor.storage, fetch(tensor.storage), order)
        elements = storages[tensor.storage]
        strides = [step * elements.itemsize for step in tensor.stride]
        arrays[name] = np.lib.stride_tricks.as_strided(
            elements[tensor.offset :], tensor.shape, strides, writeable=False
        )
    return arrays


def _storage(storage: _Storage, data: memoryview, order: Any) -> np.ndarray[Any, Any]:
    if len(data) != storage.size * _itemsize(storage.kind):
        raise ValueError("a storage's size")
    bits = np.frombuffer(data, np.dtype("u2" if storage.kind == _BFLOAT16 else storage.kind).newbyteorder(order))
    bits = bits.astype(bits.dtype.newbyteorder("="), copy=False)
    return widen_bfloat16(bits) if storage.kind == _BFLOAT16 else bits


def _itemsize(kind: str) -> int:
    return 2 if kind == _BFLOAT16 else np.dtype(kind).itemsize
