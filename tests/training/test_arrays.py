"""What a file of parameters must not be: a device, a pipe, another format, numbers that no training leaves behind."""

import json
import os
import sys

import numpy as np
import pytest

from tests.datasets.torch_files import FORMATS, entries, mapping, zipped
from tests.mutations import no_hang
from xpcnn.errors import BackendError, DataError
from xpcnn.recipes import folder as folders
from xpcnn.training import History, load_parameters, to_torch_state_dict
from xpcnn.training.arrays import encode, host_state
from xpcnn.training.checkpoint import FORMAT, _sealed, read_checkpoint, read_numbers
from xpcnn.training.files import check_format

from .common import arrays, assert_same, net


def test_devices_pipes_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path):
        with no_hang(), pytest.raises(DataError, match=r"safetensors or PyTorch file, got a (pipe or device|folder)"):
            load_parameters(net(), path)
    for name, read in (("state.json", read_checkpoint), ("run.json", folders.read), ("h.json", None)):
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        os.mkfifo(place / name)
        with no_hang(), pytest.raises(DataError, match="got a pipe or device"):
            read(place) if read else History.load(place / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "6.bias"])
def test_numbers_that_are_none(backend, tmp_path, name, value):
    state = host_state(net())
    state[name].flat[-1] = value
    (tmp_path / "a").write_bytes(encode(state))
    model = net()
    before = arrays(model)
    with pytest.raises(DataError, match=f"a: expected finite numbers, got nan or infinity in '{name}'"):
        load_parameters(model, tmp_path / "a")
    assert_same(before, arrays(model))


def test_a_variance_below_0(backend, tmp_path):
    state = host_state(net())
    state["1.running_var"][2] = -1e-3
    (tmp_path / "a").write_bytes(encode(state))
    with pytest.raises(DataError, match=r"expected variances of 0 or more, got -0.001 in '1.running_var'"):
        load_parameters(net(), tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + bytes(22) + b"\x10\0\0\0a_picture.png", "a zip archive"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"", "an empty file"),
        (b"<html>", "a web page"),
    ],
)
def test_another_format_is_called_by_name(tmp_path, content, what):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=f"a: expected a safetensors or PyTorch file, got {what}"):
        load_parameters(net(), tmp_path / "a")


def theirs(state, save=zipped, prefix=""):
    """Return a state with batch norm's counter as PyTorch would have saved it."""
    counted = {**state, "1.num_batches_tracked": np.array(7)}
    items, storages = entries({prefix + name: array for name, array in counted.items()})
    return save(mapping(items), storages)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
def test_a_file_of_pytorch(backend, tmp_path, save, prefix):
    state = {name: array + np.float32(0.5) for name, array in host_state(net()).items()}
    (tmp_path / "a.pt").write_bytes(theirs(state, save, prefix))
    model = net()
    load_parameters(model, tmp_path / "a.pt")
    for name, array in host_state(model).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name, strict=True)
    (tmp_path / "a.pt").write_bytes(theirs({**state, "6.bias": state["6.bias"] * np.float32(np.nan)}, save, prefix))
    with pytest.raises(DataError, match=r"got nan or infinity in '6.bias'"):
        load_parameters(model, tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(theirs({**state, "6.more": state["6.bias"]}, save, prefix))
    with pytest.raises(DataError, match=r"expected no array named '6.more'"):
        load_parameters(model, tmp_path / "a.pt")


def brain(array):
    """Return float32 numbers cut to bfloat16, as uint16."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(("dtype", "turn"), [("F16", lambda a: a.astype("f2")), ("BF16", brain)])
def test_narrow_floats_of_safetensors(backend, tmp_path, dtype, turn):
    state = host_state(net())
    narrow = {name: turn(array) for name, array in state.items()}
    header, content = {}, b""
    for name, array in {**narrow, "1.num_batches_tracked": np.array(7)}.items():
        kind = "I64" if array.dtype == np.int64 else dtype
        header[name] = {
            "dtype": kind,
            "shape": array.shape,
            "data_offsets": [len(content), len(content) + array.nbytes],
        }
        content += array.tobytes()
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    (tmp_path / "a").write_bytes(len(head).to_bytes(8, "little") + head + content)
    model = net()
    load_parameters(model, tmp_path / "a")
    for name, array in host_state(model).items():
        expected = narrow[name].astype("f4") if dtype == "F16" else (state[name].view("u4") & 0xFFFF0000).view("f4")
        np.testing.assert_array_equal(array, expected, err_msg=name, strict=True)


def test_a_dtype_that_is_not_read(tmp_path):
    head = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a").write_bytes(len(head).to_bytes(8, "little") + head + b"  ")
    with pytest.raises(DataError, match=r"a: expected (one of the dtypes F64, .*, got F8_E4M3 in 'a'|a safetensors)"):
        load_parameters(net(), tmp_path / "a")


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        BackendError, match=r"to_torch_state_dict: expected PyTorch, got .*; pip install torch, or hand"
    ):
        to_torch_state_dict(net())


def test_a_newer_format_is_said_to_be_newer(tmp_path):
    settings = folders.Settings("lenet5", None, 1, 128, 0, False)
    folders.write(tmp_path, settings, {})
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "format": "xpcnn run 2"}))
    with pytest.raises(DataError, match=r"run.json: written by a newer xpcnn: format 'xpcnn run 2'.*update xpcnn"):
        folders.read(tmp_path)
    (tmp_path / "state.json").write_text(_sealed({"format": "xpcnn checkpoint 7", "step": 1}))
    with pytest.raises(DataError, match=r"state.json: written by a newer xpcnn: format 'xpcnn checkpoint 7'"):
        read_numbers(tmp_path)
    for found in ("xpcnn checkpoint 0", "xpcnn run 2", "xpcnn checkpoint", None, 2, "xpcnn checkpoint 1 "):
        with pytest.raises(DataError, match="damaged: expected format 'xpcnn checkpoint 1'"):
            check_format("state.json", found, FORMAT)
