"""MNIST's files under the names that people have them by; EMNIST; formats that are something else."""

import gzip
import io
import itertools
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from xpcnn import recipes
from xpcnn.datasets import load_idx, load_mnist_pickle
from xpcnn.datasets.formats import PEEK, describe
from xpcnn.datasets.mnist.folder import load_mnist_folder
from xpcnn.datasets.source import look_at
from xpcnn.errors import DataError
from xpcnn.recipes import sources

from .makers import gzipped, idx_bytes

NAMES = {
    "original": "{part}-{kind}-idx{axes}-ubyte",
    "dot": "{part}-{kind}.idx{axes}-ubyte",
    "zipped": "{part}-{kind}-idx{axes}-ubyte.gz",
    "upper": "{part}-{kind}-IDX{axes}-UBYTE",
    "underscores": "{part}_{kind}_idx{axes}_ubyte",
    "below": "MNIST/raw/{part}-{kind}-idx{axes}-ubyte",
    "folder of its own": "{part}-{kind}-idx{axes}-ubyte/{part}-{kind}-idx{axes}-ubyte",
    "emnist": "gzip/emnist-digits-{part}-{kind}-idx{axes}-ubyte.gz",
}


def arrays(rng, labels=10, dtype=np.uint8):
    return {
        (part, kind): rng.integers(0, 256, (size, 28, 28)).astype(dtype)
        if kind == "images"
        else rng.integers(0, labels, size).astype(np.uint8)
        for (part, size), kind in itertools.product((("train", 7), ("test", 4)), ("images", "labels"))
    }


def write(folder, sets, pattern, test="t10k"):
    for (part, kind), array in sets.items():
        name = pattern.format(part=test if part == "test" else part, kind=kind, axes=array.ndim)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzipped(idx_bytes(array)) if name.endswith(".gz") else idx_bytes(array))


@pytest.mark.parametrize("test", ["t10k", "test", "T10K"])
@pytest.mark.parametrize("pattern", NAMES.values(), ids=NAMES)
def test_files_are_found_by_part_and_kind(tmp_path, rng, pattern, test):
    made = arrays(rng)
    write(tmp_path, made, pattern, test)
    kind, *parts, _ = sources.load(str(tmp_path), ["mnist"], "lenet5")
    assert kind == "mnist"
    turned = "emnist" in pattern
    for name, part in zip(("train", "test"), parts, strict=True):
        images = made[name, "images"]
        np.testing.assert_array_equal(part.images, images.transpose(0, 2, 1) if turned else images)
        np.testing.assert_array_equal(part.labels, made[name, "labels"])


def test_what_is_missing_is_named_beside_what_was_found(tmp_path, rng):
    made = arrays(rng)
    del made["test", "labels"]
    write(tmp_path, made, NAMES["dot"])
    with pytest.raises(DataError, match=r"got t10k-images\.idx3-ubyte, train.*; test labels missing"):
        load_mnist_folder(tmp_path)


def test_one_of_several_sets_is_chosen(tmp_path, rng):
    made = {name: arrays(rng) for name in ("balanced", "digits")}
    for name, each in made.items():
        write(tmp_path, each, f"emnist-{name}-{{part}}-{{kind}}-idx{{axes}}-ubyte", "test")
    with pytest.raises(DataError, match="several sets lie here: emnist-balanced, emnist-digits; choose one as"):
        load_mnist_folder(tmp_path)
    train, _ = load_mnist_folder(tmp_path / "emnist-digits")
    np.testing.assert_array_equal(train.labels, made["digits"]["train", "labels"])
    assert sources.is_named(str(tmp_path / "emnist-digits"))
    assert not sources.is_named(str(tmp_path / "emnist-letters"))


def test_an_error_names_the_file(tmp_path, rng):
    made = arrays(rng)
    made["train", "labels"] = made["train", "labels"][:5]
    write(tmp_path, made, NAMES["original"])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte for train-images-idx3-ubyte: labels: expected one"):
        load_mnist_folder(tmp_path)
    write(tmp_path, {("train", "images"): np.zeros((3, 4, 5, 1), np.uint8)[..., 0][:0]}, NAMES["original"])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: expected images"):
        load_mnist_folder(tmp_path)


@pytest.mark.parametrize(("scale", "dtype"), [(1, "float32"), (255, "float32"), (255, "float64"), (255, "int32")])
def test_numbers_from_0_to_255_are_pixels(tmp_path, rng, scale, dtype):
    made = arrays(rng)
    pixels = made["train", "images"]
    for part in ("train", "test"):
        made[part, "images"] = (made[part, "images"] / 255 * scale).round(6).astype(dtype)
    write(tmp_path, made, NAMES["original"])
    train, _ = load_mnist_folder(tmp_path)
    as_floats = train.images / 255 if train.images.dtype == np.uint8 else train.images
    np.testing.assert_allclose(as_floats, pixels / 255, atol=3e-6)


@pytest.mark.parametrize(("low", "high"), [(0, 256), (-1, 1), (-0.4, 2.8), (0, np.nan), (0, np.inf)])
def test_other_numbers_are_refused_by_name(tmp_path, rng, low, high):
    made = arrays(rng)
    made["train", "images"] = rng.uniform(0, 1, (7, 28, 28)).astype("float32")
    made["train", "images"].flat[:2] = low, high
    write(tmp_path, made, NAMES["original"])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: expected pixels as bytes.*got float32"):
        load_mnist_folder(tmp_path)


def test_letters_have_a_network_of_their_own(tmp_path, rng):
    made = arrays(rng, labels=27)
    made["test", "labels"][0] = 26
    write(tmp_path, made, NAMES["emnist"].replace("digits", "letters"), "test")
    for name in ("lenet5", "conv8"):
        done = recipes.run(name, data=str(tmp_path), epochs=1, out=tmp_path / name)
        assert done.evaluation.probabilities.shape == (4, 27)
        assert recipes.load(tmp_path / name).metrics == done.metrics


# --- what else people give ----------------------------------------------------------------------------------------


def npz():
    file = io.BytesIO()
    np.savez(file, x=np.zeros(3))
    return file.getvalue()


def archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return file.getvalue()


def zipped(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(name, b"x" * 40)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FILES = {
    "a NumPy archive (.npz)": npz(),
    "a NumPy array (.npy)": npy(),
    "a PyTorch file (.pt, .pth)": zipped("archive/data.pkl"),
    "a zip archive": zipped("letter.txt"),
    "a tar archive": archive(),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(30),
    "a JPEG picture": b"\xff\xd8\xff\xe0" + bytes(30),
    "a table of text (CSV)": b"label,pixel0,pixel1\n5,0,0\n",
    "a web page (HTML)": b"\n<!DOCTYPE html><html>",
    "a JSON file": b'{"a": 1}',
    "an HDF5 file (.h5, as Keras writes it)": b"\x89HDF\r\n\x1a\n" + bytes(30),
    "a safetensors file": (20).to_bytes(8, "little") + b'{"a":{}}            ',
    "an empty file": b"",
}


@pytest.mark.parametrize(("what", "content"), FILES.items(), ids=FILES)
def test_other_formats_are_called_by_name(tmp_path, what, content):
    assert describe(content[:PEEK]) == what
    path = tmp_path / "digits"
    path.write_bytes(content)
    for read, expected in ((load_mnist_pickle, "mnist.pkl.gz, gzipped or not"), (load_idx, "an IDX file")):
        if what == "an empty file" and read is load_idx:
            continue
        with pytest.raises(DataError) as error:
            read(path)
        assert f"{path}: expected {expected}" in str(error.value)
        assert f"got {what}" in str(error.value)
    with pytest.raises(
        DataError, match="expected mnist, a folder with one sub-folder of pictures a class, of MNIST's"
    ) as error:
        sources.load(str(path), ["mnist"], "lenet5")
    assert f"got {what}" in str(error.value)
    if content:
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError) as error:
            load_mnist_pickle(path)
        assert f"got {what} within a gzip file" in str(error.value)


def test_pickles_and_idx_are_told_apart(tmp_path):
    assert describe(pickle.dumps([1])) == "a pickle"
    assert describe(idx_bytes(np.zeros((2, 3), np.float32))) == "an IDX file"
    assert describe(b"(lp0\nI1\na.") is None
    assert describe("äöü: a letter cut off".encode()[:1]) is None
    path = tmp_path / "one"
    path.write_bytes(gzipped(idx_bytes(np.zeros(3, np.uint8))))
    with pytest.raises(DataError, match=r"expected mnist\.pkl\.gz, gzipped or not, got an IDX file within a gzip"):
        load_mnist_pickle(path)


def test_a_torch_file_is_one(tmp_path):
    torch = pytest.importorskip("torch")
    for zipped in (True, False):
        torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        assert describe((tmp_path / "a.pt").read_bytes()[:PEEK]) == "a PyTorch file (.pt, .pth)"


def test_a_folder_of_something_else_says_of_what(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.PNG").write_bytes(b"")
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"got a folder of 3 \.png files, 1 folders"):
        sources.load(str(tmp_path), ["mnist"], "lenet5")


def test_every_path_is_looked_at_in_one_place(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [look_at(tmp_path), look_at(__file__), look_at(tmp_path / "no"), look_at(f"{__file__}/x")] == [
        "folder", "file", "", "",
    ]  # fmt: skip
    assert look_at("/dev/null") == "other"
    for path in ("x" * 300, "a\0b", tmp_path / "loop"):
        with pytest.raises(DataError, match="cannot be read") as error:
            look_at(path)
        assert len(str(error.value)) < 300
