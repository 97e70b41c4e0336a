"""A model file is used where it lies, without the run that made it."""

import json
import re
import shutil

import numpy as np
import pytest

from xpcnn import nn, optim, recipes
from xpcnn.cli import main
from xpcnn.data import DataLoader, Normalize
from xpcnn.datasets import load_folder, load_mnist
from xpcnn.training import Predictor, Trainer, load_model, save_model, save_parameters

Image = pytest.importorskip("PIL.Image")
COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 40), "red": (200, 30, 40)}


def printed(capsys, *argv, status=0):
    assert main([str(each) for each in argv]) == status
    streams = capsys.readouterr()
    return streams.out if status == 0 else streams.err


@pytest.fixture
def model_file(run_folder, tmp_path):
    """Give the model file of a run, taken elsewhere."""
    shutil.copy(run_folder / "model.safetensors", tmp_path / "digits.safetensors")
    return tmp_path / "digits.safetensors"


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(255 - np.pad(load_mnist()[1].images[7], 20)).resize((150, 150)).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def write_pictures(folder, names=("blue", "green", "red"), count=6, size=(40, 30), seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(COLOURS[name]) + rng.integers(-30, 30, (*size, 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Give a model file of a network that tells colours apart."""
    folder = tmp_path_factory.mktemp("colours")
    train = load_folder(write_pictures(folder / "train"), size=8)
    model = nn.Sequential(nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(3, 3))
    optimizer = optim.Adam(model.parameters(), 0.1)
    transform = Normalize((0.5, 0.4, 0.3), 0.25)
    Trainer(model, optimizer, nn.CrossEntropyLoss()).fit(
        DataLoader(train.images, train.labels, 6, transform=transform), epochs=30
    )
    save_model(model, folder / "colours.safetensors", classes=train.classes, transform=transform)
    return folder / "colours.safetensors"


def test_what_a_run_leaves_stands_alone(run_folder, model_file, photo, digits, capsys):
    model, recipe, _, kind = recipes.load_model(run_folder)
    predictor = load_model(model_file)
    assert repr(predictor.model) == repr(model)
    assert repr(predictor.transform) == repr(recipe.transforms[kind])
    assert predictor.stored.digits
    assert printed(capsys, "predict", model_file, photo) == printed(capsys, "predict", run_folder, photo)
    from_run = printed(capsys, "evaluate", run_folder).splitlines()
    from_file = printed(capsys, "evaluate", model_file, "--data", digits).splitlines()
    assert from_file[1:] == from_run[1:]
    assert from_file[0] == from_run[0].replace("lenet5:", "digits.safetensors:")


def test_a_run_of_before_there_were_model_files(run_folder, tmp_path, photo, capsys):
    shutil.copytree(run_folder, tmp_path / "old")
    save_parameters(load_model(run_folder / "model.safetensors").model, tmp_path / "old" / "model.safetensors")
    assert printed(capsys, "predict", tmp_path / "old", photo) == printed(capsys, "predict", run_folder, photo)
    assert printed(capsys, "evaluate", tmp_path / "old") == printed(capsys, "evaluate", run_folder)
    error = printed(capsys, "predict", tmp_path / "old" / "model.safetensors", photo, status=2)
    assert "expected a model file, got parameters without an architecture" in error


def test_names_of_ones_own_pictures(colours, tmp_path, capsys):
    pictures = write_pictures(tmp_path / "new", count=1, size=(100, 50), seed=1)
    Image.open(pictures / "red" / "0.png").convert("RGBA").save(tmp_path / "alpha.png")
    paths = [*(pictures / name / "0.png" for name in COLOURS), tmp_path / "alpha.png"]
    lines = printed(capsys, "predict", colours, *paths).splitlines()
    answers = [
        re.fullmatch(r"(\S+) +(\w+)  ([01]\.\d{4})  \(else \w+ 0\.\d{4}, \w+ 0\.\d{4}\)", line) for line in lines
    ]
    assert [answer[2] for answer in answers] == [*COLOURS, "red"]
    assert all(float(answer[3]) > 0.5 for answer in answers)


def test_evaluate_on_a_folder_of_pictures(colours, tmp_path, capsys):
    folder = write_pictures(tmp_path / "some", names=("red", "green"), size=(9, 9), seed=2)
    shutil.copy(folder / "red" / "0.png", folder / "green" / "red.png")
    text = printed(capsys, "evaluate", colours, "--data", folder)
    rows = re.findall(r"^ *(blue|green|red)  +(\d+)  +(\d+)  +([01]\.\d{4})$", text, re.MULTILINE)
    assert rows == [("blue", "0", "0", "0.0000"), ("green", "7", "6", "0.8571"), ("red", "6", "6", "1.0000")]
    assert text.splitlines()[-1] == f"test accuracy: {12 / 13:.4f}"
    predictor = load_model(colours)
    test = recipes.load_test_set(str(folder), predictor)
    assert test.images.shape[1:] == (3, 8, 8)
    shares = predictor.probabilities(test.images)
    loss = -np.log(shares[range(13), test.labels].astype(float)).mean()
    assert f"13 test images, loss {loss:.4f}" in text
    (tmp_path / "parts").mkdir()
    shutil.copytree(folder, tmp_path / "parts" / "test")
    write_pictures(tmp_path / "parts" / "train")
    assert printed(capsys, "evaluate", colours, "--data", tmp_path / "parts") == text


def test_json_says_what_the_lines_say(colours, model_file, photo, digits, tmp_path, capsys):
    folder = write_pictures(tmp_path / "some", names=("red", "green"), size=(9, 9), seed=2)
    path = folder / "red" / "0.png"
    for model, image in ((colours, path), (model_file, photo)):
        (found,) = json.loads(printed(capsys, "predict", model, image, "--json"))
        (expected,) = load_model(model)([image])
        assert (found["image"], found["label"]) == (str(image), expected.label)
        assert found["probability"] == found["probabilities"][str(expected.label)] == float(expected.probability)
        assert len(found["probabilities"]) == len(expected.probabilities)
        assert sum(found["probabilities"].values()) == pytest.approx(1)
    text = printed(capsys, "evaluate", colours, "--data", folder)
    found = json.loads(printed(capsys, "evaluate", colours, "--data", folder, "--json"))
    assert f"{found['model']}: {found['images']} test images, loss {found['loss']:.4f}\n" in text
    assert text.endswith(f"test accuracy: {found['accuracy']:.4f}\n")
    rows = [(row["class"], row["images"], row["right"], row["accuracy"]) for row in found["classes"]]
    assert rows == [("blue", 0, 0, None), ("green", 6, 6, 1.0), ("red", 6, 6, 1.0)]
    assert json.loads(printed(capsys, "evaluate", model_file, "--data", digits, "--json"))["classes"][0]["class"] == "0"


def test_mistakes(colours, model_file, tmp_path, photo, digits, capsys):
    def says(*argv):
        error = printed(capsys, *argv, status=2)
        assert error.count("\n") == 1
        return error

    assert "data: expected the data to test on, such as a folder" in says("evaluate", colours)
    strange = write_pictures(tmp_path / "strange")
    (strange / "blue").rename(strange / "mauve")
    assert "expected the model's classes, blue, green, red, got also 'mauve'" in says(
        "evaluate", colours, "--data", strange
    )
    assert "data: expected labels below 3, as many as the model knows, got 9" in says(
        "evaluate", colours, "--data", digits
    )
    assert "seven.png: expected a safetensors file, got a PNG picture" in says("predict", photo, photo)
    assert "digits.safetensors: not a PNG or JPEG" in says("predict", model_file, model_file)
    assert "digits.safetensors: no picture" in says("predict", colours, model_file)
    assert "expected one of numpy" in says("predict", colours, photo, "--backend", "tpu")


def test_on_another_backend(colours, photo, capsys):
    assert printed(capsys, "predict", colours, photo, "--backend", "fake") == printed(capsys, "predict", colours, photo)
    assert isinstance(recipes.load_predictor(colours, backend="fake"), Predictor)
