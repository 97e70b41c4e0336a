"""Pictures are whole PNGs that show what they were given, and nothing else of the user's changes."""

import io
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import xpcnn
from xpcnn import models, nn, plot
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.plot.figure import mosaic
from xpcnn.training import History

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def a_history(steps=60, epochs=2, validation=0.97):
    history = History()
    for i in range(steps):
        history.add_step(2.3 / (1 + i), 1 - 0.9 / (1 + i), 0.1)
        if (i + 1) % (steps // epochs) == 0:
            history.add_epoch(step=i + 1, loss=0.1, accuracy=0.9, validation_accuracy=validation, validation_loss=0.1)
    return history


def pixels(drawn):
    """Return the picture in a file, or of a figure."""
    if hasattr(drawn, "savefig"):
        drawn = io.BytesIO(drawn._repr_png_())
    with Image.open(drawn) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def said(rng, labels, wrong=()):
    shares = rng.random((len(labels), 10)) * 0.01
    shares[np.arange(len(labels)), labels] = 0.9
    for i in wrong:
        shares[i] = np.roll(shares[i], 1)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("validation", [0.97, 0.6, math.nan])
def test_history_of_any_length(tmp_path, epochs, validation):
    path = plot.history(a_history(epochs=epochs, validation=validation), tmp_path / "a.png", title="a title")
    assert pixels(path).shape == (385, 900, 3)
    assert len(np.unique(pixels(path).reshape(-1, 3), axis=0)) > 20


def test_history_of_one_step_and_of_a_loss_that_is_not_finite(tmp_path):
    history = History()
    history.add_step(2.3, 0.1, 0.1)
    pixels(plot.history(history, tmp_path / "a.png"))
    for loss in (math.nan, math.inf, 1000.0, 0.001, 0.0):
        history.add_step(loss, 0.1, 0.1)
    pixels(plot.history(history, tmp_path / "b.png"))


def test_history_without_an_accuracy_is_the_loss_alone(tmp_path, monkeypatch):
    from xpcnn.plot import curves

    history = History()
    for loss in (3.0, 2.0, 1.0):
        history.add_step(loss, math.nan, 0.1)
    monkeypatch.setattr(curves, "_draw_accuracy", None)
    assert pixels(plot.history(history, tmp_path / "a.png")).shape == (350, 900, 3)


def test_history_draws_itself(tmp_path):
    a_history().plot(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").any()


def test_an_empty_history_is_an_error(tmp_path):
    with pytest.raises(DataError, match="at least one step, got none"):
        plot.history(History(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_predictions_show_mistakes_first(tmp_path, rng):
    """The wrong digit is the only grey one: it must be in the upper half."""
    labels = rng.integers(0, 10, 40)
    images = np.zeros((40, 28, 28), np.uint8)
    images[13] = 128
    path = plot.predictions(images, labels, said(rng, labels, wrong=[13]), tmp_path / "a.png")
    picture = pixels(path)
    dark = np.flatnonzero((picture == 0).all(axis=(2)).sum(axis=1) > 50)  # rows with black tiles: the right digits
    assert (picture[85:170, 20:110] == 128).all()
    assert dark.min() > 140


def test_the_surest_mistake_comes_first(tmp_path):
    labels = np.array([1, 2, 3])
    images = np.stack([np.full((28, 28), grey, np.uint8) for grey in (40, 80, 120)])
    shares = np.zeros((3, 10))
    shares[:, 0] = 0.5, 0.9, 0.7
    shares[:, 9] = 1 - shares[:, 0] - 0.01
    shares[1, 9], shares[2, 9] = 0.0, 0.2
    shares[:, 5] = 1 - shares.sum(axis=1)
    picture = pixels(plot.predictions(images, labels, shares, tmp_path / "a.png"))
    assert [int(picture[130, 60 + 106 * tile, 0]) for tile in range(3)] == [80, 120, 40]


@pytest.mark.parametrize("wrong", [[], range(40)], ids=["all right", "all wrong"])
@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 32, 32), (32, 32, 3)])
def test_predictions_of_any_images(tmp_path, rng, shape, wrong):
    labels = rng.integers(0, 10, 40)
    pixels(plot.predictions(rng.random((40, *shape)), labels, said(rng, labels, wrong), tmp_path / "a.png"))


def test_predictions_that_do_not_fit(tmp_path, rng):
    labels = rng.integers(0, 10, 5)
    shares = said(rng, labels)
    with pytest.raises(ShapeError, match="one row for each"):
        plot.predictions(np.zeros((4, 28, 28)), labels, shares, tmp_path / "a.png")
    with pytest.raises(ShapeError, match=r"images: expected \(N, H, W\)"):
        plot.predictions(np.zeros((5, 784)), labels, shares, tmp_path / "a.png")
    with pytest.raises(DTypeError, match="labels: expected numbers"):
        plot.predictions(np.zeros((5, 28, 28)), np.array(list("abcde")), shares, tmp_path / "a.png")
    with pytest.raises(ShapeError, match="classes: expected 10 names"):
        plot.predictions(np.zeros((5, 28, 28)), labels, shares, tmp_path / "a.png", classes=["cat", "dog"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", [np.arange(10.0) - 4, [0.2] * 10, [1.5, -0.5, *[0] * 8], [math.nan] * 10])
def test_logits_are_no_probabilities(tmp_path, rng, row):
    labels = rng.integers(0, 10, 5)
    shares = said(rng, labels)
    shares[3] = row
    with pytest.raises(
        DataError, match=r"^probabilities: expected rows .* in row 3; give functional.softmax\(logits\)$"
    ):
        plot.predictions(np.zeros((5, 28, 28)), labels, shares, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
    shares = said(rng, labels).astype("float16")
    pixels(plot.predictions(np.zeros((5, 28, 28)), labels, shares, tmp_path / "a.png"))


def test_confusion_colours_the_mistakes(tmp_path):
    labels = np.repeat([0, 1, 2], 50)
    predicted = labels.copy()
    predicted[:20] = 2  # of row 0, column 2
    picture = pixels(plot.confusion_matrix(labels, predicted, tmp_path / "a.png")).astype(int)
    assert picture.shape[0] == picture.shape[1]
    red_over_blue = picture[..., 0] - picture[..., 2]
    row, column = np.unravel_index(np.argmax(red_over_blue), red_over_blue.shape)
    size = picture.shape[0]
    assert row < size / 2  # the first row of the matrix
    assert column > size / 2  # its last column


def test_confusion_takes_scores_and_one_hot_rows(tmp_path, rng):
    labels = rng.integers(0, 10, 30)
    shares = said(rng, labels, wrong=[3])
    first = plot.confusion_matrix(labels, shares, tmp_path / "a.png")
    second = plot.confusion_matrix(np.eye(10)[labels], shares.argmax(axis=1), tmp_path / "b.png")
    assert np.array_equal(pixels(first), pixels(second))


def test_confusion_that_does_not_fit(tmp_path):
    with pytest.raises(ShapeError, match="one for each label"):
        plot.confusion_matrix([1, 2], [1], tmp_path / "a.png")
    with pytest.raises(DataError, match="class indices of 0 or more"):
        plot.confusion_matrix([1, -2], [1, 1], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lenet5", "tiny", "conv8", "three-layer", "deep3"])
def test_filters_and_maps_of_every_network(tmp_path, backend, rng, name):
    net = models.create(name)
    shape = {"lenet5": (1, 32, 32), "three-layer": (3, 32, 32)}.get(name, (1, 28, 28))
    image = backend.asarray(rng.random((1, *shape)).astype("float32"))
    net.train()
    before = {key: backend.to_numpy(value).copy() for key, value in net.state_dict().items()}
    pixels(plot.filters(net, tmp_path / "filters.png"))
    pixels(plot.feature_maps(net, image, tmp_path / "maps.png"))
    assert all(module.training for module in net.modules())
    for key, value in net.state_dict().items():
        assert np.array_equal(backend.to_numpy(value), before[key])


def test_maps_are_those_of_the_network(tmp_path, rng, monkeypatch):
    """What is drawn is every pooling layer's output, computed here layer by layer."""
    from xpcnn.plot import features

    net = models.create("lenet5").eval()
    image = rng.random((1, 1, 32, 32)).astype("float32")
    drawn = []
    monkeypatch.setattr(features, "_sheets", lambda sheets, path, ax: drawn.extend(sheets))
    plot.feature_maps(net, image[0], tmp_path / "a.png")
    x, expected = image, []
    for layer in net:
        x = layer(x)
        if type(layer).__name__ == "MaxPool2d":
            maps = x[0].copy()
            low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
            expected.append((maps - low) / np.maximum(high - low, 1e-12))
    net.forget()
    assert len(drawn) == 3
    for (_, tiles, _), want in zip(drawn[1:], expected, strict=True):
        np.testing.assert_allclose(tiles, want, atol=1e-5)


def test_filters_of_weights(tmp_path, rng):
    for shape in ((5, 1, 3, 3), (8, 3, 7, 7), (4, 6, 5, 5), (200, 1, 3, 3)):
        pixels(plot.filters(rng.standard_normal(shape), tmp_path / "a.png"))
    with pytest.raises(ShapeError, match=r"expected \(F, C, KH, KW\)"):
        plot.filters(rng.standard_normal((3, 3)), tmp_path / "b.png")


@pytest.mark.parametrize(
    ("shape", "heading", "drawn"),
    [
        ((64, 1, 3, 3), "64 filters of 1x3x3", (64, 3, 3)),
        ((96, 1, 3, 3), "96 filters of 1x3x3, the first 64", (64, 3, 3)),
        ((96, 3, 7, 7), "96 filters of 3x7x7, the first 64", (64, 7, 7, 3)),
        ((16, 6, 5, 5), "16 filters of 6x5x5, the first 10", (60, 5, 5)),
        ((3, 20, 5, 5), "3 filters of 20x5x5, of each the first 16 channels", (48, 5, 5)),
        ((120, 20, 5, 5), "120 filters of 20x5x5, the first 4, of each the first 16 channels", (64, 5, 5)),
        ((1, 1, 5, 5), "1 filter of 1x5x5", (1, 5, 5)),
    ],
)
def test_filters_say_what_they_leave_out(tmp_path, rng, monkeypatch, shape, heading, drawn):
    from xpcnn.plot import features

    sheets = []
    monkeypatch.setattr(features, "_sheets", lambda given, path, ax: sheets.extend(given))
    plot.filters(rng.standard_normal(shape), tmp_path / "a.png")
    [(text, tiles, columns)] = sheets
    assert text == heading
    assert tiles.shape == drawn
    across = 1 if shape[1] in (1, 3) else min(shape[1], 16)
    assert columns % across == 0  # a row of tiles holds whole filters


def test_filters_of_a_parameter(tmp_path):
    layer = nn.Conv2d(1, 4, 3)
    by_layer, by_parameter = (plot.filters(each, tmp_path / f"{i}.png") for i, each in enumerate((layer, layer.weight)))
    assert np.array_equal(pixels(by_layer), pixels(by_parameter))


def test_maps_say_what_they_leave_out(tmp_path, rng, monkeypatch):
    from xpcnn.plot import features

    sheets = []
    monkeypatch.setattr(features, "_sheets", lambda given, path, ax: sheets.extend(given))
    net = nn.Sequential(nn.Conv2d(1, 70, 3))
    plot.feature_maps(net, rng.random((1, 1, 6, 6)).astype("float32"), tmp_path / "a.png")
    assert sheets[1][0] == "after layer 0, Conv2d: 70x4x4, the first 64 channels"
    assert len(sheets[1][1]) == 64


def test_mosaic_puts_each_tile_in_its_place(rng):
    tiles = rng.random((5, 2, 3))
    sheet = mosaic(tiles, columns=3, gap=1, fill=9.0)
    assert sheet.shape == (5, 11)
    assert np.array_equal(sheet[3:5, 4:7], tiles[4])
    assert (sheet[2] == 9).all()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="expected to write it"):
        plot.history(a_history(), tmp_path / "missing" / "a.png")
    with pytest.raises(DataError, match="expected to write it"):
        plot.history(a_history(), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# --- figures, and axes of the user's own ---------------------------------------------------------------------------


def drawings(rng):
    """Return each of the functions with what it draws."""
    labels = rng.integers(0, 10, 40)
    xpcnn.manual_seed(0)
    net = models.create("tiny")
    image = rng.random((1, 1, 28, 28)).astype("float32")
    return {
        "history": lambda *path, **options: plot.history(a_history(), *path, **options),
        "predictions": lambda *path, **options: plot.predictions(
            rng.random((40, 8, 8)), labels, said(rng, labels, [3]), *path, **options
        ),
        "confusion_matrix": lambda *path, **options: plot.confusion_matrix(labels, labels[::-1], *path, **options),
        "filters": lambda *path, **options: plot.filters(net, *path, **options),
        "feature_maps": lambda *path, **options: plot.feature_maps(net, image, *path, **options),
        "saliency": lambda *path, **options: plot.saliency(net, image, *path, **options),
        "grad_cam": lambda *path, **options: plot.grad_cam(net, image, *path, **options),
    }


NAMES = ["history", "predictions", "confusion_matrix", "filters", "feature_maps", "saliency", "grad_cam"]


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_comes_back_and_the_file_is_its_picture(tmp_path, name):
    from matplotlib.figure import Figure

    def drawn(*path):
        return drawings(np.random.default_rng(0))[name](*path)

    figure = drawn(tmp_path / "a.png")
    assert isinstance(figure, Figure)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(figure))
    np.testing.assert_array_equal(pixels(drawn()), pixels(figure))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    figure.set_size_inches(3, 2)  # the user's, to go on with
    assert pixels(pickle.loads(pickle.dumps(figure))).shape[:2] == (200, 300)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(8, 4), (3, 9)])
def test_drawn_into_axes_of_the_user_s(tmp_path, rng, name, size):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    left, right = figure.subplots(1, 2)
    box = right.get_window_extent()
    found = drawings(rng)[name](tmp_path / "a.png", ax=right)
    assert found is figure
    picture = pixels(tmp_path / "a.png")
    assert picture.shape[:2] == (size[1] * 100, size[0] * 100)
    inside = picture[:, int(box.x0) + 2 : int(box.x1) - 2]
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) > 5  # something is there
    blank = Figure(figsize=size)
    blank.subplots(1, 2)[1].set_axis_off()
    stays = int(left.get_window_extent().x1) - 5
    blank.savefig(tmp_path / "b.png", dpi=100)
    if name not in ("history", "confusion_matrix"):  # their labels stand beside the axes
        np.testing.assert_array_equal(picture[:, :stays], pixels(tmp_path / "b.png")[:, :stays])


def test_heat_lies_where_the_network_looks(tmp_path):
    """A network whose score is the upper left quarter: the rest of the heat is none."""

    class Corner(nn.Module):
        def forward(self, x):
            self.keep(x.shape)
            return x[:, :, :8, :8].sum(axis=(2, 3))

        def backward(self, dy):
            dx = np.zeros(self.take(), dy.dtype)
            dx[:, :, :8, :8] = dy[:, :, None, None]
            return dx

    net = nn.Sequential(nn.Conv2d(1, 2, 1), Corner())
    net[0].weight.data[...] = 1
    images = np.full((3, 1, 16, 16), 0.5, "float32")
    images[:, 0, 0, 0] = 1  # so that there is a lightest and a darkest
    picture = pixels(plot.saliency(net, images, tmp_path / "a.png", target=0)).astype(int)
    tile = picture[-140:-12, 17:147]  # the heat of the first image
    bright, dark = tile[15:50, 15:50].mean(axis=(0, 1)), tile[90:120, 90:120].mean(axis=(0, 1))
    assert bright.sum() > dark.sum() + 150
    with pytest.raises(ShapeError, match=r"images: expected \(N, C, H, W\) or \(C, H, W\) with C of 1 or 3"):
        plot.saliency(net, np.zeros((3, 2, 8, 8), "float32"))


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_heat_of_any_images(rng, count, channels):
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 10, 3))
    images = rng.random((count, channels, 16, 12)).astype("float32")
    one, each = (
        plot.saliency(net, images, target=np.int64(2)),
        plot.grad_cam(net, images, target=[1] * count, layer="1"),
    )
    for picture in (plot.saliency(net, images), one, each):
        assert pixels(picture).shape[1] == round(min(count, 8) * 130 + 30)


def test_a_history_in_two_axes(rng):
    from matplotlib.figure import Figure

    pair = Figure().subplots(1, 2)
    plot.history(a_history(), ax=pair, title="a title")
    assert [axes.get_ylabel() for axes in pair] == ["loss", "accuracy"]
    assert pair[0].get_title() == "a title"
    only = Figure().subplots()
    a_history().plot(ax=only)
    assert only.get_ylabel() == "loss"
    with pytest.raises(ConfigError, match="ax: expected axes, or a pair for loss and accuracy, got 3"):
        plot.history(a_history(), ax=Figure().subplots(1, 3))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_axes(rng, name):
    with pytest.raises(ConfigError, match="ax: expected axes of matplotlib, got str"):
        drawings(rng)[name](ax="here")


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r'pip install "\.\[cli\]"'):
        plot.history(a_history(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_pyplot_is_not_touched(tmp_path):
    code = (
        "import sys, numpy as np; from xpcnn import plot; "
        "plot.confusion_matrix([0, 1], [1, 1], sys.argv[1]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {**os.environ, "MPLBACKEND": "tkagg"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_agg_draws_whatever_a_notebook_has_left_in_the_environment(tmp_path):
    code = (
        "import os, sys; from xpcnn import plot; plot.confusion_matrix([0, 1], [1, 1], sys.argv[1]); "
        "assert os.environ['MPLBACKEND'] == 'a-notebook-s'"
    )
    environment = {**os.environ, "MPLBACKEND": "a-notebook-s"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "a.png").stat().st_size


def test_names_of_classes_in_a_confusion_matrix_are_one_clear_error():
    with pytest.raises(DTypeError, match=r"^predicted: expected numbers, got <U3; names .* by classes\.index\(name\)$"):
        plot.confusion_matrix([0, 1], ["cat", "dog"], classes=["cat", "dog"])
