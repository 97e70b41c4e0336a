"""Files as other programs write them, byte by byte: IDX, Python 2's pickles, CIFAR-10."""

import gzip
import pickle
import struct

import numpy as np

IDX_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array):
    header = struct.pack(">HBB", 0, IDX_CODES[array.dtype.name], array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def mnist_parts(rng, sizes=(6, 3, 2), dtype=np.float32):
    return tuple(
        (rng.integers(0, 256, (size, 784)).astype(dtype) / dtype(256), rng.integers(0, 10, size)) for size in sizes
    )


def cifar_batch(rng, size=4):
    return rng.integers(0, 256, (size, 3072), dtype=np.uint8), rng.integers(0, 10, size).tolist()


def write_cifar(folder, rng, form, size=4):
    """Write six small batches; return their images (6, size, 3, 32, 32) and labels in the order of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = [cifar_batch(rng, size) for _ in range(6)]
    for name, (data, labels) in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], batches, strict=True):
        if form == "binary":
            records = b"".join(bytes([label]) + row.tobytes() for row, label in zip(data, labels, strict=True))
            (folder / f"{name}.bin").write_bytes(records)
        else:
            (folder / name).write_bytes(cifar_pickle(data, labels, form))
    return np.stack([data for data, _ in batches]).reshape(6, size, 3, 32, 32), np.array([each for _, each in batches])


def cifar_pickle(data, labels, form):
    batch = {b"batch_label": b"a batch", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * len(labels)}
    if form == "python2":
        return b"\x80\x02" + _python2(batch) + b"."
    return pickle.dumps(batch, protocol=int(form))


def mnist_pickle(parts, form):
    """`mnist.pkl` as Python 2's cPickle wrote it ("python2", "python2-text"), or as protocol 0 to 5 of Python 3."""
    if form == "python2":
        return b"\x80\x02" + _python2(parts) + b"."
    if form == "python2-text":
        return _python2(parts, text=True) + b"."
    return pickle.dumps(parts, protocol=int(form))


def _python2(value, text=False):
    """Return Python 2's opcodes for a value: its str for bytes, numpy.core for NumPy, and no memo."""
    if isinstance(value, dict):
        pairs = b"".join(_python2(part, text) for pair in value.items() for part in pair)
        return b"(dp1\n" + _setitems(value, text) if text else b"}q\x01(" + pairs + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(_python2(part, text) for part in value) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(_python2(part, text) for part in value) + b"e"
    if isinstance(value, bytes):
        if text:
            return b"S" + repr(value)[1:].encode() + b"\n"
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, bool):
        return (b"I01\n" if value else b"I00\n") if text else (b"\x88" if value else b"\x89")
    if isinstance(value, int):
        return b"I%d\n" % value if text else b"J" + struct.pack("<i", value)
    if value is None:
        return b"N"
    return _python2_array(value, text)


def _setitems(value, text):
    return b"".join(_python2(key, text) + _python2(item, text) + b"s" for key, item in value.items())


def _python2_array(array, text):
    def p(*parts):
        return _python2(tuple(parts), text)

    kind = f"{array.dtype.kind}{array.dtype.itemsize}".encode()
    order = b"|" if array.dtype.itemsize == 1 else b"<"
    dtype = b"cnumpy\ndtype\n" + p(kind, 0, 1) + b"R" + p(3, order, None, None, None, -1, -1, 0) + b"b"
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    state = b"(" + _python2(1, text) + _python2(array.shape, text) + dtype
    state += _python2(False, text) + _python2(content, text) + b"t"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,), text) + _python2(b"b", text)
    return made + b"tR" + state + b"b"


def gzipped(content):
    return gzip.compress(content, 6, mtime=0)
