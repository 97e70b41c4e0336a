"""Random transforms against plain loops, what they draw against what they promise, and their place in the loader."""

import json
import math
import warnings

import numpy as np
import pytest

import xpcnn.random
from tests.data import plain
from xpcnn.backend import backend_of, use_backend
from xpcnn.data import (
    CenterCrop,
    ColorJitter,
    Compose,
    DataLoader,
    MixUp,
    Normalize,
    Pad,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    Resize,
    ToFloat,
    describe,
)
from xpcnn.data.description import for_evaluation
from xpcnn.errors import ConfigError, DataError, ShapeError, XpcnnError

COUNT = 7


def stored(rng, *image):
    return rng.integers(0, 256, (COUNT, *image), dtype=np.uint8)


FORMS = [(6, 9), (1, 6, 9), (3, 6, 9), (6, 9, 3)]


def first(images):
    """Return (N, C, H, W) as float64 in [0, 1]."""
    x = images[:, None] if images.ndim == 3 else images
    x = x.transpose(0, 3, 1, 2) if x.shape[-1] == 3 else x
    return x / 255 if x.dtype == np.uint8 else x.astype(np.float64)


# A transform, and its plain version from the same draws.
CASES = {
    "crop": (RandomCrop(5), lambda x, draws: plain.crop(x, draws, (5, 5), (0, 0))),
    "padded crop": (RandomCrop((6, 9), (2, 3)), lambda x, draws: plain.crop(x, draws, (6, 9), (2, 3))),
    "filled crop": (
        RandomCrop((7, 8), 1, fill=0.3),
        lambda x, draws: plain.crop(x, draws, (7, 8), (1, 1), 0.3),
    ),
    "white crop": (RandomCrop((7, 8), 1, fill=1.0), lambda x, draws: plain.crop(x, draws, (7, 8), (1, 1), 1.0)),
    "reflected crop": (
        RandomCrop((6, 9), 3, padding_mode="reflect"),
        lambda x, draws: plain.crop(x, draws, (6, 9), (3, 3), mode="reflect"),
    ),
    "edge crop": (
        RandomCrop((6, 9), 3, padding_mode="edge"),
        lambda x, draws: plain.crop(x, draws, (6, 9), (3, 3), mode="edge"),
    ),
    "flip": (RandomHorizontalFlip(), plain.flip),
    "no flip": (RandomHorizontalFlip(0.0), plain.flip),
    "erasing": (RandomErasing(0.8), lambda x, draws: plain.erase(x, draws, 0.0)),
    "large grey erasing": (
        RandomErasing(1, (0.5, 1.0), (0.2, 5), 0.45),
        lambda x, draws: plain.erase(x, draws, 0.45),
    ),
    "turn": (RandomAffine(180), plain.affine),
    "affine": (RandomAffine((-30, 60), (0.3, 0.5), (0.5, 2)), plain.affine),
    "filled affine": (RandomAffine(0, (1, 1), fill=0.7), lambda x, draws: plain.affine(x, draws, 0.7)),
    "still": (RandomAffine(0), lambda x, draws: x),
    "jitter": (ColorJitter(0.5, 0.5, 0.5, 0.2), plain.jitter),
    "strong jitter": (ColorJitter((0, 4), (0, 4), (0, 4), (-0.5, 0.5)), plain.jitter),
    "contrast": (ColorJitter(contrast=0.9), plain.jitter),
    "no jitter": (ColorJitter(), lambda x, draws: x),
}


@pytest.mark.parametrize("image", FORMS, ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("floats", [False, True], ids=["bytes", "floats"])
def test_against_plain_loops(backend, rng, name, image, floats):
    transform, oracle = CASES[name]
    images = stored(rng, *image)
    x = first(images)
    expected = oracle(x, transform.draw(np.random.default_rng(5), COUNT, x.shape[1:]))
    images = x.astype(np.float32) if floats else images
    given = backend.asarray(images)
    result, labels = transform.run(given, None, np.random.default_rng(5))
    assert labels is None
    assert backend_of(result) is backend
    assert result.dtype == np.float32
    assert result.transpose(1, 2, 3, 0).flags.c_contiguous
    host = backend.to_numpy(result)
    assert host.shape == expected.shape
    np.testing.assert_allclose(host, expected, atol=2e-5)
    np.testing.assert_array_equal(backend.to_numpy(given), images)


@pytest.mark.parametrize("image", FORMS, ids=str)
@pytest.mark.parametrize("rows", [False, True])
def test_mixup_against_plain_loops(backend, rng, image, rows):
    images, labels = stored(rng, *image), rng.integers(0, 4, COUNT)
    table = np.eye(4)[labels]
    transform = MixUp(0.7, None if rows else 4)
    share, order = transform.draw(np.random.default_rng(5), COUNT, ())
    expected, mixed = plain.mix(first(images), table, share, order)
    given = backend.asarray(table.astype(np.float32) if rows else labels)
    x, y = transform.run(backend.asarray(images), given, np.random.default_rng(5))
    np.testing.assert_allclose(backend.to_numpy(x), expected, atol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(y), mixed, atol=1e-6)
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(backend.to_numpy(y).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("image", FORMS, ids=str)
@pytest.mark.parametrize("size", [(3, 4), (6, 5), (12, 30), (6, 9), 1], ids=str)
def test_resize_against_its_formula(backend, rng, image, size):
    images = stored(rng, *image)
    x = first(images)
    rows, columns = (size, size) if isinstance(size, int) else size

    def resized(x, axis, wanted):
        scale = x.shape[axis] / wanted
        width = max(1.0, scale)
        parts = []
        for i in range(wanted):
            shares = np.array([max(0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / width) for j in range(x.shape[axis])])
            parts.append(np.tensordot(shares / shares.sum(), x, (0, axis)))
        return np.stack(parts, axis)

    expected = resized(resized(x, 2, rows), 3, columns)
    result = Resize(size)(backend.asarray(images))
    np.testing.assert_allclose(backend.to_numpy(result), expected, atol=1e-6)
    assert result.transpose(1, 2, 3, 0).flags.c_contiguous


@pytest.mark.parametrize("size", [(5, 7), (40, 33), (20, 30)])
def test_resize_is_pillow_s(rng, size):
    image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    theirs = np.asarray(image.fromarray(pixels).resize(size[::-1], image.Resampling.BILINEAR))
    with use_backend("numpy"):
        ours = Resize(size)(pixels[None])[0].transpose(1, 2, 0) * 255
    np.testing.assert_allclose(ours, theirs, atol=1.01)  # they round after each axis


@pytest.mark.parametrize("size", [(4, 5), (9, 3), (6, 9), (8, 12)], ids=str)
@pytest.mark.parametrize("image", FORMS, ids=str)
def test_the_window_in_the_middle(backend, rng, image, size):
    images = stored(rng, *image)
    x = first(images)
    expected = np.full((*x.shape[:2], *size), 0.25)
    for i in range(size[0]):
        for j in range(size[1]):
            row, column = i + int((6 - size[0]) / 2), j + int((9 - size[1]) / 2)
            if 0 <= row < 6 and 0 <= column < 9:
                expected[:, :, i, j] = x[:, :, row, column]
    result = CenterCrop(size, fill=0.25)(backend.asarray(images))
    np.testing.assert_allclose(backend.to_numpy(result), expected, atol=1e-6)


def test_for_evaluation_nothing_is_drawn(backend, rng):
    images = backend.asarray(stored(rng, 3, 8, 8))
    kept = for_evaluation(Compose(RandomCrop(8, 2), RandomErasing(), Resize(5), MixUp(1, 2), Normalize(0.5, 0.2)))
    expected = Compose(Resize(5), Normalize(0.5, 0.2))(images)
    np.testing.assert_array_equal(backend.to_numpy(kept(images)), backend.to_numpy(expected))
    smaller = for_evaluation(RandomCrop(6))
    np.testing.assert_array_equal(
        backend.to_numpy(smaller(images)), backend.to_numpy(ToFloat()(images))[:, :, 1:7, 1:7]
    )


# --- draws --------------------------------------------------------------------------------------------------------


def uniform(values, low, high):
    """Check that values fill an interval evenly: mean and ends within six standard deviations."""
    values = np.asarray(values, np.float64)
    spread = (high - low) / math.sqrt(12 * len(values))
    assert abs(values.mean() - (low + high) / 2) < 6 * spread
    assert low <= values.min() < low + 20 * (high - low) / len(values)
    assert high >= values.max() > high - 20 * (high - low) / len(values)


def test_what_is_drawn(rng):
    image, count = (3, 20, 30), 4000
    tops, lefts = RandomCrop((8, 10), 2).draw(rng, count, image)
    for places, room in ((tops, 16), (lefts, 24)):
        counts = np.bincount(places, minlength=room + 1)
        assert len(counts) == room + 1
        assert ((counts - count / (room + 1)) ** 2 / (count / (room + 1))).sum() < room + 6 * math.sqrt(2 * room)
    assert abs(len(RandomHorizontalFlip(0.3).draw(rng, count, image)[0]) - 1200) < 6 * math.sqrt(count * 0.21)
    angle, right, down, factor = RandomAffine((-10, 30), (0.1, 0.2), (0.5, 1.5)).draw(rng, count, image)
    uniform(np.degrees(angle), -10, 30)
    uniform(right, -3, 3)
    uniform(down, -4, 4)
    uniform(factor, 0.5, 1.5)
    bright, contrast, saturation, hue = ColorJitter(0.4, 2.0, (0.5, 0.7), 0.1).draw(rng, count, image)
    uniform(bright, 0.6, 1.4)
    uniform(contrast, 0, 3)
    uniform(saturation, 0.5, 0.7)
    uniform(hue, -0.1, 0.1)
    top, bottom, left, right = RandomErasing(0.5, (0.1, 0.2), (0.5, 2)).draw(rng, count, image)
    erased = bottom > top
    assert abs(erased.sum() - 2000) < 6 * math.sqrt(count / 4)
    assert ((left == right) == ~erased).all()
    assert min(top.min(), left.min()) == 0
    assert (bottom.max(), right.max()) == (20, 30)
    shares = ((bottom - top) * (right - left))[erased] / 600
    assert abs(shares.mean() - 0.15) < 0.005
    shares = [MixUp(0.2, 2).draw(rng, 2, ())[0] for _ in range(1000)]
    assert abs(np.mean(shares) - 0.5) < 6 * np.std(shares) / math.sqrt(1000)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.1)


# --- composed, and in the loader ----------------------------------------------------------------------------------


def test_composed_is_one_after_the_other(backend, rng):
    images = stored(rng, 8, 9, 3)
    steps = (RandomCrop((8, 8), 2), RandomHorizontalFlip(), RandomErasing(value=0.5), Pad(1), Normalize(0.5, 0.25))
    steps += (RandomAffine(20), ColorJitter(0.2), Resize(5))
    composed, labels = Compose(*steps).run(backend.asarray(images), None, np.random.default_rng(1))
    generator = np.random.default_rng(1)
    x = backend.asarray(first(images).astype(np.float32))
    for step in steps:
        x, _ = step.run(x, labels, generator)
    np.testing.assert_allclose(backend.to_numpy(composed), backend.to_numpy(x), atol=1e-5)


@pytest.mark.parametrize(
    "transform", [RandomCrop(4), Compose(RandomCrop(4)), Compose(RandomCrop(4), RandomHorizontalFlip())]
)
def test_alone_they_give_what_a_network_takes(backend, rng, transform):
    x = transform(backend.asarray(stored(rng, 5, 6)))
    assert (tuple(x.shape), x.dtype) == ((COUNT, 1, 4, 4), np.float32)
    assert float(x.max()) <= 1 if backend.name == "numpy" else True
    assert x.transpose(1, 2, 3, 0).flags.c_contiguous


def test_small_windows_are_no_channels(backend, rng):
    """(N, 5, 4, 3) after a crop is five channels of 4x3 still."""
    images = stored(rng, 5, 9, 9)
    x = Compose(RandomCrop((4, 3)), ToFloat())(backend.asarray(images))
    assert tuple(x.shape) == (COUNT, 5, 4, 3)


def test_called_directly_they_follow_manual_seed(backend, rng):
    images = backend.asarray(stored(rng, 3, 8, 8))
    transform = Compose(RandomCrop(8, 4), RandomErasing())

    def drawn():
        xpcnn.manual_seed(4)
        return backend.to_numpy(transform(images))

    np.testing.assert_array_equal(drawn(), drawn())
    assert (backend.to_numpy(transform(images)) != drawn()).any()


def test_a_recorded_function_draws_anew(backend, rng):
    """What is drawn on the host cannot be replayed: such a function runs as written, and says so."""
    images = rng.integers(0, 256, (COUNT, 3, 8, 8), dtype=np.uint8)
    plain_part, drawn_part = Normalize(0.5, 0.2), Compose(RandomCrop(8, 4), Normalize(0.5, 0.2))
    kept, drawn = xpcnn.compile(lambda x: plain_part(x)), xpcnn.compile(lambda x: drawn_part(x))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed in range(6):
            x = backend.asarray(images + np.uint8(seed))
            np.testing.assert_array_equal(backend.to_numpy(kept(x)), backend.to_numpy(plain_part(x)))
            xpcnn.manual_seed(seed)
            found = backend.to_numpy(drawn(x))
            xpcnn.manual_seed(seed)
            np.testing.assert_array_equal(found, backend.to_numpy(drawn_part(x)))
    assert all("draws on the host" in str(each.message) for each in said)


ALL = Compose(
    RandomCrop(8, 2),
    RandomHorizontalFlip(),
    RandomErasing(),
    ColorJitter(0.3, 0.3, 0.3, 0.1),
    RandomAffine(20, (0.1, 0.1), (0.8, 1.2)),
    Normalize(0.5, 0.2),
    MixUp(0.4, 5),
)


def batches(backend, loader):
    return [(backend.to_numpy(x), backend.to_numpy(labels)) for x, labels in loader]


def same(one, other):
    assert len(one) == len(other)
    for (x, labels), (y, others) in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(labels, others)


@pytest.mark.parametrize("options", [{"seed": 3}, {}, {"shuffle": False}, {"seed": 1, "replacement": True}])
def test_resumed_to_the_bit(backend, rng, options):
    images, labels = rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8), rng.integers(0, 5, 20)

    def make():
        return DataLoader(images, labels, 6, transform=ALL, **options)

    xpcnn.manual_seed(9)
    loader = make()
    whole = [batches(backend, loader) for _ in range(3)]
    assert (whole[0][0][0] != whole[1][0][0]).any()
    assert whole[0][0][1].shape == (6, 5)
    xpcnn.manual_seed(9)
    loader = make()
    same(batches(backend, loader), whole[0])
    running = iter(loader)
    same([tuple(backend.to_numpy(each) for each in next(running))], whole[1][:1])
    state, draws = json.loads(json.dumps(loader.state_dict())), xpcnn.random.get_state()
    xpcnn.manual_seed(77)
    other = make()
    other.load_state_dict(state)
    xpcnn.random.set_state(draws)
    same(batches(backend, other), whole[1][1:])
    same(batches(backend, other), whole[2])


def test_a_seed_means_the_same_on_every_backend(backend, rng):
    images, labels = rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8), rng.integers(0, 5, 20)
    loader = DataLoader(images, labels, 6, seed=2, transform=ALL)
    here = batches(backend, loader)
    with use_backend("numpy") as host:
        there = batches(host, DataLoader(images, labels, 6, seed=2, transform=ALL))
    for (x, rows), (y, others) in zip(here, there, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
        np.testing.assert_allclose(rows, others, atol=1e-6)


def test_draws_are_those_of_the_first_release():
    """Golden numbers: a change would break the resumption of everybody's runs."""
    generator = xpcnn.random.batch_generator(5, 2, 1)
    assert RandomCrop(8, 4).draw(generator, 6, (3, 8, 8))[0].tolist() == GOLDEN
    assert xpcnn.random.batch_generator(5, 2, 1).random() != xpcnn.random.batch_generator(5, 2, 2).random()


GOLDEN = [8, 8, 0, 5, 3, 5]


def test_random_transforms_leave_other_draws_alone(backend, rng):
    """What is drawn for batches does not touch the state from which dropout draws."""
    images, labels = rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8), rng.integers(0, 5, 20)
    xpcnn.manual_seed(1)
    running = iter(DataLoader(images, labels, 6, transform=ALL))
    before = xpcnn.random.get_state()
    next(running)
    before_first = xpcnn.random.get_state()
    list(running)
    assert xpcnn.random.get_state() == before_first
    assert before["keys"] == before_first["keys"]


def test_own_transforms_that_change_labels(backend, rng):
    images, labels = stored(rng, 4, 4), np.arange(COUNT)

    class Doubled:
        labels = True

        def __call__(self, x, y):
            return x, y * 2

    for transform in (Compose(ToFloat(), Doubled()), Compose(Doubled(), ToFloat())):
        loader = DataLoader(images, labels, 3, shuffle=False, transform=transform)
        assert [y.tolist() for _, y in batches(backend, loader)] == [[0, 2, 4], [6, 8, 10], [12]]

    class Lone(Doubled):
        def __call__(self, x, y):
            return ToFloat()(x), y * 2

    loader = DataLoader(images, labels, 3, shuffle=False, transform=Lone())
    assert [y.tolist() for _, y in batches(backend, loader)] == [[0, 2, 4], [6, 8, 10], [12]]


def test_a_network_trains_on_mixed_and_augmented_images(backend, rng):
    from xpcnn import models
    from xpcnn.nn import CrossEntropyLoss
    from xpcnn.optim import SGD
    from xpcnn.training import Trainer

    images, labels = rng.integers(0, 256, (24, 28, 28), dtype=np.uint8), rng.integers(0, 10, 24)
    transform = Compose(RandomCrop(28, 2), MixUp(0.2, 10))
    loader = DataLoader(images, labels, 8, seed=0, transform=transform)
    model = models.create("conv8")
    history = Trainer(model, SGD(model.parameters(), 0.01), CrossEntropyLoss()).fit(loader, epochs=2)
    losses = history.steps["loss"]
    assert len(losses) == 6
    assert np.isfinite(losses).all()


def test_settings_are_plain():
    settings = describe(ALL)
    assert json.loads(json.dumps(settings)) == settings
    assert settings["transforms"][4] == {
        "name": "RandomAffine",
        "degrees": [-20.0, 20.0],
        "translate": [0.1, 0.1],
        "scale": [0.8, 1.2],
        "fill": 0.0,
    }
    assert repr(RandomHorizontalFlip()) == "RandomHorizontalFlip(p=0.5)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "size: expected 1 or more"),
        (lambda: RandomCrop(4, -1), "padding: expected 0 or more"),
        (lambda: RandomCrop(4, padding_mode="wrap"), "padding_mode: expected one of constant, edge, reflect"),
        (lambda: RandomCrop(4, fill=math.nan), "fill: expected a finite number"),
        (lambda: RandomHorizontalFlip(1.5), "p: expected a probability from 0 to 1, got 1.5"),
        (lambda: RandomErasing(True), "p: expected a probability"),
        (lambda: RandomErasing(scale=(0.5, 0.1)), r"scale: expected two numbers \(low, high\) of 0 or more"),
        (lambda: RandomErasing(scale=(0.5, 2)), "scale: expected shares of at most 1"),
        (lambda: RandomErasing(ratio=(0, 2)), "ratio: expected two numbers"),
        (lambda: RandomAffine(-5), "degrees: expected 0 or more"),
        (lambda: RandomAffine((1, 2, 3)), "degrees: expected two numbers"),
        (lambda: RandomAffine(5, 0.1), "translate: expected two shares from 0 to 1"),
        (lambda: RandomAffine(5, (0.1, 2)), "translate: expected two shares"),
        (lambda: RandomAffine(5, None, (0, 1)), "scale: expected two numbers"),
        (lambda: ColorJitter(-1), "brightness: expected 0 or more"),
        (lambda: ColorJitter(contrast=(-1, 1)), "contrast: expected two numbers .* of 0 or more"),
        (lambda: ColorJitter(hue=0.6), "hue: expected"),
        (lambda: ColorJitter(hue="red"), "hue: expected a finite number"),
        (lambda: Resize(0), "size: expected 1 or more"),
        (lambda: MixUp(0), "alpha: expected a number above 0, got 0"),
        (lambda: MixUp(num_classes=0), "num_classes: expected an integer of 1 or more"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(XpcnnError, match=message):
        make()
    assert issubclass(ConfigError, ValueError)


def test_wrong_images_and_labels(backend, rng):
    images, labels = stored(rng, 4, 4), np.arange(COUNT)
    with pytest.raises(ShapeError, match=r"RandomCrop: expected images of \(9, 9\) or more with their border"):
        RandomCrop(9, 2)(backend.asarray(images))
    with pytest.raises(ShapeError, match=r"ColorJitter: expected images of \(1, 3\) channels, got 2"):
        ColorJitter(0.1)(backend.asarray(stored(rng, 2, 8, 8)))
    with pytest.raises(ConfigError, match="labels: MixUp changes them too"):
        MixUp(1, 10)(backend.asarray(images))
    with pytest.raises(ConfigError, match="labels: a transform changes them too"):
        Compose(MixUp(1, 10))(backend.asarray(images))
    with pytest.raises(ConfigError, match="num_classes: MixUp needs it"):
        DataLoader(images, labels, 2, transform=Compose(MixUp()))
    with pytest.raises(DataError, match="expected class indices below MixUp's 6, got 6"):
        DataLoader(images, labels, 2, transform=MixUp(1, 6))
