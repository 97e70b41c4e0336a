"""A model as one file: what is in it comes back, and nothing else does."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load, save

import xpcnn
from tests.models import small
from tests.mutations import check_reader, no_hang
from xpcnn import models, nn, random
from xpcnn.backend import use_backend
from xpcnn.data import Compose, Normalize, Pad, ToFloat
from xpcnn.datasets import load_folder, load_npz
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import load_model, load_parameters, save_model, save_parameters
from xpcnn.training.arrays import encode, host_state
from xpcnn.training.model_file import FORMAT, KEY, _digest, is_model_file

from .common import arrays, assert_same, net


def about(path):
    content = path.read_bytes()
    return json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][KEY])


def signed(content, state):
    """Return the bytes of a file that says `content`, with the right SHA-256."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    return encode(state, {KEY: json.dumps(content | {"sha256": _digest(content, state)})})


def forge(path, **changes):
    state = load(path.read_bytes())
    path.write_bytes(signed(about(path) | changes, state))


@pytest.fixture
def file(tmp_path):
    save_model(net(), tmp_path / "a", classes=["x", "y", "z"], transform=Normalize(0.5, 0.25), image_shape=(6, 6))
    return tmp_path / "a"


def test_there_and_back(tmp_path, backend):
    model = net()
    x = backend.asarray(np.random.default_rng(0).normal(size=(5, 1, 6, 6)), "float32")
    model(x)  # moves the running statistics
    before = arrays(model)
    transform = Compose(Pad((1, 2), 0.5), Normalize([0.1], 0.2))
    save_model(model, tmp_path / "a", classes=("left", "right", 7), transform=transform)
    assert model.training
    found = load_model(tmp_path / "a")
    assert_same(arrays(found.model), before)
    assert repr(found.model) == repr(model)
    assert found.model.backend is backend
    assert not any(module.training for module in found.model.modules())
    assert found.classes == ["left", "right", 7]
    assert repr(found.transform) == repr(transform)
    np.testing.assert_array_equal(backend.to_numpy(found.model(x)), backend.to_numpy(model.eval()(x)))


def test_on_another_backend(tmp_path, backend, other_backend):
    model = net()
    save_model(model, tmp_path / "a")
    with use_backend(other_backend) as active:
        found = load_model(tmp_path / "a")
        assert found.model.backend is active
    assert_same(arrays(found.model), arrays(model))


@pytest.mark.parametrize("name", models.names())
def test_every_network_of_ours(backend, tmp_path, name):
    model = models.create(name) if backend.name == "numpy" else small.create(name)
    save_model(model, tmp_path / "a")
    found = load_model(tmp_path / "a")
    assert repr(found.model) == repr(model)
    assert_same(arrays(found.model), arrays(model))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_precisions(backend, tmp_path, dtype):
    model = net().to(dtype=dtype)
    save_model(model, tmp_path / "a")
    assert_same(arrays(load_model(tmp_path / "a").model), arrays(model))


def test_statistics_that_count(backend, tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=None))
    model(backend.asarray(np.ones((3, 2), "float32")))
    save_model(model, tmp_path / "a")
    found = load_model(tmp_path / "a").model
    assert int(backend.to_numpy(found[0].num_batches_tracked)) == 1


def test_the_same_model_gives_the_same_bytes_and_nothing_is_drawn(backend, tmp_path):
    model = net()
    state = random.get_state()
    for name in "ab":
        save_model(model, tmp_path / name, classes=["x", "y", "z"])
    load_model(tmp_path / "a")
    assert random.get_state() == state
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_it_is_a_safetensors_file_of_parameters_too(backend, file):
    model = net()
    load_parameters(model, file)
    assert_same(arrays(load_model(file).model), arrays(model))
    assert set(load(file.read_bytes())) == set(model.state_dict())
    assert about(file)["format"] == FORMAT
    assert about(file)["version"] == xpcnn.__version__
    assert is_model_file(file)


def test_what_the_model_was_called_with_is_remembered(backend, tmp_path):
    model = net()
    model(backend.zeros((2, 1, 6, 6), "float32"))
    save_model(model, tmp_path / "a", transform=Pad(1))
    found = load_model(tmp_path / "a")
    assert found.image_shape == (1, 4, 4)
    save_model(found.model, tmp_path / "b", transform=Pad(1))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- one's own -------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Stem(nn.Sequential):
    def __init__(self, channels, inner):
        super().__init__(nn.Conv2d(1, channels, 3), nn.ReLU(), inner)
        self.channels, self.inner = channels, inner


def halved(batch):
    return ToFloat()(batch) / 2


def test_layers_and_transforms_of_ones_own(backend, tmp_path):
    model = nn.Sequential(Stem(3, Scale(2.0)), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(3, 2))
    save_model(model, tmp_path / "a", transform=halved)
    with pytest.raises(DataError, match=r"a: layer '0.*' \(Scale\): Scale is not a class of xpcnn.nn; hand it over"):
        load_model(tmp_path / "a", layers=[Stem])
    with pytest.raises(
        DataError, match=r"a: transform: halved is not a transform of xpcnn.data; hand it over: layers="
    ):
        load_model(tmp_path / "a", layers=[Stem, Scale])
    found = load_model(tmp_path / "a", layers=[Stem, Scale, halved])
    assert found.transform is halved
    assert_same(arrays(found.model), arrays(model))
    x = backend.asarray(np.random.default_rng(0).normal(size=(2, 1, 6, 6)).astype("float32"))
    np.testing.assert_array_equal(backend.to_numpy(found.model(x)), backend.to_numpy(model.eval()(x)))


def test_what_cannot_be_saved_leaves_what_was_there(tmp_path, file):
    before = file.read_bytes()
    tied = net()
    tied[6].weight = nn.Conv2d(1, 2, 1).weight
    grown = Stem(3, Scale(1.0))
    grown.append(nn.Conv2d(3, 3, 1))
    lost = nn.Sequential(nn.ReLU())
    lost.extra = nn.Linear(2, 2)
    for wrong, options, text in (
        (net, {}, r"model: expected an nn.Module, got function"),
        (grown, {}, r"model: expected '3.bias' as its constructors' arguments make it, not at all, got"),
        (tied, {}, r"6\.weight|'weight'"),
        (net(), {"classes": []}, r"classes: expected one or more, all different, got none"),
        (net(), {"classes": ["a", "b", "a"]}, r"got 'a' twice"),
        (net(), {"classes": "abc"}, r"classes: expected a sequence of names, got 'abc'"),
        (net(), {"classes": [None]}, r"classes: expected strings or numbers, got None"),
        (net(), {"transform": 3}, r"transform: expected a callable"),
        (
            net(),
            {"transform": lambda x: x},
            r"transform: expected transforms of xpcnn.data, or .* a name, got '<lambda>'",
        ),
        (net(), {"image_shape": 28}, r"image_shape: expected \(H, W\)"),
        (net(), {"image_shape": (0, 3)}, r"image_shape: expected \(H, W\)"),
        (net(), {"image_shape": (1 << 20, 1 << 20)}, r"image_shape: expected at most"),
        (net(), {"fit": "squeeze"}, r"fit: expected one of"),
        (net(), {"digits": 1}, r"digits: expected True or False"),
    ):
        with pytest.raises(ConfigError, match=text):
            save_model(wrong, file, **options)
        assert file.read_bytes() == before
    with pytest.raises(DataError, match="expected to write it"):
        save_model(net(), tmp_path / "missing" / "a")
    assert os.listdir(tmp_path) == ["a"]


# --- files that are none ---------------------------------------------------------------------------------------------


def test_parameters_alone_are_called_so(tmp_path):
    save_parameters(net(), tmp_path / "a")
    with pytest.raises(DataError, match="a: expected a model file, got parameters without an architecture"):
        load_model(tmp_path / "a")
    assert not is_model_file(tmp_path / "a")


def test_newer_and_damaged_files_are_told_apart(file):
    forge(file, format="xpcnn model 2")
    with pytest.raises(DataError, match=r"a: written by a newer xpcnn: format 'xpcnn model 2'.*update xpcnn"):
        load_model(file)
    forge(file, format="xpcnn run 1")
    with pytest.raises(DataError, match=r"damaged: expected format 'xpcnn model 1'"):
        load_model(file)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": None}, "the network: expected a description of a layer, got None"),
        ({"model": {"layer": "ReLU", "arguments": {}}}, "expected no array named"),
        ({"classes": ["a"] * 3}, "classes: expected one or more, all different"),
        ({"classes": 3}, "classes: expected a sequence of names, got 3"),
        ({"classes": [["a"]]}, "classes: expected strings or numbers"),
        ({"transform": 3}, "transform: expected a description of one, got 3"),
        ({"transform": {"name": "describe"}}, "transform: expected one of xpcnn.data, got 'describe'"),
        ({"transform": {"name": "DataLoader"}}, "transform: expected one of xpcnn.data, got 'DataLoader'"),
        ({"transform": {"name": "Pad", "padding": 1 << 40}}, "padding: expected at most"),
        ({"transform": {"name": "Pad", "padding": -1}}, "transform Pad: padding"),
        ({"transform": {"name": "Pad", "padding": {}}}, "padding: expected a number"),
        ({"transform": {"name": "Pad"}}, "transform Pad: .*missing"),
        ({"transform": {"name": "Compose"}}, "expected the parts of a Compose"),
        ({"transform": {"custom": "halved"}}, "halved is not a transform"),
        ({"transform": {"custom": {}}}, "not a transform"),
        ({"image_shape": [1, 2, 3, 4]}, "image_shape: expected"),
        ({"image_shape": "28"}, "image_shape: expected"),
        ({"image_shape": [1 << 40, 28]}, "image_shape: expected"),
        ({"fit": []}, "fit: expected one of"),
        ({"digits": 0}, "digits: expected True or False"),
        ({"average_shifts": -1}, "average_shifts: expected"),
    ],
)
def test_a_forged_description_is_one_clear_error(file, changes, error):
    forge(file, **changes)
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}: .*{error}") as found:
        load_model(file)
    assert "\n" not in str(found.value)


def test_numbers_that_no_training_leaves(file):
    state = load(file.read_bytes())
    state["0.weight"][0] = np.nan
    file.write_bytes(signed(about(file), state))
    with pytest.raises(DataError, match=r"expected finite numbers, got nan or infinity in '0.weight'"):
        load_model(file)
    state["0.weight"] = np.zeros((4, 1, 3, 3), "int32")
    file.write_bytes(signed(about(file), state))
    with pytest.raises(DataError, match=r"expected floating arrays, got '0.weight' as int32"):
        load_model(file)


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "null", "{", '{"format":' * 3, "[" * 100_000, '{"a": NaN}', "1" * 9999]
)
def test_metadata_that_is_no_description(tmp_path, text):
    (tmp_path / "a").write_bytes(save(host_state(net()), {KEY: text}))
    with no_hang(), pytest.raises(DataError, match="a: damaged"):
        load_model(tmp_path / "a")


def test_any_flipped_bit_is_found(file):
    content = bytearray(file.read_bytes())
    rng = np.random.default_rng(0)
    for place in [*rng.integers(8, len(content), 150), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(DataError):
            load_model(file)


def test_layers_must_be_classes_or_transforms(file):
    for wrong in (Scale, 3, [Scale(2)], ["Scale"], [int]):
        with pytest.raises(ConfigError, match="layers: expected"):
            load_model(file, layers=wrong)


def test_damaged_files(tmp_path, file):
    check_reader("model file", load_model, file.read_bytes(), tmp_path / "damaged", bytes_per_byte=128)


def test_forged_files(tmp_path, file):
    """The description is damaged, and the checksum made anew."""
    state = load(file.read_bytes())
    content = about(file)
    del content["sha256"]

    def wrap(damaged):
        try:
            found = json.loads(damaged)
        except (ValueError, RecursionError):
            return encode(state, {KEY: damaged.decode("utf-8", "replace")})
        return signed(found, state) if isinstance(found, dict) else encode(state, {KEY: json.dumps(found)})

    def read(path):
        found = load_model(path)
        return found(np.zeros((1, 6, 6), "uint8"))

    text = json.dumps(content).encode()
    check_reader("forged model file", read, text, tmp_path / "damaged", wrap=wrap, bytes_per_byte=128)


def test_devices_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with no_hang(), pytest.raises(DataError, match="expected a model file"):
            load_model(path)


@pytest.mark.parametrize("path", [None, 1, True, ["a"], b"a"])
def test_what_is_no_path(path):
    """A number least of all: it would be the process's own open file."""
    message = "path: expected a str or os.PathLike, got"
    for call in (load_model, load_npz, load_folder, lambda path: save_model(models.create("tiny"), path)):
        with pytest.raises(ConfigError, match=message):
            call(path)
