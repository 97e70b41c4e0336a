"""Arrays and attributes out of a file that nobody vouches for: never more memory than the file, or one beside it, has.

Data outside of the file is read from its own folder alone, by a plain name or one of a folder inside.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.datasets.source import look_at, shown
from xpcnn.errors import DataError

# Number of ONNX's TensorProto.DataType -> dtype, and the field that holds values where they are no raw bytes.
KINDS: dict[int, tuple[str, str]] = {
    1: ("float32", "float_data"),
    2: ("uint8", "int32_data"),
    3: ("int8", "int32_data"),
    4: ("uint16", "int32_data"),
    5: ("int16", "int32_data"),
    6: ("int32", "int32_data"),
    7: ("int64", "int64_data"),
    9: ("bool", "int32_data"),
    10: ("float16", "int32_data"),
    11: ("float64", "double_data"),
    12: ("uint32", "uint64_data"),
    13: ("uint64", "uint64_data"),
}
BFLOAT16 = 16


class Tensors:
    """Reads the arrays of one file.

    Parameters
    ----------
    source : str
        The file's path, for errors and for what lies beside it.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def array(self, tensor: Any) -> Any:
        """Return a TensorProto as a NumPy array.

        Raises
        ------
        DataError
            Its type is none that NumPy has, sizes and data do not fit, or its data lies elsewhere than beside the file.
        """
        name = f"{tensor.name or 'a constant':.80}" if isinstance(tensor.name, str) else repr(tensor.name)[:80]
        dims = [int(size) for size in tensor.dims]
        if any(size < 0 for size in dims):
            raise self._damaged(f"array {name!r}: expected sizes of 0 or more, got {dims}")
        count = math.prod(dims)
        if tensor.HasField("segment"):
            raise self._damaged(f"array {name!r} is in segments, which nobody writes")
        if tensor.data_type == BFLOAT16:
            return self._bfloat16(tensor, name, count).reshape(dims)
        if tensor.data_type not in KINDS:
            raise DataError(
                f"{self.source}: array {name!r}: expected numbers of a type that NumPy has, got type "
                f"{tensor.data_type} of ONNX's"
            )
        kind, field = KINDS[tensor.data_type]
        dtype = np.dtype(kind)
        raw = self._raw(tensor, name, count * dtype.itemsize)
        if raw is not None:
            values = np.frombuffer(raw, dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype)
            return (values if sys.byteorder == "little" else values.astype(dtype)).reshape(dims)
        given = getattr(tensor, field)
        if len(given) != count:
            raise self._damaged(f"array {name!r}: expected {count} values for sizes {dims}, got {len(given)}")
        if kind == "float16":
            return np.array(given, np.int64).astype(np.uint16).view(np.float16).reshape(dims)
        wide = "int64" if dtype.kind in "ib" else "uint64" if dtype.kind == "u" and field == "uint64_data" else None
        return np.array(given, wide or ("int64" if dtype.kind == "u" else kind)).astype(kind).reshape(dims)

    def _bfloat16(self, tensor: Any, name: str, count: int) -> Any:
        raw = self._raw(tensor, name, 2 * count)
        halves = np.frombuffer(raw, "<u2") if raw is not None else np.array(tensor.int32_data, np.int64)
        if len(halves) != count:
            raise self._damaged(f"array {name!r}: expected {count} values, got {len(halves)}")
        return (halves.astype(np.uint32) << 16).view(np.float32)

    def _raw(self, tensor: Any, name: str, size: int) -> bytes | None:
        """Return the bytes of an array; None where it holds values in a field of their type."""
        if tensor.data_location == 1:
            return self._external(tensor, name, size)
        if not tensor.HasField("raw_data"):
            return None
        raw = bytes(tensor.raw_data)
        if len(raw) != size:
            raise self._damaged(f"array {name!r}: expected {size} bytes for its sizes, got {len(raw)}")
        return raw

    def _external(self, tensor: Any, name: str, size: int) -> bytes:
        about = {each.key: each.value for each in tensor.external_data}
        location = about.get("location", "")
        if not isinstance(location, str):
            raise self._damaged(f"array {name!r}: expected its data in a file with a name of text")
        parts = Path(location.replace("\\", "/")).parts
        folder = Path(self.source).parent
        if not parts or location.startswith(("/", "\\")) or ".." in parts or ":" in location or "\0" in location:
            raise DataError(
                f"{self.source}: array {name!r}: expected its data in a file beside this one, got {location!r:.80}"
            )
        path = folder.joinpath(*parts)
        if look_at(path) != "file":
            raise DataError(f"{self.source}: array {name!r}: expected its data in {shown(path)}, got no such file")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{self.source}: array {name!r}: expected its data beside this file, got a link elsewhere")
        offset, length = (self._number(about.get(key, other), name) for key, other in (("offset", 0), ("length", size)))
        if length != size or offset + length > os.stat(path).st_size:
            raise self._damaged(
                f"array {name!r}: expected {size} bytes in {shown(path)}, got {length} at {offset} of "
                f"{os.stat(path).st_size}"
            )
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error

    def _number(self, value: Any, name: str) -> int:
        text = str(value)
        if not text.isdecimal() or len(text) > 18:
            raise self._damaged(f"array {name!r}: expected a place in its data, got {text!r:.40}")
        return int(text)

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.source}: damaged: {reason}")

    def attributes(self, node: Any) -> dict[str, Any]:
        """Return the attributes of a node as numbers, bytes, arrays and lists of them.

        Raises
        ------
        DataError
            One is a graph, or of a type that no operator here takes.
        """
        return {each.name: self._attribute(each, node) for each in node.attribute}

    def _attribute(self, each: Any, node: Any) -> Any:
        match each.type:
            case 1:
                return float(each.f)
            case 2:
                return int(each.i)
            case 3:
                return bytes(each.s)
            case 4:
                return self.array(each.t)
            case 6:
                return [float(value) for value in each.floats]
            case 7:
                return [int(value) for value in each.ints]
            case 8:
                return [bytes(value) for value in each.strings]
        raise DataError(
            f"{self.source}: node {node.name or node.op_type!r:.80}: attribute {each.name!r:.40} is of type "
            f"{each.type}, which is not supported (numbers, strings and arrays are)"
        )
