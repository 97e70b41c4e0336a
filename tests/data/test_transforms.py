"""Transforms on every backend against the same steps written out in NumPy, one after the other."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.marks import needs_speed
from xpcnn.backend import backend_of
from xpcnn.data import ChannelsFirst, Compose, Normalize, Pad, Repeat, ToFloat, describe
from xpcnn.data.transforms import batch_last, prepare
from xpcnn.errors import ConfigError, ShapeError, XpcnnError


def stored(rng, *shape, dtype=np.uint8):
    values = rng.integers(0, 256, shape)
    return values.astype(dtype) if np.dtype(dtype).kind in "iu" else (values / 255).astype(dtype)


def check(backend, transform, images, expected):
    """Compare values, and that the result is new, float32, batch-last, on the backend of the images."""
    given = backend.asarray(images)
    result = transform(given)
    assert backend_of(result) is backend
    assert result.dtype == np.float32
    assert result.transpose(1, 2, 3, 0).flags.c_contiguous
    np.testing.assert_allclose(backend.to_numpy(result), expected, rtol=1e-6, atol=1e-6, strict=False)
    assert tuple(result.shape) == expected.shape
    np.testing.assert_array_equal(backend.to_numpy(given), images)


def oracle(transform, x):
    """One step on float64 (N, C, H, W)."""
    match transform:
        case Normalize(mean, std):
            return (x - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
        case Pad((height, width), value):
            return np.pad(x, ((0, 0), (0, 0), (height, height), (width, width)), constant_values=value)
        case Repeat(channels):
            return np.repeat(x, channels, axis=1)
        case _:
            return x


def test_default_divides_by_255_exactly_and_adds_the_channel(backend, rng):
    images = stored(rng, 5, 6, 7)
    result = backend.to_numpy(ToFloat()(backend.asarray(images)))
    np.testing.assert_array_equal(result, images[:, None].astype(np.float32) / np.float32(255), strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64])
def test_integers_are_scaled_and_floats_are_not(backend, rng, dtype):
    images = stored(rng, 4, 3, 5, dtype=dtype)
    scale = 255 if np.dtype(dtype).kind in "iu" else 1
    check(backend, ToFloat(), images, images[:, None].astype(np.float64) / scale)


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((4, 3, 8, 9), False),
        ((4, 1, 8, 9), False),
        ((4, 8, 9, 3), True),
        ((4, 8, 9, 1), True),
        ((4, 8, 9, 4), True),
        ((4, 3, 9, 3), False),
        ((4, 16, 9, 8), False),
    ],
)
def test_where_the_channels_are(backend, rng, shape, last):
    images = stored(rng, *shape)
    expected = images.transpose(0, 3, 1, 2) if last else images
    check(backend, ToFloat(), images, expected / 255)
    floats = (images / 255).astype(np.float32)
    check(backend, ToFloat(), floats, floats)  # floats are never turned unasked
    check(backend, ChannelsFirst(), floats, floats.transpose(0, 3, 1, 2))
    check(backend, ChannelsFirst(), images, images.transpose(0, 3, 1, 2) / 255)


def test_lenet_notebook(backend, rng):
    """28x28 padded by 2 before x/255 is normalised, so the border is (0 - 0.1307) / 0.3081."""
    images = stored(rng, 3, 28, 28)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None] / 255
    check(backend, Compose(Pad(2), Normalize(0.1307, 0.3081)), images, (padded - 0.1307) / 0.3081)
    result = backend.to_numpy(Compose(Pad(2), Normalize(0.1307, 0.3081))(backend.asarray(images)))
    assert result.shape == (3, 1, 32, 32)
    assert np.unique(result[:, :, [0, 1, 30, 31]]) == pytest.approx(-0.1307 / 0.3081)
    after = backend.to_numpy(Compose(Normalize(0.1307, 0.3081), Pad(2))(backend.asarray(images)))
    assert not after[:, :, [0, 1, 30, 31]].any()


SIZES = st.integers(0, 3)
NUMBERS = st.floats(-2, 2).map(lambda v: round(v, 3))
STEPS = st.lists(
    st.builds(ToFloat)
    | st.builds(Pad, SIZES | st.tuples(SIZES, SIZES), NUMBERS)
    | st.builds(Normalize, NUMBERS, st.floats(0.1, 3))
    | st.builds(Normalize, st.tuples(NUMBERS, NUMBERS, NUMBERS), st.tuples(*[st.floats(0.1, 3)] * 3))
    | st.builds(Repeat, st.just(3)),
    max_size=5,
)


@given(STEPS, st.sampled_from([(2, 3, 4), (2, 1, 3, 4), (2, 3, 5, 4), (2, 5, 6, 3)]), st.booleans())
def test_composed_is_one_after_the_other(backend, rng, steps, shape, floats):
    images = stored(rng, *shape, dtype=np.float32 if floats else np.uint8)
    x = images.astype(np.float64) / (1 if floats else 255)
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2) if shape[-1] == 3 and not floats else x
    channels = x.shape[1]
    for step in steps:
        if isinstance(step, Repeat):
            legal, channels = channels == 1, 3
        else:
            legal = len(getattr(step, "mean", (0,))) in (1, channels)
        if not legal:
            with pytest.raises(ShapeError, match=r"channel"):
                Compose(*steps)(backend.asarray(images))
            return
        x = oracle(step, x)
    transform = Compose(*steps)
    given = backend.asarray(images)
    result = backend.to_numpy(transform(given))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, x, rtol=1e-4, atol=1e-4)
    one_by_one = ToFloat()(given)
    for step in steps:
        one_by_one = step(one_by_one)
    np.testing.assert_allclose(backend.to_numpy(one_by_one), result, rtol=1e-4, atol=1e-4)


def test_strided_batches(backend, rng):
    images = stored(rng, 6, 8, 9)
    given = backend.asarray(images)[::2, 1:, ::-1]
    np.testing.assert_allclose(
        backend.to_numpy(ToFloat()(given)), images[::2, None, 1:, ::-1].astype(np.float32) / 255, rtol=1e-6
    )


def test_result_is_new_even_where_nothing_is_to_do(backend, rng):
    images = backend.asarray(np.ascontiguousarray(stored(rng, 1, 5, 6, 3, dtype=np.float32)))  # (C, H, W, N)
    batch = images.transpose(3, 0, 1, 2)
    result = ToFloat()(batch)
    result[...] = 7
    assert backend.to_numpy(batch).max() <= 1


def test_own_functions_take_part(backend, rng):
    images = stored(rng, 4, 5, 6)

    def flipped(x):
        return x[:, :, :, ::-1]

    transform = Compose(Compose(Pad(1), Normalize(0.5, 0.5)), flipped, Pad(1))
    expected = np.pad(
        (np.pad(images, ((0, 0), (1, 1), (1, 1)))[:, None] / 255 - 0.5) / 0.5, ((0, 0), (0, 0), (1, 1), (1, 1))
    )
    check(backend, transform, images, np.flip(expected, axis=3))
    assert len(transform.transforms) == 4
    assert describe(transform)["transforms"][2] == {"name": describe(flipped)["name"]}
    assert "flipped" in describe(flipped)["name"]


def test_settings_are_plain_and_whole():
    transform = Compose(ChannelsFirst(), Pad((1, 2), 0.5), Normalize((0.1, 0.2, 0.3), 1), Repeat(3), ToFloat())
    settings = describe(transform)
    assert (
        json.loads(json.dumps(settings))
        == settings
        == {
            "name": "Compose",
            "transforms": [
                {"name": "ChannelsFirst"},
                {"name": "Pad", "padding": [1, 2], "value": 0.5},
                {"name": "Normalize", "mean": [0.1, 0.2, 0.3], "std": [1.0]},
                {"name": "Repeat", "channels": 3},
                {"name": "ToFloat"},
            ],
        }
    )
    assert (
        repr(Compose(Pad(2), Normalize(0.5, 1)))
        == "Compose(Pad(padding=(2, 2), value=0.0), Normalize(mean=(0.5,), std=(1.0,)))"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalize(0, 0), "std: expected values above 0"),
        (lambda: Normalize(0, (1, -1, 1)), "std: expected values above 0"),
        (lambda: Normalize(np.nan, 1), "mean: expected a finite number"),
        (lambda: Normalize("a", 1), "mean: expected a finite number"),
        (lambda: Normalize((), 1), "mean: expected a finite number"),
        (lambda: Normalize(None, 1), "mean: expected a finite number"),
        (lambda: Pad(-1), "padding: expected 0 or more"),
        (lambda: Pad(0.5), "padding: expected integers"),
        (lambda: Pad((1, 2, 3)), "padding: expected"),
        (lambda: Pad(1, "a"), "value: expected a finite number"),
        (lambda: Repeat(0), "channels: expected 1 or more"),
        (lambda: Compose(Pad(1), 5), "transforms: expected callables, got 5"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(XpcnnError, match=message):
        make()
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    ("transform", "shape", "message"),
    [
        (ToFloat(), (4, 9), r"expected \(N, H, W\).*got \(N, 9\)"),
        (ToFloat(), (4, 1, 2, 3, 4), r"expected \(N, H, W\)"),
        (ChannelsFirst(), (4, 5, 6), "ChannelsFirst: expected stored images"),
        (Compose(Pad(1), ChannelsFirst()), (4, 5, 6, 3), "come first"),
        (Compose(Normalize(0.5, 1), ChannelsFirst()), (4, 5, 6, 3), "come first"),
        (Repeat(3), (4, 3, 5, 6), "Repeat: expected images of one channel, got 3"),
        (Normalize((0, 0), 1), (4, 3, 5, 6), "mean: expected 1 value or one for each of the 3 channels, got 2"),
        (Normalize(0, (1, 1, 1)), (4, 5, 6), "std: expected 1 value"),
    ],
)
def test_wrong_images(backend, transform, shape, message):
    with pytest.raises(ShapeError, match=message):
        transform(backend.asarray(np.zeros(shape, np.uint8)))


@pytest.mark.parametrize(
    "shape", [(5, 3, 32, 32), (5, 32, 16), (5, 16, 32, 3), (130, 3, 16, 32), (1, 8, 8, 8), (4, 3, 7, 9)]
)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32", "int32", "float16"])
def test_batches_are_turned_to_the_bit(backend, rng, shape, dtype):
    images = np.frombuffer(rng.bytes(np.dtype(dtype).itemsize * int(np.prod(shape))), dtype).reshape(shape)
    for each in (images, images[::-1], images[..., ::2]):
        turned = backend.to_numpy(batch_last(backend, backend.asarray(each)))
        expected = np.moveaxis(each, 0, -1)
        assert turned.shape == expected.shape
        assert turned.tobytes() == expected.tobytes()


@needs_speed
def test_a_kernel_of_the_backend_takes_over(monkeypatch, backend, rng):
    """`prepare` is a primitive: a backend may replace it under its name."""
    calls = []

    def fused(backend, batch, plan):
        calls.append(plan)
        return prepare.portable(backend, batch, plan)

    monkeypatch.setattr(backend, "fused", {**backend.fused, "prepare": fused})
    ToFloat()(backend.asarray(stored(rng, 2, 3, 4)))
    assert len(calls) == 1
