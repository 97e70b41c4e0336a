"""The page in a real browser: drawn with a mouse, a finger and keys, given pictures, looked at in light and dark."""

import base64
import re
import threading

import numpy as np
import pytest

from tests.web import browser
from tests.web.conftest import png
from tests.web.strokes import strokes
from xpcnn import nn, recipes
from xpcnn.cli import main
from xpcnn.datasets import load_mnist
from xpcnn.training import Predictor
from xpcnn.web import Inspector, create_app

pytest.importorskip("PIL.Image")
pytest.importorskip("starlette")
pytestmark = pytest.mark.browser
NARROW = {"width": 375, "height": 800}
WIDE = {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def playwright():
    sync_api = pytest.importorskip("playwright.sync_api")
    if browser.path() is None:
        pytest.skip("no browser: chromium on the PATH, or another in XPCNN_BROWSER")
    with sync_api.sync_playwright() as made:
        yield made


@pytest.fixture(scope="module")
def served():
    """Give what serves a predictor in a thread and returns the page's address."""
    import uvicorn

    running = []

    def start(predictor, name="model"):
        app = create_app(Inspector(predictor, name))
        config = uvicorn.Config(app, port=0, lifespan="off", ws="none", log_config=None)
        bound, server = config.bind_socket(), uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        running.append((server, thread, bound))
        return f"http://127.0.0.1:{bound.getsockname()[1]}/"

    yield start
    for server, thread, bound in running:
        server.should_exit = True
        thread.join()
        bound.close()


@pytest.fixture(scope="module")
def digits(served, tmp_path_factory):
    """Give the address of the page of the recipe lenet5, trained for its one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "lenet5"
    assert main(["train", "lenet5", "--out", str(folder)]) == 0
    return served(recipes.load_predictor(folder), "lenet5")


@pytest.fixture(scope="module")
def colours(served):
    """Give the address of the page of a network that tells colours apart."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(3, 3))
    model[0].weight.data[...] = np.eye(3, dtype="float32")[:, :, None, None]
    model[3].weight.data[...] = 9 * np.eye(3, dtype="float32")
    return served(Predictor(model.eval(), classes=["red", "<i>green</i>", "blue"], image_shape=(3, 16, 16)), "colours")


@pytest.fixture
def opened(playwright):
    """Give what opens a page; what it logs, or asks of any other machine, fails the test."""
    contexts, wrong = [], []

    def opening(address, **options):
        made = browser.context(playwright, **{"viewport": WIDE, **options})
        context = made.__enter__()
        contexts.append(made)
        page = context.pages[0]
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if _is_elsewhere(request.url, address) else None)
        page.goto(address)
        until(page, "document.title.endsWith('xpcnn') && document.title.length > 5")
        return page

    yield opening
    for made in contexts:
        made.__exit__(None, None, None)
    # A refused picture, and a server that has gone, are in the console too.
    assert [each for each in wrong if "status of 422" not in each and "ERR_FAILED" not in each] == []


def _is_elsewhere(url, address):
    return not url.startswith((address, f"blob:{address}", "data:"))


def draw(page, image, drag=None):
    """Trace a test digit on the pad."""
    box = page.locator("#pad").bounding_box()
    for stroke in strokes(image):
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        (drag or mouse)(page, points)


def mouse(page, points):
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def touch(page, points):
    session = page.context.new_cdp_session(page)
    for i, (x, y) in enumerate(points):
        kind = "touchMove" if i else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def until(page, expression):
    """Wait for something to be true; Playwright's own way evaluates text, which the page's policy forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"it has not become true: {expression}; the page says {page.inner_text('#problem')!r}")


def settled(page):
    """Wait until the answer is the one to what is on the pad, and return it."""
    until(page, "document.getElementById('status').textContent.includes('%')")
    return page.inner_text("#label")


def cleared(page):
    page.click("#clear")
    until(page, "document.getElementById('label').textContent === '?'")
    until(page, "document.getElementById('status').textContent === ''")


def test_twenty_digits_drawn_with_the_mouse(opened, digits):
    page, test, right = opened(digits), load_mnist()[1], []
    for number in range(20):
        draw(page, test.images[number])
        right.append(settled(page) == str(test.labels[number]))
        cleared(page)
    assert sum(right) >= 18


def test_what_is_shown_of_a_drawing(opened, digits):
    page = opened(digits)
    assert page.inner_text("#label") == "?"
    assert page.is_disabled("#undo")
    assert page.is_disabled("#clear")
    draw(page, load_mnist()[1].images[0])
    assert settled(page) == "7"
    bars = page.locator("#bars button")
    assert bars.count() == 10
    assert bars.nth(7).get_attribute("class") == "best"
    assert re.fullmatch(r"7: (> )?\d+\.\d %", bars.nth(7).get_attribute("aria-label"))
    widths = [bars.nth(i).locator(".fill").evaluate("bar => bar.style.transform") for i in range(10)]
    shares = [float(re.fullmatch(r"scaleX\((.+)\)", each)[1]) for each in widths]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    kinds = page.locator("#layers figure b").all_inner_texts()
    assert [kind.split()[-1] for kind in kinds[:4]] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert page.locator("#layers figure").nth(0).locator("canvas").count() == 6
    spread = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    for canvas in ("#seen", "#heat", "#layers canvas >> nth=0"):
        assert page.locator(canvas).evaluate(spread) > 10
    before = page.locator("#heat").evaluate("canvas => canvas.toDataURL()")
    bars.nth(2).click()
    until(page, "document.getElementById('heat-note').textContent.includes('“2”')")
    assert bars.nth(2).get_attribute("aria-pressed") == "true"
    assert page.locator("#heat").evaluate("canvas => canvas.toDataURL()") != before
    assert page.inner_text("#label") == "7"
    cleared(page)
    assert page.is_hidden("#inside")


def test_answers_come_while_one_draws(opened, digits):
    page = opened(digits)
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 60)
    page.mouse.down()
    for y in range(60, 300, 8):
        page.mouse.move(box["x"] + 150, box["y"] + y)
    until(page, "document.getElementById('label').textContent === '1'")  # the button is still down
    page.mouse.up()
    assert settled(page) == "1"
    page.click("#undo")
    until(page, "document.getElementById('label').textContent === '?'")


def test_bars_of_long_names_have_the_width_of_a_small_screen(opened, served):
    model = nn.Sequential(nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(3, 2))
    names = ["a class of a very long name", "and another one that is longer"]
    page = opened(served(Predictor(model.eval(), classes=names, image_shape=(3, 16, 16))), viewport=NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    widths = page.evaluate("[...document.querySelectorAll('#bars .track')].map((track) => track.offsetWidth)")
    assert len(widths) == 2
    assert min(widths) > NARROW["width"] / 2
    assert page.evaluate(
        "[...document.querySelectorAll('#bars .class')].every((name) => name.scrollWidth <= name.offsetWidth)"
    )


def test_a_finger_on_a_small_screen(opened, digits):
    page = opened(digits, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for number in (0, 1, 4):
        draw(page, load_mnist()[1].images[number], touch)
        assert settled(page) == str(load_mnist()[1].labels[number])
        cleared(page)
    assert page.evaluate("scrollY") == 0  # drawing does not scroll
    assert page.locator("#help").get_attribute("open") is None
    small = page.evaluate(
        "[...document.querySelectorAll('button')].filter((b) => b.offsetHeight && b.offsetHeight < 32).length"
    )
    assert small == 0


def test_keys_alone(opened, digits):
    page = opened(digits)
    page.keyboard.press("Tab")  # the link that skips
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    assert page.is_visible("#pen")
    page.keyboard.press("Space")
    assert page.inner_text("#status") == "Pen down"
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert settled(page) == "1"
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+z")
    page.keyboard.press("Delete")
    until(page, "document.getElementById('label').textContent === '?'")
    page.keyboard.press("Tab")  # no trap
    assert page.evaluate("document.activeElement.id") == "choose"  # the others are disabled


def test_a_screen_reader_finds_its_way(opened, digits):
    page = opened(digits)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).inner_text() == "lenet5"
    assert page.get_by_role("application", name="Drawing pad").count() == 1
    assert page.locator("#pad").get_attribute("aria-describedby") == "keys"
    assert page.get_by_role("button", name="Choose a picture").count() == 1
    draw(page, load_mnist()[1].images[0])
    settled(page)
    assert re.fullmatch(r"7, .*%", page.get_by_role("status").inner_text())
    assert page.get_by_role("button", name=re.compile("^7: ")).count() == 1
    assert page.get_by_role("img", name=re.compile("The image that the network took")).count() == 1
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, canvas, img, input')].filter((each) => each.checkVisibility() && "
        "!each.closest('[aria-hidden]') && !(each.ariaLabel || each.alt || each.textContent.trim())).length"
    )
    assert nameless == 0


def drop(page, content, name, kind):
    page.evaluate(
        """([text, name, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(text), (each) => each.charCodeAt(0))], name, { type }));
            const options = { dataTransfer: data, bubbles: true, cancelable: true };
            for (const event of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(event, options));
        }""",
        [base64.b64encode(content).decode(), name, kind],
    )


def test_a_dropped_picture_and_back_to_drawing(opened, digits, seven):
    page = opened(digits)
    drop(page, seven, "seven.png", "image/png")
    assert settled(page) == "7"
    assert page.is_visible("#photo")
    assert page.is_hidden("#pad")
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 160
    cleared(page)
    assert page.is_visible("#pad")
    draw(page, load_mnist()[1].images[1])
    assert settled(page) == "2"


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (png(np.full((60, 60), 255, np.uint8)), "image/png", "No digit found: the picture has one plain colour"),
        (b"nonsense", "image/png", "PNG, JPEG, WebP, GIF and BMP are read"),
        (b"text", "text/plain", "a.txt is no picture"),
        (b"\0" * ((1 << 24) + 1), "image/png", "The picture is larger than 16 MiB"),
    ],
    ids=["blank", "nonsense", "text", "large"],
)
def test_what_cannot_be_taken_is_said_in_one_line(opened, digits, content, kind, says):
    page = opened(digits)
    drop(page, content, "a.txt" if kind == "text/plain" else "a.png", kind)
    until(page, "document.getElementById('problem').textContent")
    assert says in page.get_by_role("alert").inner_text()
    assert "\n" not in page.inner_text("#problem")
    assert page.inner_text("#label") == "?"
    if content == b"nonsense":
        until(page, "document.getElementById('photo').hidden")
        assert page.inner_text("#hint") == "This cannot be shown"
    if not page.is_visible("#pad"):
        cleared(page)
    draw(page, load_mnist()[1].images[0])
    assert settled(page) == "7"
    assert page.inner_text("#problem") == ""


def test_a_photograph_for_classes_of_ones_own(opened, colours, tmp_path):
    page = opened(colours)
    assert page.is_hidden("#pad")
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 1] = 220
    (tmp_path / "green.png").write_bytes(png(pixels))
    with page.expect_file_chooser() as chooser:
        page.click("#stage")
    chooser.value.set_files(tmp_path / "green.png")
    assert settled(page) == "<i>green</i>"  # as text
    assert page.locator("#label i").count() == 0
    assert page.locator("#bars .class").all_inner_texts() == ["red", "<i>green</i>", "blue"]
    assert page.locator("#seen").evaluate("canvas => [canvas.width, canvas.height]") == [16, 16]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(opened, digits, scheme):
    page = opened(digits, color_scheme=scheme)
    draw(page, load_mnist()[1].images[0])
    settled(page)
    brightness = page.evaluate(
        """() => {
            const of = (text) => {
                const [r, g, b] = text.match(/[\\d.]+/g).map((each) => (each / 255 <= 0.04045 ? each / 255 / 12.92
                    : ((each / 255 + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const found = { page: of(getComputedStyle(document.body).backgroundColor) };
            for (const id of ["label", "about", "answer", "seen-note", "problem", "hint", "undo"]) {
                let back = document.getElementById(id);
                const front = of(getComputedStyle(back).color);
                while (/, 0\\)$/.test(getComputedStyle(back).backgroundColor)) back = back.parentElement;
                const behind = of(getComputedStyle(back).backgroundColor);
                found[id] = (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
            }
            return found;
        }"""
    )
    assert (brightness.pop("page") > 0.5) is (scheme == "light")
    assert min(brightness.values()) >= 4.5  # WCAG 2.2, success criterion 1.4.3
    ink = page.locator("#pad").evaluate(
        "pad => pad.getContext('2d').getImageData(0, 0, pad.width, pad.height).data"
        ".reduce((most, value, i) => i % 4 < 3 && value > most ? value : most, 0)"
    )
    assert (ink > 128) is (scheme == "dark")


def test_a_server_that_has_gone_is_noticed(opened, digits):
    page = opened(digits)
    page.route("**/look*", lambda route: route.abort())
    draw(page, load_mnist()[1].images[0])
    until(page, "document.getElementById('problem').textContent")
    assert page.inner_text("#problem") == "The server does not answer; is it still running?"
