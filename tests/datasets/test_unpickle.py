"""The pickle reader: equal to Python's on plain data, deaf to everything else."""

import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.mutations import COUNT, check_reader, no_hang
from xpcnn.datasets.unpickle import integers, unpickle
from xpcnn.errors import DataError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
)
KEYS = st.text(max_size=9)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=9,
)
DTYPES = st.sampled_from(["?", "u1", "i1", "<u2", ">i2", "<i4", ">i4", "<u8", "<i8", "<f2", "<f4", ">f4", "<f8"])
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=4)))


def same(a, b):
    if isinstance(b, np.ndarray):
        np.testing.assert_array_equal(a, b, strict=True)
    elif isinstance(b, list | tuple):
        assert type(a) is type(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(b, dict):
        assert list(a) == list(b)
        same(list(a.values()), list(b.values()))
    else:
        assert type(a) is type(b)
        assert a == b


@given(DATA, st.integers(0, 5))
def test_plain_data_as_python_reads_it(data, protocol):
    content = pickle.dumps(data, protocol)
    same(unpickle(content, "data"), pickle.loads(content))


@given(ARRAYS, st.sampled_from(["C", "F", "strided"]), st.integers(0, 5))
def test_arrays_as_python_reads_them(array, layout, protocol):
    array = np.repeat(array, 2, axis=0)[::2] if layout == "strided" else np.asarray(array, order=layout)
    content = pickle.dumps((array, [array, array.dtype.type(1)]), protocol)
    first, (again, one) = unpickle(content, "arrays")
    same(first, array)
    assert again is first
    assert one == 1


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "layout", [lambda a: a, np.asfortranarray, lambda a: a[:, ::-1], lambda a: a.T, lambda a: a[:0]]
)
def test_memory_orders(layout, protocol):
    array = layout(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    same(unpickle(pickle.dumps(array, protocol), "array"), array)


def test_shared_and_growing_objects():
    shared = [1, 2]
    data = {"a": shared, "b": shared, "c": tuple(range(300)), "d": list(range(3000))}
    for protocol in range(6):
        result = unpickle(pickle.dumps(data, protocol), "data")
        assert result == data
        assert result["a"] is result["b"]


class Touch:
    """A pickle that makes a file where it is executed."""

    def __init__(self, function, *arguments):
        self.reduction = function, arguments

    def __reduce__(self):
        return self.reduction


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "make",
    [
        lambda mark: Touch(os.system, f"touch {mark}"),
        lambda mark: Touch(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Touch(open, str(mark), "w"),
        lambda mark: {"data": np.zeros(3), "labels": [Touch(os.mkdir, str(mark))]},
        lambda mark: np.array([Touch(os.mkdir, str(mark))], dtype=object),
        lambda mark: Touch(np.ndarray, (1 << 30,)),
        lambda mark: Touch(bytearray, 1 << 40),
        lambda mark: {1, 2},
        lambda mark: range(9),
        lambda mark: 1j,
    ],
)
def test_code_and_objects_are_refused_and_never_run(tmp_path, protocol, make):
    mark = tmp_path / "executed"
    content = pickle.dumps(make(mark), protocol)
    with pytest.raises(DataError, match="refused"):
        unpickle(content, "file.pkl")
    assert not mark.exists()


LONG_TEXT = b"\x8d" + struct.pack("<Q", 1 << 20) + b"a" * (1 << 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends early"),
        (b"N", "ends early"),
        (b".", "left over"),
        (b"NN.", "left over"),
        (b"N.N", "left over"),
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc.", "ends early"),
        (b"\x96" + struct.pack("<Q", (1 << 64) - 1) + b"abc.", "ends early"),
        (b"T" + struct.pack("<i", -5) + b"abc.", "ends early"),
        (b"Nr" + struct.pack("<I", (1 << 32) - 1) + b".", "memo index"),
        (b"Np%d\n." % 10**9, "memo index"),
        (b"h\x05.", "KeyError"),
        (b"I" + b"9" * 5000 + b"\n.", "64 bits"),
        (b"\x8a\xff" + b"\x7f" * 255 + b".", "64 bits"),
        (b"\x8b" + struct.pack("<i", 1 << 30) + b".", "refused"),
        (b"t.", "IndexError"),
        (b"\x86.", "IndexError"),
        (b"NNa.", "list expected"),
        (b"}(NNu.", "str expected"),
        (b"}(K\x01u.", "damaged"),
        (b"(NNs.", "damaged"),
        (b"S'abc\n.", "quotes"),
        (b"S\n.", "quotes"),
        (b"Vabc", "damaged"),
        (b"X\x01\0\0\0\xff.", "damaged"),
        (b"Nb.", "tuple expected"),
        (b"N)b.", "expected"),
        (b"N)R.", "_Global expected"),
        (b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.", "refused"),
        (b"cnumpy\ndtype\n(U\x0299tR.", "refused"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\ntR.", "refused"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "IndexError"),
        (b"cnumpy\n__import__\n.", "refused"),
        (b"\x8c\x03a\nb\x8c\x01c\x93.", "refused"),
        (b"N" * 1_000_001, "more than"),
        (LONG_TEXT + b"\x94" + b"h\x00h\x00\x93" * 100 + b".", "too long"),
        (LONG_TEXT + b"\x94c_codecs\nencode\n\x94" + b"h\x01h\x00X\x06\0\0\0latin1\x86R" * 9, "call of _codecs.encode"),
    ],
)
def test_hostile_pickles_end_in_one_clear_line(content, message):
    with no_hang(), pytest.raises(DataError, match=message) as error:
        unpickle(content, "file.pkl")
    assert str(error.value).startswith("file.pkl: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_array_whose_shape_is_not_its_content():
    good = pickle.dumps(np.arange(6, dtype=np.int16).reshape(2, 3), 2)
    assert good.count(b"K\x02K\x03\x86") == 1
    for shape in (
        b"K\x02K\x04\x86",
        b"K\x03K\x03\x86",
        b"K\x00K\x03\x86",
        b"J\xff\xff\xff\xffK\x03\x86",
        b"K\x02\x88\x86",
        b"NN\x86",
    ):
        with pytest.raises(DataError, match="shape"):
            unpickle(good.replace(b"K\x02K\x03\x86", shape), "file.pkl")


def test_a_list_that_grows_exponentially_is_not_unfolded():
    bomb = [1, 1]
    for _ in range(60):
        bomb = [bomb, bomb]
    with no_hang():
        value = unpickle(pickle.dumps(bomb), "file.pkl")
        with pytest.raises(DataError, match="integers"):
            integers(value)
    np.testing.assert_array_equal(integers([1, 2]), [1, 2])
    with pytest.raises(DataError, match="integers"):
        integers([1 << 70])


@pytest.mark.parametrize("protocol", range(6))
def test_damaged_pickles(tmp_path, rng, protocol):
    data = {"data": rng.integers(0, 9, (3, 5)), "labels": [1, 2, 3], "x": ("a", 0.5, b"c")}
    check_reader(
        "pickle",
        lambda path: unpickle(path.read_bytes(), "file.pkl"),
        pickle.dumps(data, protocol),
        tmp_path / "file.pkl",
        count=COUNT // 6 + 1,
        seed=protocol,
    )
