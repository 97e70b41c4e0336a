"""What a file of parameters must not be: a device, a pipe, another format, numbers that no training leaves behind."""

import json
import os

import numpy as np
import pytest

from tests.mutations import no_hang
from xpcnn.errors import DataError
from xpcnn.recipes import folder as folders
from xpcnn.training import History, load_parameters
from xpcnn.training.arrays import encode, host_state
from xpcnn.training.checkpoint import FORMAT, _sealed, read_checkpoint, read_numbers
from xpcnn.training.files import check_format

from .common import arrays, assert_same, net


def test_devices_pipes_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path):
        with no_hang(), pytest.raises(DataError, match=r"expected a safetensors file, got a (pipe or device|folder)"):
            load_parameters(net(), path)
    for name, read in (("state.json", read_checkpoint), ("run.json", folders.read), ("h.json", None)):
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        os.mkfifo(place / name)
        with no_hang(), pytest.raises(DataError, match="got a pipe or device"):
            read(place) if read else History.load(place / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "6.bias"])
def test_numbers_that_are_none(tmp_path, name, value):
    state = host_state(net())
    state[name].flat[-1] = value
    (tmp_path / "a").write_bytes(encode(state))
    model = net()
    before = arrays(model)
    with pytest.raises(DataError, match=f"a: expected finite numbers, got nan or infinity in '{name}'"):
        load_parameters(model, tmp_path / "a")
    assert_same(before, arrays(model))


def test_a_variance_below_0(tmp_path):
    state = host_state(net())
    state["1.running_var"][2] = -1e-3
    (tmp_path / "a").write_bytes(encode(state))
    with pytest.raises(DataError, match=r"expected variances of 0 or more, got -0.001 in '1.running_var'"):
        load_parameters(net(), tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + bytes(22) + b"\x10\0\0\0archive/data.pkl", r"a PyTorch file \(.pt, .pth\)"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"", "an empty file"),
        (b"<html>", "a web page"),
    ],
)
def test_another_format_is_called_by_name(tmp_path, content, what):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=f"a: expected a safetensors file, got {what}"):
        load_parameters(net(), tmp_path / "a")


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
