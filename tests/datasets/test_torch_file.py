"""PyTorch's files: read as they are meant, deaf to everything but a state; real ones of PyTorch are in parity."""

import copy
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from tests.datasets.torch_files import FORMATS, entries, mapping, name, number, tensor, text, with_metadata, zipped
from tests.mutations import check_reader, no_hang
from xpcnn.datasets.torch_file import read_torch
from xpcnn.errors import DataError


def arrays():
    rng = np.random.default_rng(0)
    found = {f"layer.{i}": rng.normal(size=(2, 3)).astype(kind) for i, kind in enumerate(("f4", "f8", "f2", "i8"))}
    return {**found, "turned": rng.normal(size=(4, 5)).astype("f4").T, "count": np.array(7), "none": np.zeros((0, 3))}


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
def test_a_state(save):
    items, storages = entries(arrays())
    for state in (mapping(items), with_metadata(mapping(items))):
        found = read_torch(save(state, storages), "x.pt")
        assert list(found) == list(items)
        for key, array in arrays().items():
            np.testing.assert_array_equal(found[key], array, strict=True)
            assert not found[key].flags.writeable


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("under", ["state_dict", "model"])
def test_a_checkpoint(save, under):
    items, storages = entries(arrays())
    optimiser = pickle.EMPTY_DICT + number(0) + mapping({"step": items["count"]}) + pickle.SETITEM
    state = mapping({"epoch": number(3), "optimizer": optimiser, under: mapping(items)})
    assert list(read_torch(save(state, storages), "x.pt")) == list(items)


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
def test_bfloat16_comes_as_float32(save):
    items, storages = entries({"a": np.array([0x3FC0, 0xC000, 1], np.uint16)})
    found = read_torch(save(mapping(items), storages), "x.pt")["a"]
    np.testing.assert_array_equal(found, np.array([1.5, -2, 2.0**-133], "f4"), strict=True)


def test_the_other_byte_order():
    items, storages = entries(arrays())
    found = read_torch(zipped(mapping(items), storages, "big"), "x.pt")
    for key, array in arrays().items():
        np.testing.assert_array_equal(found[key], array, strict=True)


def test_a_part_of_a_storage():
    base = np.arange(12, dtype="f4")
    state = mapping({"a": tensor("0", "Float", 12, (2, 3), (6, 2), 1), "b": tensor("0", "Float", 12, (12,), (1,))})
    found = read_torch(zipped(state, {"0": base}), "x.pt")
    np.testing.assert_array_equal(found["a"], [[1, 3, 5], [7, 9, 11]])
    np.testing.assert_array_equal(found["b"], base)


HUGE = (1 << 31) - 1
HOSTILE = {
    "past the end": tensor("0", "Float", 4, (5,), (1,)),
    "past the end by its offset": tensor("0", "Float", 4, (2,), (1,), 3),
    "past the end by its stride": tensor("0", "Float", 4, (2, 2), (3, 1)),
    "before the start": tensor("0", "Float", 4, (2,), (-1,), 1),
    "a negative offset": tensor("0", "Float", 4, (2,), (1,), -1),
    "huge": tensor("0", "Float", 4, (HUGE, HUGE, HUGE), (0, 0, 0)),
    "more elements than are there": tensor("0", "Float", 4, (5,), (0,)),
    "huge storage": tensor("0", "Float", HUGE, (4,), (1,)),
    "no such storage": tensor("9", "Float", 4, (4,), (1,)),
    "a way out": tensor("../../etc/passwd", "Float", 4, (4,), (1,)),
    "another size": tensor("0", "Double", 4, (4,), (1,)),
    "strides missing": tensor("0", "Float", 4, (4,), ()),
    "quantised": tensor("0", "QInt8", 4, (4,), (1,)),
}


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("what", HOSTILE)
def test_tensors_that_are_none(save, what):
    content = save(mapping({"a": HOSTILE[what]}), {"0": np.zeros(4, "f4")})
    with no_hang(), pytest.raises(DataError, match=r"^x.pt: ") as caught:
        read_torch(content, "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("what", [("os", "system"), ("builtins", "eval"), ("torch.nn.modules.linear", "Linear")])
def test_nothing_is_run(save, what, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    call = name(*what) + pickle.MARK + text("true") + pickle.TUPLE + pickle.REDUCE
    with pytest.raises(DataError, match=f"x.pt: the file asks for '{what[0]}.{what[1]}': refused, it could run code"):
        read_torch(save(mapping({"a": call}), {}), "x.pt")


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    ("state", "got"),
    [(number(3), "got int"), (mapping({"a": number(3)}), "got OrderedDict|got dict of a"), (mapping({}), None)],
)
def test_what_is_no_state(save, state, got):
    if got is None:
        assert read_torch(save(state, {}), "x.pt") == {}
        return
    with pytest.raises(DataError, match=f"x.pt: expected a state, as torch.save.model.state_dict.*({got})"):
        read_torch(save(state, {}), "x.pt")


def test_torchscript_and_other_archives():
    with pytest.raises(DataError, match="got a TorchScript program"):
        read_torch(zipped(mapping({}), {}, constants__pkl=b""), "x.pt")
    with pytest.raises(DataError, match="got a zip archive of something else"):
        read_torch(zipped(mapping({}), {}).replace(b"data.pkl", b"data.txt"), "x.pt")
    with pytest.raises(DataError, match="got a pickle of something else"):
        read_torch(pickle.dumps({"a": 1}), "x.pt")


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
def test_damaged_files(save, tmp_path):
    items, storages = entries(arrays())
    content = save(with_metadata(mapping(items)), storages)

    def check(found):
        assert all(isinstance(array, np.ndarray) for array in found.values())
        sum(float(np.sum(array[np.isfinite(array)])) for array in found.values() if array.dtype != "f2")

    with np.errstate(all="ignore"):
        check_reader("PyTorch files", lambda path: read_torch(path.read_bytes(), "x.pt"), content, tmp_path / "x",
                     check=check)  # fmt: skip


def test_entries_that_share_their_bytes_cost_no_more_than_the_file():
    count, size = 100, 10_000
    state = mapping({f"a{i}": tensor(str(i), "BFloat16", size, (size,), (1,)) for i in range(count)})
    buffer = io.BytesIO(zipped(state, {"0": np.zeros(size, np.uint16)}))
    with zipfile.ZipFile(buffer, "a") as archive:
        first = archive.getinfo("archive/data/0")
        for i in range(1, count):
            again = copy.copy(first)
            again.filename = f"archive/data/{i}"
            archive.filelist.append(again)
        archive._didModify = True
    assert len(zipfile.ZipFile(buffer).namelist()) == count + 2
    with pytest.raises(DataError, match=r"x.pt: expected a PyTorch file, got a damaged one"):
        read_torch(buffer.getvalue(), "x.pt")


@pytest.mark.parametrize("change", ["compressed", "checksum"])
def test_archives_that_pytorch_does_not_write(change):
    items, storages = entries({"a": np.ones(4, "f4")})
    content = zipped(mapping(items), storages)
    if change == "checksum":
        content = content.replace(np.ones(4, "f4").tobytes(), np.full(4, 2, "f4").tobytes())
        with pytest.raises(DataError, match=r"x.pt: .*damaged one .*the checksum of 'archive/data/0'"):
            read_torch(content, "x.pt")
        return
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name_ in old.namelist():
            new.writestr(name_, old.read(name_))
    with pytest.raises(
        DataError, match=r"x.pt: expected entries as PyTorch writes them, got 'archive/byteorder' compressed"
    ):
        read_torch(buffer.getvalue(), "x.pt")
