"""safetensors files as host arrays: of ours, of PyTorch and of Hugging Face, bfloat16 as float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.backend.exchange import widen_bfloat16
from xpcnn.errors import DataError

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read_safetensors(content: bytes, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays in the bytes of a safetensors file; `name` is what an error calls it.

    Raises
    ------
    DataError
        The file is damaged, or an array has a dtype that NumPy lacks (float8, say).
    """
    from safetensors import SafetensorError, deserialize

    try:
        entries: Any = deserialize(content)  # type: ignore[no-untyped-call]
        return {key: _array(key, **entry) for key, entry in entries}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{name}: {error}") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: expected a safetensors file, got a damaged one ({reason:.120})") from error


def _array(key: str, dtype: str, shape: Any, data: Any) -> np.ndarray[Any, Any]:
    if dtype not in _DTYPES:
        raise DataError(f"expected one of the dtypes {', '.join(_DTYPES)}, got {dtype:.20} in {key[:100]!r}")
    array = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    return widen_bfloat16(array) if dtype == "BF16" else array
