"""IDX files: every type and rank there and back, and every kind of damage."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.mutations import check_reader, no_hang
from xpcnn.datasets import load_idx
from xpcnn.errors import DataError

from .makers import IDX_CODES, gzipped, idx_bytes

ARRAYS = st.sampled_from(sorted(IDX_CODES)).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@given(ARRAYS, st.booleans())
def test_reads_what_was_written(tmp_path, array, compressed):
    path = tmp_path / "array"
    path.write_bytes(gzipped(idx_bytes(array)) if compressed else idx_bytes(array))
    read = load_idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array, strict=True)


def header(code=0x08, *shape, zeros=0):
    return struct.pack(">HBB", zeros, code, len(shape)) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bytes are declared"),
        (b"\0\0\x08", "bytes are declared"),
        (header(0x08, 4, zeros=1) + bytes(4), "magic number"),
        (header(0x0A, 4) + bytes(4), "magic number"),
        (header(0x08) + bytes(4), "magic number"),
        (header(0x08, *[1] * 9) + bytes(1), "magic number"),
        (header(0x08, 4) + bytes(3), "bytes are declared"),
        (header(0x08, 4) + bytes(5), "goes on after"),
        (header(0x0D, 2**32 - 1, 2**32 - 1) + bytes(64), "bytes are declared"),
        (header(0x08, 0, 2**32 - 1, 2**32 - 1), "the shape"),
        (b"PK\x03\x04" + bytes(99), "expected an IDX file, raw or gzipped, got a zip archive"),
        (gzipped(idx_bytes(np.arange(9)[:0].astype("u1")))[:-3], "ends early"),
        (gzipped(idx_bytes(np.ones(9, "u1"))) + b"more", "goes on after"),
        (gzipped(idx_bytes(np.ones(9, "u1")) + b"more"), "goes on after"),
        (gzipped(idx_bytes(np.ones(9, "u1")))[:-8] + bytes(8), "gzip says"),
        (b"\x1f\x8b" + bytes(30), "gzip says"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "array"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_idx(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "array"
    for content in (idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4)), gzipped(idx_bytes(np.arange(5.0)))):
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(DataError):
                load_idx(path)


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_idx(tmp_path / "missing")
    with pytest.raises(DataError, match="expected a file"):
        load_idx(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_idx("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with no_hang(), pytest.raises(DataError, match="expected a file"):
            load_idx(tmp_path / "pipe")


def test_gzip_bomb_is_not_unpacked(tmp_path):
    """The header declares nine bytes, the stream holds 64 million: no more than the nine are taken."""
    bomb = gzipped(header(0x08, 9) + bytes(1 << 26))
    check_reader("IDX, gzip bomb", load_idx, bomb, tmp_path / "bomb", bytes_per_byte=1100, count=30)
    (tmp_path / "bomb").write_bytes(bomb)
    with pytest.raises(DataError, match="goes on after"):
        load_idx(tmp_path / "bomb")


@pytest.mark.parametrize("name", ["IDX", "IDX, gzipped", "IDX inside gzip"])
def test_damaged_files(tmp_path, name, rng):
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    images[:, :8] = 0
    content = idx_bytes(images)

    def check(array):
        assert array.dtype.name in IDX_CODES
        assert array.nbytes <= 1100 * len(content)

    wrap = {"wrap": gzipped} if "inside" in name else {}
    written = gzipped(content) if "gzipped" in name else content
    check_reader(name, load_idx, written, tmp_path / "file", check=check, bytes_per_byte=1100, **wrap)
