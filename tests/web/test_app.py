"""What the page's server answers, to its page and to anything else."""

import asyncio
import io
import re
import struct
import zlib
from importlib import resources

import numpy as np
import pytest

from tests.web.client import ask, ask_later, look
from tests.web.conftest import png
from xpcnn import models, nn
from xpcnn.datasets import load_mnist
from xpcnn.errors import OutOfMemoryError
from xpcnn.training import Predictor
from xpcnn.web import Inspector, app, create_app, uploads

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("starlette")
STATIC = resources.files("xpcnn.web") / "static"


def test_the_page_and_all_that_it_names(app):
    html = ask(app, "GET", "/")
    assert html.status == 200
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert html.body == (STATIC / "index.html").read_bytes()
    named = {"index.html"} | set(re.findall(r'(?:href|src)="/(\w+\.\w+)"', html.body.decode()))
    for name in sorted(named):
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./(\w+\.js)"', (STATIC / name).read_text(encoding="utf-8")))
    assert named == {each.name for each in STATIC.iterdir()}
    for name in named - {"index.html"}:
        assert ask(app, "GET", f"/{name}").body == (STATIC / name).read_bytes()


def test_nothing_comes_from_elsewhere():
    for each in STATIC.iterdir():
        text = each.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|//\w+\.\w+|@import|url\(", text), each.name
    assert "style=" not in (STATIC / "index.html").read_text(encoding="utf-8")  # the policy forbids it


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("GET", "/model", 200), ("GET", "/no", 404), ("GET", "/look", 405), ("POST", "/", 405),
     ("GET", "/../app.py", 404), ("GET", "/static/page.js", 404)],
)  # fmt: skip
def test_every_answer_tells_browsers_to_be_careful(app, method, path, status):
    answer = ask(app, method, path)
    assert answer.status == status
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


def test_what_it_says_of_the_network(app):
    found = ask(app, "GET", "/model").json
    assert found["name"] == "tiny"
    assert found["classes"] is None
    assert (found["digits"], found["draws"]) == (True, "dark")
    assert found["parameters"] == sum(each.data.size for each in models.create("tiny").parameters())


def test_a_picture_gets_the_answer_of_the_predictor(app, predictor, seven, tmp_path):
    (tmp_path / "seven.png").write_bytes(seven)
    (expected,) = predictor(tmp_path / "seven.png")
    answer = look(app, seven)
    assert answer.status == 200
    found = answer.json
    assert found["label"] == str(expected.label)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-6)
    assert found["probability"] == pytest.approx(expected.probability)
    assert found["heat"]["target"] == found["index"] == expected.label


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_the_other_formats(app, seven, kind):
    same = png(np.asarray(Image.open(io.BytesIO(seven))), kind)
    found = look(app, same, kind=f"image/{kind.lower()}").json
    np.testing.assert_allclose(found["probabilities"], look(app, seven).json["probabilities"], atol=0.02)


def test_another_class_is_explained(app, seven):
    first, other = look(app, seven, target=2).json, look(app, seven, target=5).json
    assert (first["heat"]["target"], other["heat"]["target"]) == (2, 5)
    assert first["heat"]["high"] != other["heat"]["high"]
    assert first["probabilities"] == other["probabilities"]
    answer = look(app, seven, target=10)
    assert (answer.status, answer.json) == (422, {"error": "Target: expected a class from 0 to 9, got 10"})
    assert look(app, seven, target="-1").status == 400
    assert look(app, seven, target="9" * 5000).status == 400


def header_alone(width, height):
    """Return a PNG that declares a size, and holds nothing."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png(np.full((90, 90), 255, np.uint8)), r"No digit found: the picture has one plain colour.*"),
        (b"hello", r"This is .*; PNG, JPEG, WebP, GIF and BMP are read"),
        (b"\x1f\x8b" + b"\0" * 90, r"This is .*gzip.*; PNG, JPEG, WebP, GIF and BMP are read"),
        (png(np.zeros((40, 40), np.uint8))[:-30], r"This is no picture, or a damaged one; .*"),
        (header_alone(5800, 5800), r"5800 x 5800 pixels are too many, 33,554,432 are taken; shrink the picture"),
        (header_alone(60_000, 60_000), r"This is no picture, or a damaged one; .*"),
        (header_alone(0, 0), r"This is no picture, or a damaged one; .*"),
        (png(np.zeros((40, 40), np.uint8), "TIFF"), r"This is .*; PNG, JPEG, WebP, GIF and BMP are read"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 90, r"This is an HEIC picture; PNG, JPEG, WebP, GIF and BMP are read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"This is .*; PNG, JPEG, WebP, GIF and BMP are read"),
        (b"", r"The picture is empty"),
    ],
    ids=["blank", "text", "gzip", "cut off", "large", "bomb", "no size", "TIFF", "HEIC", "SVG", "empty"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_is_refused_in_one_line(app, content, says):
    answer = look(app, content)
    assert answer.status == 422
    assert list(answer.json) == ["error"]
    assert re.fullmatch(says, answer.json["error"])


def test_what_is_too_large_is_not_read(app):
    declared = look(app, [b"x"] * 9, headers=[("content-length", str(uploads.LARGEST + 1))])
    assert (declared.status, declared.parts_read) == (413, 0)
    assert declared.json["error"] == "The picture is larger than 16 MiB; shrink it"
    part = b"x" * (1 << 20)
    lying = look(app, [part] * 40, headers=[("content-length", "9")])
    assert (lying.status, lying.parts_read) == (413, 17)
    assert look(app, b"x", headers=[("content-length", "9" * 5000)]).status == 413
    assert look(app, b"x", headers=[("content-length", "-4")]).status == 413


def test_what_does_not_arrive(app, monkeypatch):
    monkeypatch.setattr("xpcnn.web.app._PATIENCE", 0.05)
    answer = look(app, [b"x"], stall=True)
    assert (answer.status, answer.json["error"]) == (408, "The picture did not arrive in time")


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data; boundary=a", "application/octet-stream"])
def test_what_a_form_can_send_is_refused(app, seven, kind):
    answer = look(app, seven, kind=kind)
    assert answer.status == 415
    assert answer.json["error"].startswith("Expected a picture (Content-Type: image/...)")


def test_many_at_once_get_each_its_own(predictor):
    app = create_app(Inspector(predictor))
    digits = [png(255 - np.pad(image, 20)) for image in load_mnist()[1].images[:6]]
    alone = [look(app, each).json["probabilities"] for each in digits]

    async def together():
        headers = [("content-type", "image/png")]
        return await asyncio.gather(*(ask_later(app, "POST", "/look", each, headers=headers) for each in digits * 8))

    answers = asyncio.run(together())
    assert len({tuple(each) for each in alone}) == len(alone)
    np.testing.assert_allclose([answer.json["probabilities"] for answer in answers], alone * 8, atol=1e-6)


def test_pictures_of_ones_own_classes():
    model = nn.Sequential(nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(3, 3))
    model[2].weight.data[...] = 20 * np.eye(3, dtype="float32")
    named = Predictor(model.eval(), classes=["red", "<b>green</b>", "blue"], image_shape=(3, 8, 8))
    app = create_app(Inspector(named))
    assert ask(app, "GET", "/model").json["draws"] is None
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[..., 1] = 200
    found = look(app, png(pixels)).json
    assert found["label"] == "<b>green</b>"
    assert found["seen"]["shape"] == [3, 8, 8]
    assert (found["seen"]["count"], found["seen"]["width"]) == (3, 8)
    assert found["heat"] is None
    assert "expected a Conv2d in the model" in found["no_heat"]


def test_a_network_that_fails_is_told_in_one_line(predictor, seven, monkeypatch):
    broken = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    broken[1].weight.data[...] = np.nan
    answer = look(create_app(Inspector(Predictor(broken, digits=True))), seven)
    assert answer.status == 422
    assert "not finite numbers" in answer.json["error"]
    shapes = nn.Sequential(nn.Flatten(), nn.Linear(5, 2))
    answer = look(create_app(Inspector(Predictor(shapes, digits=True))), seven)
    assert answer.status == 422
    assert "784" in answer.json["error"]
    inspector = Inspector(predictor)

    def full(*arguments):
        raise OutOfMemoryError("the device\nis full")

    monkeypatch.setattr(inspector, "look", full)
    answer = look(create_app(inspector), seven)
    assert (answer.status, answer.json) == (503, {"error": "The device is full"})


def test_one_line():
    assert app.one_line("images: no digit\n  found: x") == "No digit found: x"
