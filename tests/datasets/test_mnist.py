"""MNIST as the package carries it, and `mnist.pkl.gz` of either Python."""

import gzip
import hashlib
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpcnn.datasets.mnist as mnist
from tests.mutations import COUNT, check_reader
from xpcnn.datasets import load_mnist, load_mnist_pickle
from xpcnn.errors import DataError

from .makers import gzipped, mnist_parts, mnist_pickle

FOLDER = Path(mnist.__file__).parent


@pytest.mark.parametrize(("part", "name", "count"), [(0, "train", 60_000), (1, "t10k", 10_000)])
def test_mnist_is_what_the_files_hold(part, name, count):
    """The oracle reads the files with struct and gzip alone."""
    dataset = load_mnist()[part]
    content = gzip.decompress((FOLDER / f"{name}-images-idx3-ubyte.gz").read_bytes())
    assert struct.unpack(">4I", content[:16]) == (0x803, count, 28, 28)
    np.testing.assert_array_equal(dataset.images, np.frombuffer(content, np.uint8, offset=16).reshape(count, 28, 28))
    content = gzip.decompress((FOLDER / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    assert struct.unpack(">2I", content[:8]) == (0x801, count)
    np.testing.assert_array_equal(dataset.labels, np.frombuffer(content, np.uint8, offset=8), strict=True)
    assert dataset.images.dtype == np.uint8


def test_first_digits_and_class_counts():
    """The numbers that everybody's MNIST has."""
    train, test = load_mnist()
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train.images.std() / 255 == pytest.approx(0.3081, abs=1e-4)


def test_shared_arrays_cannot_be_written():
    train, _ = load_mnist()
    assert load_mnist()[0] is train
    with pytest.raises(ValueError, match="read-only"):
        train.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        train.subset(slice(0, 5)).labels[0] = 0


def test_another_checksum_is_refused(monkeypatch):
    monkeypatch.setitem(mnist.SHA256, "t10k-labels-idx1-ubyte.gz", "0" * 64)
    load_mnist.cache_clear()
    try:
        with pytest.raises(DataError, match=r"t10k-labels.*SHA-256.*install"):
            load_mnist()
    finally:
        load_mnist.cache_clear()


def test_licence_lies_beside_the_files_with_their_checksums():
    text = (FOLDER / "LICENSE").read_text()
    assert "CC BY-SA 3.0" in text
    assert "LeCun" in text
    assert "Cortes" in text
    said = dict(reversed(line) for line in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.M))
    unzipped = {name.removesuffix(".gz"): gzip.decompress((FOLDER / name).read_bytes()) for name in mnist.SHA256}
    assert said == {name: hashlib.sha256(content).hexdigest() for name, content in unzipped.items()}


def test_loading_opens_no_connection():
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, args: sys.exit('network') if event.startswith('socket') else None)\n"
        "import xpcnn.datasets; print(len(xpcnn.datasets.load_mnist()[1]))"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "10000\n", result.stderr


FORMS = ["python2", "python2-text", *"012345"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pickle_of_either_python(tmp_path, rng, form, compressed, dtype):
    parts = mnist_parts(rng, dtype=dtype)
    content = mnist_pickle(parts, form)
    oracle = pickle.loads(content, encoding="latin1")
    for (x, y), (x_read, y_read) in zip(parts, oracle, strict=True):  # the files made here are what Python reads
        np.testing.assert_array_equal(x, x_read, strict=True)
        np.testing.assert_array_equal(y, y_read, strict=True)
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzipped(content) if compressed else content)
    for (x, y), dataset in zip(parts, load_mnist_pickle(path), strict=True):
        np.testing.assert_array_equal(dataset.images, x.reshape(-1, 28, 28), strict=True)
        np.testing.assert_array_equal(dataset.labels, y, strict=True)


def broken(change):
    parts = [list(part) for part in mnist_parts(np.random.default_rng(0))]
    return change(parts)


def replace(part, index, value):
    def change(parts):
        parts[part][index] = value(parts[part][index])
        return parts

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts[:2], "expected"),
        (lambda parts: 5, "expected"),
        (lambda parts: {"a": 1}, "expected"),
        (lambda parts: [*parts[:2], parts[2][0]], "expected images"),
        (replace(0, 0, lambda x: x[:, :700]), "expected images"),
        (replace(1, 0, lambda x: x.astype(int)), "expected images"),
        (replace(2, 0, lambda x: x * 255), "from 0 to 1"),
        (replace(2, 0, lambda x: x * np.nan), "from 0 to 1"),
        (replace(0, 1, lambda y: y[:-1]), "one for each"),
        (replace(0, 1, lambda y: y - 5), "class indices"),
        (replace(0, 1, lambda y: y + 5), "from 0 to 9"),
        (replace(0, 1, lambda y: y / 2), "integers"),
        (replace(0, 1, lambda y: None), "integers"),
    ],
)
def test_pickle_of_another_form(tmp_path, change, message):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzipped(pickle.dumps(broken(change))))
    with pytest.raises(DataError, match=message) as error:
        load_mnist_pickle(path)
    assert str(path) in str(error.value)


def test_pickle_bomb_stays_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_PICKLE_SLACK", 1 << 16)
    bomb = gzipped(bytes(1 << 26))
    (tmp_path / "bomb.gz").write_bytes(bomb)
    with pytest.raises(DataError, match=f"more than the {(1 << 16) + 100 * len(bomb)} bytes"):
        load_mnist_pickle(tmp_path / "bomb.gz")
    check_reader("mnist.pkl.gz, gzip bomb", load_mnist_pickle, bomb, tmp_path / "bomb.gz", bytes_per_byte=250, count=30)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_pickles(tmp_path, rng, form):
    def check(datasets):
        for dataset in datasets:
            assert dataset.images.shape[1:] == (28, 28)
            assert 0 <= dataset.images.min() <= dataset.images.max() <= 1
            assert len(dataset.images) == len(dataset.labels)
            assert dataset.labels.max() < 10

    content = mnist_pickle(mnist_parts(rng, (2, 1, 1)), form)
    options = {"check": check, "count": COUNT // len(FORMS) + 1, "seed": ord(form[-1])}
    path = tmp_path / "file"
    check_reader("mnist.pkl", load_mnist_pickle, content, path, **options)
    check_reader("mnist.pkl.gz", load_mnist_pickle, gzipped(content), path, **options)
    check_reader("mnist.pkl inside gzip", load_mnist_pickle, content, path, wrap=gzipped, bytes_per_byte=250, **options)
