"""CIFAR-10 in both of its forms, from small files of the same make."""

import pickle

import numpy as np
import pytest

import xpcnn.datasets.cifar as cifar
from tests.mutations import COUNT, check_reader
from xpcnn.datasets import load_cifar10
from xpcnn.errors import DataError

from .makers import cifar_batch, cifar_pickle, write_cifar

INNER = {"binary": "cifar-10-batches-bin", "python2": "cifar-10-batches-py"}
FORMS = ["binary", "python2", *"012345"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unpacked", ["the folder above", "the folder itself"])
def test_reads_what_was_written(tmp_path, rng, form, unpacked):
    folder = tmp_path / INNER.get(form, INNER["python2"]) if unpacked == "the folder above" else tmp_path
    images, labels = write_cifar(folder, rng, form)
    train, test = load_cifar10(tmp_path)
    np.testing.assert_array_equal(train.images, images[:5].reshape(20, 3, 32, 32), strict=True)
    np.testing.assert_array_equal(train.labels, labels[:5].ravel())
    np.testing.assert_array_equal(test.images, images[5])
    np.testing.assert_array_equal(test.labels, labels[5])
    assert train.images.dtype == train.labels.dtype == np.uint8


@pytest.mark.parametrize("labels", [np.array([1, 2]), [np.int64(1), np.uint8(2)], np.array([1, 2], np.uint8)])
def test_labels_as_python_3_programs_write_them(tmp_path, rng, labels):
    write_cifar(tmp_path, rng, "2")
    data = np.zeros((2, 3072), np.uint8)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": labels}))
    assert load_cifar10(tmp_path)[1].labels.tolist() == [1, 2]


def test_nothing_there_says_what_to_fetch(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz or cifar-10-binary\.tar\.gz") as error:
            load_cifar10(folder)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["binary", "python2"])
def test_a_missing_batch_is_named(tmp_path, rng, form):
    write_cifar(tmp_path, rng, form)
    name = "data_batch_3" + (".bin" if form == "binary" else "")
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} missing"):
        load_cifar10(tmp_path)


def test_binary_cut_between_two_records_is_noticed(tmp_path, rng):
    write_cifar(tmp_path, rng, "binary")
    path = tmp_path / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    with pytest.raises(DataError, match=r"equal length.*4, 3, 4"):
        load_cifar10(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="records of 3073 bytes"):
        load_cifar10(tmp_path)


def test_a_file_of_the_original_size_needs_the_original_checksum(tmp_path, rng, monkeypatch):
    write_cifar(tmp_path, rng, "python2")
    size = (tmp_path / "test_batch").stat().st_size
    monkeypatch.setitem(cifar._PICKLED, "test_batch", (size, "0" * 32))
    with pytest.raises(DataError, match=r"test_batch.*MD5"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1], "expected a dict"),
        ({"labels": [1]}, "expected data"),
        ({"data": np.zeros((1, 3071), np.uint8), "labels": [1]}, "expected data"),
        ({"data": np.zeros((1, 3072), np.int64), "labels": [1]}, "expected data"),
        ({"data": np.zeros((1, 3, 32, 32), np.uint8), "labels": [1]}, "expected data"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "integers"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [[1]]}, "integers"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [1, 2]}, "one for each"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "from 0 to 9"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, "from 0 to 9"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": np.ones((1, 1))}, "unpack"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "at least one"),
    ],
)
def test_batches_of_another_form(tmp_path, rng, batch, message):
    write_cifar(tmp_path, rng, "2")
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match=message) as error:
        load_cifar10(tmp_path)
    assert str(tmp_path / "data_batch_1") in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_batches(tmp_path, rng, form):
    def check(datasets):
        train, test = datasets
        assert train.images.shape[1:] == (3, 32, 32)
        assert len(train.images) == len(train.labels)
        assert test.labels.max() < 10

    write_cifar(tmp_path, rng, form, 1)
    if form == "binary":
        name, content, count = "CIFAR-10, binary", (tmp_path / "data_batch_1.bin").read_bytes(), COUNT
    else:
        name, content, count = "CIFAR-10, pickled", cifar_pickle(*cifar_batch(rng, 2), form), COUNT // 7 + 1
    path = tmp_path / ("data_batch_1.bin" if form == "binary" else "data_batch_1")
    check_reader(name, lambda _: load_cifar10(tmp_path), content, path, check=check, count=count, seed=ord(form[-1]))
