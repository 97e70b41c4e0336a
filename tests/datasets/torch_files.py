"""PyTorch's files made without it, opcode by opcode, as `torch.save` of 2.13 writes them."""

import io
import pickle
import struct
import zipfile

import numpy as np

KINDS = {
    "f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char", "u1": "Byte",
    "b1": "Bool",
}  # fmt: skip


def text(value):
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return pickle.BININT + struct.pack("<i", value)


def several(*parts):
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def name(module, attribute):
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


ORDERED = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def tensor(key, kind, size, shape, strides, offset=0):
    storage = several(text("storage"), name("torch", f"{kind}Storage"), text(key), text("cuda:0"), number(size), OLD)
    places = several(*map(number, shape)), several(*map(number, strides))
    arguments = several(storage + pickle.BINPERSID, number(offset), *places, pickle.NEWFALSE, ORDERED)
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


OLD = b""  # what stands behind a storage's size: None in the old format


def mapping(items):
    return ORDERED + pickle.MARK + b"".join(text(key) + value for key, value in items.items()) + pickle.SETITEMS


def with_metadata(state):
    inside = text("") + pickle.EMPTY_DICT + text("version") + number(1) + pickle.SETITEM
    return (
        state
        + pickle.EMPTY_DICT
        + text("_metadata")
        + ORDERED
        + inside
        + pickle.SETITEM
        + pickle.SETITEM
        + pickle.BUILD
    )


def pickled(content):
    return pickle.PROTO + b"\2" + content + pickle.STOP


def entries(arrays):
    """Return a state's opcode for each array, and the storages behind them, each array's its own."""
    items, storages = {}, {}
    for number_, (key, array) in enumerate(arrays.items()):
        kind = "BFloat16" if array.dtype == np.uint16 else KINDS[array.dtype.str[1:]]
        dense = array if array.flags.c_contiguous or not array.T.flags.c_contiguous else array.T
        strides = [stride // array.itemsize for stride in array.strides]
        items[key] = tensor(str(number_), kind, array.size, array.shape, strides)
        storages[str(number_)] = np.ascontiguousarray(dense)
    return items, storages


def zipped(state, storages, order="little", **extra):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(state))
        archive.writestr("archive/byteorder", order)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.astype(array.dtype.newbyteorder(order)).tobytes())
        for key, content in extra.items():
            archive.writestr(f"archive/{key.replace('__', '.')}", content)
    return buffer.getvalue()


def in_a_row(state, storages):
    magic = pickle.LONG1 + b"\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    content = pickled(magic) + pickle.dumps(1001, 2) + pickle.dumps(system, 2) + pickled(state)
    content += pickle.dumps(sorted(storages), 2)
    for key in sorted(storages):
        content += struct.pack("<q", storages[key].size) + storages[key].tobytes()
    return content


FORMATS = {"zip": zipped, "pickles": in_a_row}
