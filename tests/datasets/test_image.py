"""Pictures brought to MNIST's form: MNIST's own digits, drawn large, small, dark, light, off centre, come back."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest

from tests.mutations import check_reader
from xpcnn.datasets import load_image, load_mnist
from xpcnn.datasets.ink import NoDigit, find_ink
from xpcnn.errors import DataError

Image = pytest.importorskip("PIL.Image")


def saved(array, tmp_path, name="digit.png", **options):
    path = tmp_path / name
    Image.fromarray(array).save(path, **options)
    return path


def drawn(digit, scale, margins, ink, paper):
    """Return a digit of MNIST drawn larger, off centre, in `ink` on `paper` (grey levels)."""
    large = np.asarray(Image.fromarray(digit).resize((28 * scale, 28 * scale), Image.Resampling.BICUBIC)) / 255.0
    return np.round(paper + (ink - paper) * np.pad(large, margins)).astype(np.uint8)


def recognised(images):
    """The oracle: the label of the nearest of 10,000 training images."""
    train = load_mnist()[0].subset(slice(0, 10_000))
    known = train.images.reshape(-1, 784).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    return train.labels[(np.reshape(images, (-1, 784)).astype(np.float32) @ known.T).argmax(axis=1)]


def test_mnist_itself_comes_back(tmp_path):
    _, test = load_mnist()
    for digit in test.images[:100]:
        result = load_image(saved(digit, tmp_path))
        assert result.shape == (28, 28)
        assert result.dtype == np.uint8
        stretched = np.round(digit * (255 / digit.max()))  # a few digits stop at 254
        np.testing.assert_array_equal(result, stretched)


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0), (60, 180), (200, 90)])
@pytest.mark.parametrize("name", ["digit.png", "digit.jpg"])
@pytest.mark.parametrize(
    ("scale", "margins"), [(1, ((0, 0), (0, 0))), (5, ((9, 80), (60, 5))), (30, ((40, 0), (9, 99)))]
)
def test_digits_are_recognised(tmp_path, ink, paper, name, scale, margins):
    _, test = load_mnist()
    images = [load_image(saved(drawn(digit, scale, margins, ink, paper), tmp_path, name)) for digit in test.images[:30]]
    assert (recognised(images) == test.labels[:30]).sum() >= 28


def test_colour_transparency_and_depth(tmp_path):
    _, test = load_mnist()
    digit = test.images[0]
    expected = load_image(saved(digit, tmp_path)).astype(int)
    rgba = np.zeros((28, 28, 4), np.uint8)
    rgba[..., 3] = digit  # black strokes on a transparent ground
    white = rgba.copy()
    white[..., :3] = 255
    pictures = {
        "rgb": np.repeat(digit[..., None], 3, axis=2),
        "black on nothing": rgba,
        "white on nothing": white,
        "opaque": np.dstack([digit, digit, digit, np.full_like(digit, 255)]),
        "16 bits": digit.astype(np.uint16) * 257,
    }
    for name, picture in pictures.items():
        assert abs(load_image(saved(picture, tmp_path)) - expected).max() <= 2, name
    palette = Image.fromarray(digit).convert("P")
    palette.save(tmp_path / "palette.png")
    assert abs(load_image(tmp_path / "palette.png") - expected).max() <= 2
    Image.fromarray(digit > 127).save(tmp_path / "bits.png")
    assert load_image(tmp_path / "bits.png").max() == 255


def test_orientation_of_a_photograph(tmp_path):
    _, test = load_mnist()
    digit = test.images[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise when shown
    turned = saved(np.rot90(digit), tmp_path, exif=exif)
    np.testing.assert_array_equal(load_image(turned), load_image(saved(digit, tmp_path, "plain.png")))


def test_result_is_centred_as_mnist_is(tmp_path, rng):
    for _ in range(20):
        height, width = rng.integers(3, 200, 2)
        canvas = np.zeros((300, 300), np.uint8)
        top, left = rng.integers(1, 90, 2)
        canvas[top : top + height, left : left + width] = rng.integers(100, 256, (height, width))
        image = load_image(saved(canvas, tmp_path)).astype(float)
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        centre = (image * np.arange(28)).sum() / image.sum(), (image.T * np.arange(28)).sum() / image.sum()
        assert np.allclose(centre, 14, atol=0.51)


def test_noisy_background_is_no_ink(tmp_path, rng):
    _, test = load_mnist()
    images = []
    for digit in test.images[:30]:
        canvas = drawn(digit, 3, ((50, 80), (60, 9)), 60, 200) + rng.normal(0, 6, (214, 153))
        images.append(load_image(saved(np.clip(canvas, 0, 255).astype(np.uint8), tmp_path)))
    assert (recognised(images) == test.labels[:30]).sum() >= 28


@pytest.mark.parametrize("name", ["digit.png", "digit.jpg"])
def test_a_sheet_in_the_corner_of_the_dark(tmp_path, name):
    """Paper is less than a tenth of the picture, and the light of most of it is none."""
    _, test = load_mnist()
    images = []
    for digit in test.images[:30]:
        sheet = drawn(digit, 1, ((4, 4), (4, 4)), 0, 255)
        images.append(load_image(saved(np.pad(sheet, ((0, 94), (0, 94))), tmp_path, name)))
    assert (recognised(images) == test.labels[:30]).sum() >= 28


@pytest.mark.parametrize("shade", [0, 255])
def test_single_pixels_are_no_digit(tmp_path, shade):
    """Densest is the mean of nine pixels where none of the four dots lies."""
    picture = np.full((30, 30), 255 - shade, np.uint8)
    picture[10:13:2, 10:13:2] = shade
    with pytest.raises(NoDigit, match="nothing larger than a speck"):
        find_ink(picture[None].astype(np.float32), noise=2.0)


def png(width, height, rows=b"", bits=8, colour=0):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PNG or JPEG"),
        (b"GIF89a" + bytes(99), "not a PNG or JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG or JPEG"),
        (png(60_000, 60_000), "exceeds limit"),
        (png(2_000_000_000, 2), "exceeds limit"),
        (png(9_000, 9_000, bytes(1 << 25)), "9000x9000 pixels in .* refused"),
        (png(3000, 3000), "3000x3000 pixels in .* bytes: refused"),
        (png(28, 28, bytes(99)), "not a PNG or JPEG"),
        (png(28, 28, bytes(29 * 28)), "one plain colour"),
        (png(0, 28), "not a PNG or JPEG"),
    ],
)
def test_hostile_pictures(tmp_path, content, message):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        load_image(tmp_path / "missing.png")


def test_without_pillow_it_says_how_to_get_it(tmp_path, monkeypatch):
    path = saved(load_mnist()[1].images[0], tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'pip install "\.\[cli\]"'):
        load_image(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damaged_pictures(tmp_path, form):
    def check(image):
        assert image.shape == (28, 28)
        assert image.dtype == np.uint8
        assert image.max() == 255

    buffer = io.BytesIO()
    Image.fromarray(load_mnist()[1].images[0]).save(buffer, form)
    check_reader(form, load_image, buffer.getvalue(), tmp_path / "picture", check=check, bytes_per_byte=8 * 1032 * 4)
