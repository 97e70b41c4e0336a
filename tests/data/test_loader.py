"""The loader: every sample once, the same order everywhere, resumable at any batch, wrong input refused in a line."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpcnn.random
from tests.fake_device import counters
from xpcnn.backend import backend_of, use_backend
from xpcnn.data import ChannelsFirst, Compose, DataLoader, Normalize, Pad
from xpcnn.datasets import load_mnist
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError, XpcnnError


def numbered(samples):
    """Images and labels that say which sample they are."""
    indices = np.arange(samples)
    return np.broadcast_to(indices[:, None, None], (samples, 2, 3)).astype(np.float32), indices


def loader(samples, batch_size, **options):
    return DataLoader(*numbered(samples), batch_size, **options)


def batches(backend, loader):
    """Return the labels of each batch as lists, having checked that the images are theirs."""
    result = []
    for x, labels in loader:
        assert backend_of(x, labels) is backend
        assert x.dtype == np.float32
        assert labels.dtype == np.int64
        host, label = backend.to_numpy(x), backend.to_numpy(labels)
        assert host.shape == (len(label), 1, 2, 3)
        np.testing.assert_array_equal(host, np.broadcast_to(label[:, None, None, None], host.shape))
        result.append(label.tolist())
    return result


def flat(parts):
    return [label for part in parts for label in part]


SAMPLES, BATCHES = st.integers(1, 40), st.integers(1, 12)


@given(SAMPLES, BATCHES, st.booleans())
def test_every_sample_once_an_epoch(backend, samples, batch_size, shuffle):
    every = loader(samples, batch_size, shuffle=shuffle)
    for _ in range(2):
        parts = batches(backend, every)
        assert len(parts) == len(every) == -(-samples // batch_size)
        assert sorted(flat(parts)) == list(range(samples))
        assert [len(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
        assert len(parts[-1]) == samples - batch_size * (len(parts) - 1)  # the ragged last batch is used
        assert shuffle or flat(parts) == list(range(samples))


@given(SAMPLES, BATCHES)
def test_drop_last(backend, samples, batch_size):
    if batch_size > samples:
        with pytest.raises(ConfigError, match=f"at most {samples} with drop_last"):
            loader(samples, batch_size, drop_last=True)
        return
    every = loader(samples, batch_size, drop_last=True)
    parts = batches(backend, every)
    assert [len(part) for part in parts] == [batch_size] * (samples // batch_size) == [batch_size] * len(every)
    assert len(set(flat(parts))) == len(flat(parts))


def test_replacement_draws_from_all_each_time(backend):
    """Of 20,000 draws from 10, each number comes 2,000 times; the bound is six standard deviations."""
    every = loader(10, 100, replacement=True, seed=1)
    assert len(every) == 1
    draws = np.concatenate([flat(batches(backend, every)) for _ in range(200)])
    counts = np.bincount(draws, minlength=10)
    assert abs(counts - 2000).max() < 6 * np.sqrt(20_000 * 0.1 * 0.9)
    pairs = np.histogram2d(draws[:-1], draws[1:], bins=10)[0]  # and one draw says nothing of the next
    assert ((pairs - 200) ** 2 / 200).sum() < 99 + 6 * np.sqrt(2 * 99)
    few = loader(7, 2, replacement=True)
    parts = batches(backend, few)
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    short = loader(7, 2, replacement=True, batches_per_epoch=3)
    assert len(short) == len(batches(backend, short)) == 3
    long = loader(7, 2, replacement=True, batches_per_epoch=50)
    assert sorted(set(flat(batches(backend, long)))) == list(range(7))
    repeated = any(len(set(flat(batches(backend, few)))) < 8 for _ in range(5))
    assert repeated


def test_shuffled_orders_are_uniform(backend):
    """Each of the 24 orders of 4 samples: chi-squared with 23 degrees of freedom, six standard deviations."""
    every = loader(4, 4, seed=3)
    orders = [tuple(flat(batches(backend, every))) for _ in range(2400)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 23 + 6 * np.sqrt(2 * 23)


@pytest.mark.parametrize("options", [{}, {"replacement": True}, {"seed": 5}, {"seed": 5, "replacement": True}])
def test_a_seed_gives_the_same_order_on_every_backend(backend, options):
    def orders(backend):
        xpcnn.random.manual_seed(11)
        every = loader(23, 5, **options)
        return [flat(batches(backend, every)) for _ in range(3)]

    here = orders(backend)
    with use_backend("numpy") as host:
        assert orders(host) == here
    assert here[0] != here[1] != here[2]


def test_orders_are_those_of_the_first_release():
    """Golden numbers: a change would break the resumption of everybody's runs."""
    with use_backend("numpy") as backend:
        assert flat(batches(backend, loader(8, 4, seed=0))) == [2, 4, 3, 6, 5, 0, 1, 7]
        assert flat(batches(backend, loader(8, 4, seed=0, replacement=True))) == [6, 5, 4, 2, 2, 0, 0, 0]
        assert flat(batches(backend, loader(8, 4))) == [4, 2, 1, 6, 7, 0, 5, 3]  # manual_seed(0) by the fixture


def test_seed_none_follows_manual_seed_and_seeds_do_not_touch_it(backend):
    xpcnn.random.manual_seed(3)
    state = xpcnn.random.get_state()
    every = loader(30, 30, seed=1)
    batches(backend, every)
    batches(backend, loader(30, 30, shuffle=False))
    assert xpcnn.random.get_state() == state
    unseeded = loader(30, 30)
    first = flat(batches(backend, unseeded))
    assert xpcnn.random.get_state() != state
    xpcnn.random.manual_seed(3)
    again = [flat(batches(backend, unseeded)) for _ in range(2)]
    assert again[0] == first  # as PyTorch's: the seed says it all, not how often the loader was used
    assert again[1] != first
    xpcnn.random.manual_seed(3)
    assert flat(batches(backend, loader(30, 30))) == first


def test_a_loader_with_a_seed_has_its_own_stream(backend):
    every = loader(30, 7, seed=1)
    epochs = [flat(batches(backend, every)) for _ in range(2)]
    assert epochs[0] != epochs[1]
    every.manual_seed(1)
    xpcnn.random.manual_seed(5)
    assert flat(batches(backend, every)) == epochs[0]
    xpcnn.random.manual_seed(5)  # nothing to this loader
    assert flat(batches(backend, every)) == epochs[1]
    every.manual_seed(2)
    assert flat(batches(backend, every)) == flat(batches(backend, loader(30, 7, seed=2)))
    with pytest.raises(ConfigError, match="seed: expected an integer of 0 or more, got -1"):
        every.manual_seed(-1)


def test_an_older_for_leaves_the_state_of_a_newer_one_alone(backend):
    every = loader(30, 7, seed=1)
    old = iter(every)
    next(old)
    every.manual_seed(1)
    next(old)
    assert every.state_dict()["position"] == 0
    assert flat(batches(backend, every)) == flat(batches(backend, loader(30, 7, seed=1)))
    list(old)
    assert every.state_dict()["epoch"] == 1


OPTIONS = st.fixed_dictionaries(
    {"shuffle": st.booleans(), "replacement": st.booleans(), "seed": st.none() | st.integers(0, 2**40)}
)


@given(st.integers(1, 30), st.integers(1, 9), OPTIONS, st.integers(0, 3), st.data())
def test_resumed_equals_undisturbed(backend, samples, batch_size, options, epoch, data):
    """Stop after any batch of any epoch, save as JSON, go on in a new loader with other random state."""
    xpcnn.random.manual_seed(9)
    undisturbed = loader(samples, batch_size, **options)
    epochs = [batches(backend, undisturbed) for _ in range(epoch + 3)]

    stop = data.draw(st.none() | st.integers(0, len(undisturbed)))  # None: between two epochs
    xpcnn.random.manual_seed(9)
    stopped = loader(samples, batch_size, **options)
    for _ in range(epoch):
        batches(backend, stopped)
    running = iter([] if stop is None else stopped)
    given_out = [backend.to_numpy(next(running)[1]).tolist() for _ in range(stop or 0)]
    saved = json.loads(json.dumps([stopped.state_dict(), xpcnn.random.get_state()]))

    xpcnn.random.manual_seed(1234)
    resumed = loader(samples, batch_size, **options)
    resumed.load_state_dict(saved[0])
    xpcnn.random.set_state(saved[1])
    assert given_out + batches(backend, resumed) == epochs[epoch]
    assert [batches(backend, resumed) for _ in range(2)] == epochs[epoch + 1 :]


def test_state_between_epochs_and_after_a_break(backend):
    every = loader(10, 3, seed=2)
    assert every.state_dict() == {
        "samples": 10, "batch_size": 3, "shuffle": True, "replacement": False,
        "batches_per_epoch": None, "drop_last": False, "seed": 2,
        "epoch": 0, "position": 0, "key": None,
    }  # fmt: skip
    first = batches(backend, every)
    assert (every.state_dict()["epoch"], every.state_dict()["position"], every.state_dict()["key"]) == (1, 0, None)
    for _ in every:
        break
    assert (every.state_dict()["epoch"], every.state_dict()["position"]) == (1, 1)
    third = batches(backend, every)  # a `for` that follows a break begins anew
    assert every.state_dict()["epoch"] == 3
    again = loader(10, 3, seed=2)
    orders = [batches(backend, again) for _ in range(3)]
    assert orders[0] == first
    assert orders[2] == third


def test_two_iterations_at_once(backend):
    every = loader(10, 3, seed=2)
    pairs = [
        (backend.to_numpy(a[1]).tolist(), backend.to_numpy(b[1]).tolist()) for a, b in zip(every, every, strict=True)
    ]
    again = loader(10, 3, seed=2)
    assert [list(parts) for parts in zip(*pairs, strict=True)] == [batches(backend, again), batches(backend, again)]
    assert every.state_dict()["epoch"] == 2
    older, newer = iter(every), iter(every)
    next(newer)
    next(older)
    next(older)
    assert (every.state_dict()["epoch"], every.state_dict()["position"]) == (3, 1)  # the newer one's
    list(older)
    assert (every.state_dict()["epoch"], every.state_dict()["position"]) == (3, 1)


def test_a_set_in_another_memory_order_is_not_copied_for_every_batch():
    images = np.zeros((28, 28, 2000), np.uint8).transpose(2, 0, 1)
    every = DataLoader(images, np.zeros(2000, int), 10)
    list(every)
    tracemalloc.start()
    for _ in every:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 11}, "expected samples 10, got 11"),
        ({"batch_size": 4}, "expected batch_size 3, got 4"),
        ({"seed": None}, "expected seed 2, got None"),
        ({"shuffle": False}, "expected shuffle True, got False"),
        ({"position": 5}, "expected epoch, position and key"),
        ({"position": -1}, "expected epoch, position and key"),
        ({"position": 1.0}, "expected epoch, position and key"),
        ({"epoch": "1"}, "expected epoch, position and key"),
        ({"key": [1]}, "expected epoch, position and key"),
        ({"key": None}, "expected epoch, position and key"),
    ],
)
def test_a_state_of_another_loader_is_refused(change, message):
    every = loader(10, 3, seed=2)
    next(iter(every))
    state = every.state_dict() | change
    fresh = loader(10, 3, seed=2)
    with pytest.raises(DataError, match=message):
        fresh.load_state_dict(state)
    assert fresh.state_dict()["position"] == 0
    for wrong in (None, [], {}, {"epoch": 1}):
        with pytest.raises(DataError, match="state: expected"):
            fresh.load_state_dict(wrong)


def test_batches_belong_to_the_caller(backend):
    images, labels = numbered(8)
    for options in ({}, {"shuffle": False}):
        every = DataLoader(images, labels, 4, **options)
        kept = []
        for x, y in every:
            x[...] = -1
            y[...] = -1
            kept.append(x)
        assert all((backend.to_numpy(x) == -1).all() for x in kept)
        assert sorted(flat(batches(backend, every))) == list(range(8))
        np.testing.assert_array_equal(images, numbered(8)[0])


def test_a_set_that_fits_goes_over_once(monkeypatch):
    """One upload each of images and labels, then one of the order per epoch, and nothing comes back."""
    with use_backend("fake") as backend:
        every = loader(50, 4)
        counters.reset()
        for expected in (3, 4):
            list(every)
            assert (counters.uploads, counters.downloads, counters.syncs) == (expected, 0, 0)
        every = loader(50, 4, seed=1)
        order = batches(backend, every)
        monkeypatch.setattr(type(backend), "device_bytes_free", lambda self: 0)
        small = loader(50, 4, seed=1)
        counters.reset()
        assert [backend.to_numpy(labels).tolist() for _, labels in small] == order
        assert counters.uploads == 2 * 13
        total = every.images.nbytes + every.labels.nbytes
        monkeypatch.setattr(type(backend), "device_bytes_free", lambda self: 2 * total)
        counters.reset()
        list(loader(50, 4))
        assert counters.uploads == 3


def test_the_active_backend_when_the_epoch_begins(backend):
    every = loader(6, 2, seed=0)
    with use_backend("numpy") as host:
        first = flat(batches(host, every))
    assert sorted(flat(batches(backend, every))) == sorted(first)
    with use_backend("numpy") as host:
        batches(host, every)


def test_arrays_of_a_device_are_taken(backend):
    images, labels = numbered(6)
    every = DataLoader(backend.asarray(images), backend.asarray(labels), 4, shuffle=False)
    assert batches(backend, every) == [[0, 1, 2, 3], [4, 5]]


def test_images_in_any_memory_order(backend, rng):
    images = rng.integers(0, 256, (3, 9, 7, 6), dtype=np.uint8).transpose(3, 0, 2, 1)[::-1]  # (6, 3, 7, 9)
    labels = np.arange(12)[::2]
    every = DataLoader(images, labels, 4, shuffle=False)
    got = np.concatenate([backend.to_numpy(x) for x, _ in every])
    np.testing.assert_array_equal(got, images.astype(np.float32) / np.float32(255))


def test_rows_of_probabilities(backend, rng):
    images = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    rows = np.eye(6, 10)
    every = DataLoader(images, rows, 4, shuffle=False)
    labels = [y for _, y in every]
    assert all(y.dtype == np.float32 for y in labels)
    np.testing.assert_array_equal(np.concatenate([backend.to_numpy(y) for y in labels]), rows)
    assert every.num_classes == 10
    assert loader(5, 2).num_classes == 5


def test_transform_gets_the_batch_as_stored(backend, rng):
    images = rng.integers(0, 256, (6, 4, 5), dtype=np.uint8)
    seen = []

    def transform(batch):
        seen.append((backend_of(batch) is backend, batch.dtype, tuple(batch.shape)))
        return Pad(1)(batch)

    shapes = [tuple(x.shape) for x, _ in DataLoader(images, np.zeros(6, int), 4, transform=transform)]
    assert shapes == [(4, 1, 6, 7), (2, 1, 6, 7)]
    assert seen == [(True, np.uint8, (4, 4, 5)), (True, np.uint8, (2, 4, 5))]


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (lambda batch: batch, ShapeError, r"transform: expected a result \(2, C, H, W\), got \(2, 2, 3\)"),
        (lambda batch: Pad(1)(batch)[:1], ShapeError, r"expected a result \(2, C, H, W\)"),
        (lambda batch: Pad(1)(batch).astype(np.int32), DTypeError, "transform: expected a floating result"),
    ],
)
def test_what_a_transform_gives_is_checked(backend, transform, error, message):
    with pytest.raises(error, match=message):
        next(iter(loader(6, 2, transform=transform)))


IMAGES = np.zeros((6, 4, 4), np.uint8)
LABELS = np.arange(6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((IMAGES, LABELS.astype(float), 2), {}, DTypeError, "labels: expected integers"),
        ((IMAGES, LABELS - 1, 2), {}, DataError, "of 0 or more, got -1 at index 0"),
        ((IMAGES, LABELS[:5], 2), {}, ShapeError, "one for each of the 6 images, got 5"),
        ((IMAGES, LABELS[:, None, None], 2), {}, ShapeError, "labels: expected"),
        ((IMAGES, np.eye(6) * 2, 2), {}, DataError, "sum to 1"),
        ((IMAGES[:0], LABELS[:0], 2), {}, DataError, "at least one image"),
        ((IMAGES[0], LABELS[:4], 2), {}, ShapeError, "images: expected"),
        ((IMAGES > 0, LABELS, 2), {}, DTypeError, "images: expected integers or floats"),
        ((IMAGES, LABELS, 0), {}, ConfigError, "batch_size: expected an integer of 1 or more, got 0"),
        ((IMAGES, LABELS, 2.0), {}, ConfigError, "batch_size: expected an integer"),
        ((IMAGES, LABELS, True), {}, ConfigError, "batch_size: expected an integer"),
        ((IMAGES, LABELS, None), {}, ConfigError, "batch_size: expected an integer"),
        ((IMAGES, LABELS, 2), {"seed": -1}, ConfigError, "seed: expected an integer of 0 or more"),
        ((IMAGES, LABELS, 2), {"seed": 0.5}, ConfigError, "seed: expected an integer"),
        ((IMAGES, LABELS, 2), {"batches_per_epoch": 5}, ConfigError, "batches_per_epoch: expected replacement=True"),
        ((IMAGES, LABELS, 2), {"batches_per_epoch": 0, "replacement": True}, ConfigError, "expected an integer of 1"),
        ((IMAGES, LABELS, 2), {"transform": 5}, ConfigError, "transform: expected a callable"),
        ((IMAGES, LABELS, 7), {"drop_last": True}, ConfigError, "at most 6 with drop_last, got 7"),
    ],
)
def test_wrong_arguments_get_one_clear_line(arguments, options, error, message):
    with pytest.raises(error, match=message) as caught:
        DataLoader(*arguments, **options)
    assert isinstance(caught.value, XpcnnError)
    assert "\n" not in str(caught.value)


def test_settings_go_into_a_run_folder():
    every = DataLoader(IMAGES, LABELS, 4, seed=1, transform=Normalize(0.5, 2))
    assert json.loads(json.dumps(every.settings())) == {
        "samples": 6, "batch_size": 4, "shuffle": True, "replacement": False,
        "batches_per_epoch": None, "drop_last": False, "seed": 1,
        "transform": {"name": "Normalize", "mean": [0.5], "std": [2.0]},
    }  # fmt: skip
    options = "shuffle, seed=1, Normalize(mean=(0.5,), std=(2.0,))"
    assert repr(every) == f"DataLoader(6 images uint8 [4, 4], 2 batches of 4, {options})"


def test_mnist_end_to_end(backend):
    _, test = load_mnist()
    every = DataLoader(test.images, test.labels, 1024)
    seen = np.zeros(10, int)
    for x, labels in every:
        assert tuple(x.shape[1:]) == (1, 28, 28)
        seen += np.bincount(backend.to_numpy(labels), minlength=10)
    assert seen.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("transform", [None, Pad(1), Compose(Normalize(0.5, 1.0), Pad(1))])
@pytest.mark.parametrize("shape", [(6, 5, 7, 3), (6, 32, 32, 4), (6, 28, 28, 1)])
def test_floats_that_look_channels_last_are_refused_at_once(shape, transform):
    images = np.zeros(shape, "float32")
    message = r"^images: expected floats as \(N, C, H, W\), got .*; give transform=xpcnn.data.ChannelsFirst\(\)"
    with pytest.raises(ShapeError, match=message):
        DataLoader(images, np.zeros(6, int), 2, transform=transform)


@pytest.mark.parametrize("shape", [(6, 512, 4, 4), (6, 512, 1, 1), (6, 3, 32, 32), (6, 5, 7, 6), (6, 3, 5, 3)])
def test_floats_that_are_channels_first_are_taken(backend, shape):
    x, _ = next(iter(DataLoader(np.zeros(shape, "float32"), np.zeros(6, int), 6)))
    assert x.shape == shape


def test_floats_that_are_said_to_be_channels_last_are_taken(backend):
    images, labels = np.zeros((6, 5, 7, 3), "float32"), np.zeros(6, int)
    for transform in (ChannelsFirst(), Compose(ChannelsFirst(), Pad(1))):
        x, _ = next(iter(DataLoader(images, labels, 6, transform=transform)))
        assert x.shape[:2] == (6, 3)
    x, _ = next(iter(DataLoader(images, labels, 6, transform=lambda batch: batch)))  # one's own knows best
    assert x.shape == (6, 5, 7, 3)


@pytest.mark.parametrize("labels", [np.array(["cat", "dog"]), ["cat", "dog"], np.array(["cat", "dog"], object)])
def test_labels_that_are_names_say_how_to_number_them(labels):
    message = r"^labels: expected integers \(N,\), got .*str.* such as .*'cat'.*; number the classes: .*return_inverse"
    with pytest.raises(DTypeError, match=message):
        DataLoader(np.zeros((2, 4, 4)), labels, 1)
