"""Digits as people photograph and draw them are read, or refused with the true reason."""

import numpy as np
import pytest

import xpcnn
from xpcnn import recipes
from xpcnn.datasets import load_image, load_mnist
from xpcnn.datasets.components import connected_components
from xpcnn.errors import DataError
from xpcnn.training import Trainer

from .photographs import DISTORTIONS, INK, PAPER, coverage

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="session")
def classify():
    """Give what a LeNet-5 of 266 steps says of a list of images; of 1,000 test digits it reads 98 %."""
    xpcnn.manual_seed(0)
    recipe = recipes.find("lenet5-fast")
    model = recipe.create_model()
    optimizer = recipe.optimizer(model)
    loader = recipe.train_loader(load_mnist()[0].subset(slice(0, 25_600)), "mnist")
    schedule = recipe.schedule(optimizer, len(loader))
    Trainer(model, optimizer, recipe.create_criterion(), schedule=schedule).fit(loader)
    model.eval()
    return lambda images: recipes.probabilities(model, recipe.transforms["mnist"](np.stack(images))).argmax(axis=1)


def saved(picture, tmp_path, **options):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path, compress_level=1, **options)
    return path


@pytest.mark.parametrize("distort", DISTORTIONS, ids=lambda each: each.__name__)
def test_a_hundred_digits(tmp_path, classify, rng, distort):
    test = load_mnist()[1]
    read, truth, reasons = [], [], []
    for digit, label in zip(test.images[:100], test.labels[:100], strict=True):
        try:
            read.append(load_image(saved(distort(coverage(digit, rng), rng), tmp_path)))
            truth.append(label)
        except DataError as error:
            reasons.append(str(error))
    right = int((classify(read) == truth).sum())
    assert right >= 95, reasons
    assert len(read) - right <= 2


@pytest.mark.parametrize("kind", ["white", "blurred", "jpeg", "grey"])
def test_blank_paper_holds_no_digit(tmp_path, rng, kind):
    for i in range(40):
        picture = np.full((60, 90, 3), rng.uniform(30, 230)) + rng.normal(0, rng.uniform(1, 15), (60, 90, 3))
        if kind == "blurred":
            picture = (picture + np.roll(picture, 1, 0) + np.roll(picture, 1, 1)) / 3
        pixels = np.clip(picture, 0, 255).astype(np.uint8)
        path = tmp_path / (f"{i}.jpg" if kind == "jpeg" else f"{i}.png")
        Image.fromarray(pixels[..., 0] if kind == "grey" else pixels).save(path)
        with pytest.raises(DataError, match=r"no digit found: .*(noise|speck|more than one thing)"):
            load_image(path)


def test_a_refusal_says_why(tmp_path, rng):
    one, two = (coverage(load_mnist()[1].images[i], rng, 80) for i in (0, 1))
    apart = np.concatenate([one, np.zeros((80, 60), np.float32), two], axis=1)
    dot = np.zeros((100, 100), np.float32)
    dot[50, 50] = 1
    edge = np.zeros((100, 100), np.float32)
    edge[92:, 20:58] = 1
    for ink, reason in ((apart, "more than one thing"), (dot, "larger than a speck"), (edge, "runs into the border")):
        pixels = PAPER + (INK - PAPER) * ink[..., None] + rng.normal(0, 2, (*ink.shape, 3)).round()
        with pytest.raises(DataError, match=f"picture.png: no digit found: .*{reason}"):
            load_image(saved(np.clip(pixels, 0, 255).astype(np.uint8), tmp_path))


def test_components_are_those_of_a_flood(rng):
    for share in (0.2, 0.4, 0.6):
        mask = rng.random((23, 31)) < share
        found = connected_components(mask)
        assert ((found.labels > 0) == mask).all()
        left, count = set(map(tuple, np.argwhere(mask))), 0
        while left:
            todo = [left.pop()]
            pixels = []
            while todo:
                y, x = todo.pop()
                pixels.append((y, x))
                around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= around
                todo += around
            ys, xs = np.transpose(pixels)
            (number,) = set(found.labels[ys, xs].tolist())
            assert found.boxes[number - 1].tolist() == [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
            assert found.sums(mask)[number - 1] == len(pixels)
            count += 1
        assert len(found) == count
    assert len(connected_components(np.zeros((3, 4), bool))) == 0
