"""Archives and tables: what people pass around is read, what is damaged is one line, and nothing in it is run."""

import gzip

import numpy as np
import pytest

from tests.mutations import check_reader
from xpcnn.datasets import Dataset, load_csv, load_npz
from xpcnn.errors import ConfigError, DataError


def images(rng, count=6):
    return rng.integers(0, 256, (count, 4, 5), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "y"), ("data", "target")])
def test_npz(tmp_path, rng, save, names):
    pixels, labels = images(rng), np.array([0, 1, 2, 0, 1, 2])
    save(tmp_path / "set.npz", **dict(zip(names, (pixels, labels), strict=True)))
    found = load_npz(tmp_path / "set.npz")
    np.testing.assert_array_equal(found.images, pixels)
    assert found.labels.tolist() == labels.tolist()
    assert found.images.dtype == np.uint8


def test_npz_in_parts_as_keras_and_medmnist_have_them(tmp_path, rng):
    pixels = images(rng)
    np.savez(tmp_path / "keras.npz", x_train=pixels, y_train=[0, 1] * 3, x_test=pixels[:2], y_test=[1, 0])
    train, test = load_npz(tmp_path / "keras.npz")
    assert (len(train), len(test), test.labels.tolist()) == (6, 2, [1, 0])
    column = np.array([[0], [1]] * 3)
    parts = {
        f"{part}_{what}": each
        for part in ("train", "val", "test")
        for what, each in (("images", pixels), ("labels", column))
    }
    np.savez(tmp_path / "med.npz", **parts)
    found = load_npz(tmp_path / "med.npz")
    assert [each.labels.tolist() for each in found] == [[0, 1] * 3] * 3


def test_npz_names_order_and_text(tmp_path, rng):
    pixels = images(rng)
    np.savez(tmp_path / "a.npz", pictures=np.asfortranarray(pixels), animals=np.array(["dog", "cat"] * 3))
    found = load_npz(tmp_path / "a.npz", images="pictures", labels="animals")
    np.testing.assert_array_equal(found.images, pixels)
    assert (found.classes, found.labels.tolist()) == (["cat", "dog"], [1, 0] * 3)
    with pytest.raises(DataError, match=r"expected arrays named images and labels, .*got animals, pictures; name"):
        load_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match="no array 'rest', got animals, pictures; images= and labels= name the two"):
        load_npz(tmp_path / "a.npz", images="rest", labels="animals")


def test_npz_that_is_wrong(tmp_path, rng):
    path = tmp_path / "a.npz"
    np.savez(path, images=images(rng), labels=np.array([None] * 6))
    with pytest.raises(DataError, match="labels holds Python objects, which are not read"):
        load_npz(path)
    np.savez(path, images=images(rng), labels=np.arange(5))
    with pytest.raises(DataError, match=r"images and labels: labels: expected one for each of the 6 images, got 5"):
        load_npz(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match=r"expected a NumPy archive \(.npz\), got a PNG picture"):
        load_npz(path)


def test_damaged_archives_end_in_one_error(tmp_path, rng):
    path = tmp_path / "good.npz"
    np.savez_compressed(path, images=images(rng), labels=np.arange(6))
    check_reader(
        "npz", load_npz, path.read_bytes(), tmp_path / "bad.npz", check=lambda found: isinstance(found, Dataset)
    )


# --- tables -------------------------------------------------------------------------------------------------------


def rows(pixels, labels, at=0, delimiter=","):
    for image, label in zip(pixels, labels, strict=True):
        cells = [str(each) for each in image.ravel()]
        cells.insert(at, str(label))
        yield delimiter.join(cells)


@pytest.mark.parametrize("heading", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("at", [0, 20])
def test_csv(tmp_path, rng, heading, delimiter, at):
    pixels, labels = images(rng), [3, 1, 0, 2, 3, 1]
    names = [f"pixel{i}" for i in range(20)]
    names.insert(at, "label")
    text = "\n".join([delimiter.join(names)] * heading + list(rows(pixels, labels, at, delimiter))) + "\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    for name in ("a.csv", "a.csv.gz"):
        found = load_csv(tmp_path / name, (4, 5), label=None if heading or not at else -1)
        np.testing.assert_array_equal(found.images, pixels, strict=True)
        assert found.labels.tolist() == labels
    shaped = load_csv(tmp_path / "a.csv", (1, 4, 5), label="label" if heading else at)
    np.testing.assert_array_equal(shaped.images, pixels[:, None])


def test_csv_of_floats_and_names(tmp_path, rng):
    pixels = (images(rng) / 255).astype(np.float32)
    (tmp_path / "a.csv").write_text("\n".join(rows(pixels, ["dog", "cat"] * 3)))
    found = load_csv(tmp_path / "a.csv", (4, 5))
    np.testing.assert_allclose(found.images, pixels, rtol=1e-6)
    assert found.images.dtype == np.float32
    assert (found.classes, found.labels.tolist()) == (["cat", "dog"], [1, 0] * 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n", r"expected 4 pixels of \(2, 2\) and a label in a row, got 3 columns"),
        ("0,1,2,3,4\n0,1,2,3\n", "row 2: expected 5 columns, got 4"),
        ("label,a,b,c,d\n0,1,2,3,4\n0,1,x,3,4\n", "expected numbers as pixels"),
        ("label,a,b,c,d\n", "expected a row for each image, got none"),
        ("0,1,2,nan,4\n", "expected finite pixels"),
        ("-1,1,2,3,4\n", "expected class indices of 0 or more, got -1"),
        ("", "got 0 columns"),
    ],
)
def test_csv_that_is_wrong(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_csv(tmp_path / "a.csv", (2, 2))


def test_csv_wrong_arguments(tmp_path):
    (tmp_path / "a.csv").write_text("label,a,b,c,d\n0,1,2,3,4\n")
    for shape in ((4,), (0, 4), "ab", None):
        with pytest.raises(ConfigError, match="image_shape: expected"):
            load_csv(tmp_path / "a.csv", shape)
    with pytest.raises(DataError, match="no column 'kind'; the first are label, a, b, c, d"):
        load_csv(tmp_path / "a.csv", (2, 2), label="kind")
    with pytest.raises(DataError, match="label: expected a column below 5, got 5"):
        load_csv(tmp_path / "a.csv", (2, 2), label=5)
    (tmp_path / "a.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff" + bytes(30))
    with pytest.raises(DataError, match=r"expected a table of text \(CSV\), got a PNG picture"):
        load_csv(tmp_path / "a.csv", (2, 2))
