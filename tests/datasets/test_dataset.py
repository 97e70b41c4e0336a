"""`Dataset`: what it refuses, and that its parts never overlap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.datasets import Dataset, concatenate, load_mnist, split, to_categorical
from xpcnn.errors import DataError, DTypeError, ShapeError


def numbered(count):
    """Return a set whose images and labels are their own indices."""
    indices = np.arange(count)
    return Dataset(np.broadcast_to(indices[:, None, None], (count, 2, 3)), indices)


def test_keeps_the_arrays_it_was_given():
    images, labels = np.zeros((3, 4, 5), np.uint8), np.array([0, 1, 2])
    dataset = Dataset(images, labels)
    assert dataset.images is images
    assert dataset.labels is labels
    assert len(dataset) == 3
    assert repr(dataset) == "Dataset(3 images uint8 [4, 5], labels int64)"


IMAGES = np.zeros((3, 4, 5), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES[0], [0, 1, 2], ShapeError, "images: expected"),
        (np.zeros((3, 784)), [0, 1, 2], ShapeError, r"images: expected.*\(3, 784\)"),
        (np.zeros((3, 1, 1, 4, 5)), [0, 1, 2], ShapeError, "images: expected"),
        (np.zeros((3, 0, 5)), [0, 1, 2], ShapeError, "no empty axis"),
        (IMAGES[:0], [], DataError, "at least one image"),
        (IMAGES.astype(bool), [0, 1, 2], DTypeError, "images: expected integers or floats, got bool"),
        (IMAGES.astype(complex), [0, 1, 2], DTypeError, "got complex128"),
        (np.full((3, 4, 5), None), [0, 1, 2], DTypeError, "got object"),
        ([[[1, 2]], [[1]]], [0, 1], DataError, "images: expected an array"),
        (IMAGES, [0, 1], ShapeError, "labels: expected one for each of the 3 images, got 2"),
        (IMAGES, [0.0, 1.0, 2.0], DTypeError, "labels: expected integers.*float64"),
        (IMAGES, [True, False, True], DTypeError, "labels: expected integers.*bool"),
        (IMAGES, ["a", "b", "c"], DTypeError, "labels: expected integers"),
        (IMAGES, [0, -1, 2], DataError, "of 0 or more, got -1 at index 1"),
        (IMAGES, 5, ShapeError, "labels: expected"),
        (IMAGES, np.zeros((3, 2, 2)), ShapeError, "labels: expected"),
        (IMAGES, np.zeros((3, 0)), ShapeError, "one or more classes"),
        (IMAGES, [[1, 0], [0, 1], [1, 1]], DataError, "sum to 1, got the sum 2 in row 2"),
        (IMAGES, [[1, 0], [2, -1], [0, 1]], DataError, "in row 1"),
        (IMAGES, [[1, 0], [0, 1], [0, np.nan]], DataError, "in row 2"),
        (IMAGES, np.full((3, 2), None), DTypeError, "labels: expected numbers"),
    ],
)
def test_wrong_arrays_get_one_clear_line(images, labels, error, message):
    with pytest.raises(error, match=message) as caught:
        Dataset(images, labels)
    assert "\n" not in str(caught.value)


def test_rows_of_probabilities_are_labels():
    for rows in (np.eye(3, dtype=int), np.full((3, 4), 0.25, np.float16), np.eye(3, 10, dtype=np.float32)):
        assert Dataset(IMAGES, rows).labels.shape == rows.shape


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_parts_hold_every_index_once(sizes):
    dataset = numbered(sum(sizes))
    parts = split(dataset, *sizes)
    assert [len(part) for part in parts] == sizes
    assert np.concatenate([part.labels for part in parts]).tolist() == list(range(sum(sizes)))
    for part in parts:
        np.testing.assert_array_equal(part.images[:, 0, 0], part.labels)
        assert np.shares_memory(part.labels, dataset.labels)
    joined = concatenate(parts)
    np.testing.assert_array_equal(joined.images, dataset.images)
    np.testing.assert_array_equal(joined.labels, dataset.labels)


@pytest.mark.parametrize("sizes", [(), (9,), (11,), (5, 4), (5, 6), (10, 0), (12, -2)])
def test_sizes_must_add_up(sizes):
    with pytest.raises(DataError, match="add up to 10"):
        split(numbered(10), *sizes)


def test_split_in_two():
    first, rest = numbered(10).split(3)
    assert first.labels.tolist() == [0, 1, 2]
    assert rest.labels.tolist() == [3, 4, 5, 6, 7, 8, 9]
    for size in (0, 10, 11, -1):
        with pytest.raises(DataError, match="add up to 10"):
            numbered(10).split(size)


def test_mnist_parts_never_overlap():
    """Validation and training parts of MNIST share no memory, hence no image, with each other or the test set."""
    train, test = load_mnist()
    parts = [*train.split(50_000), test]
    for i, a in enumerate(parts):
        for b in parts[i + 1 :]:
            assert not np.shares_memory(a.images, b.images)
            assert not np.shares_memory(a.labels, b.labels)
    assert sum(map(len, parts)) == 70_000


def test_subset():
    dataset = numbered(10)
    assert dataset.subset([7, 0, 7]).labels.tolist() == [7, 0, 7]
    assert dataset.subset(slice(2, 9, 3)).labels.tolist() == [2, 5, 8]
    assert dataset.subset(np.arange(10) % 2 == 0).labels.tolist() == [0, 2, 4, 6, 8]
    for wrong in ([10], [0.5], [True, False], []):
        with pytest.raises(DataError, match="indices: expected"):
            dataset.subset(wrong)
    with pytest.raises(DataError, match="at least one"):
        dataset.subset(slice(3, 3))


def test_only_like_sets_can_be_joined():
    with pytest.raises(ShapeError, match="equal image and label shapes"):
        concatenate([numbered(2), Dataset(np.zeros((2, 3, 3)), [0, 1])])
    with pytest.raises(ShapeError, match="one or more"):
        concatenate([])


@given(st.lists(st.integers(0, 6), max_size=9))
def test_to_categorical(labels):
    rows = to_categorical(np.array(labels, np.int64), 7)
    assert rows.dtype == np.float32
    assert rows.tolist() == [[float(label == column) for column in range(7)] for label in labels]


@pytest.mark.parametrize(
    ("labels", "classes", "error", "message"),
    [
        ([0, 3], 3, DataError, "from 0 to 2, got 3 at index 1"),
        ([-1, 0], 3, DataError, "got -1 at index 0"),
        ([0.0], 3, DTypeError, "expected integers"),
        ([[0]], 3, ShapeError, r"\(N,\)"),
        ([0], 0, DTypeError, "num_classes"),
        ([0], 2.0, DTypeError, "num_classes"),
        ([0], True, DTypeError, "num_classes"),
    ],
)
def test_to_categorical_refuses(labels, classes, error, message):
    with pytest.raises(error, match=message):
        to_categorical(labels, classes)
