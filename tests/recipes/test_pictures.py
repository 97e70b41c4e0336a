"""Recipes on one's own pictures: parts, sizes, classes and channels as the folder has them, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from xpcnn import recipes
from xpcnn.cli import main
from xpcnn.data import Compose
from xpcnn.datasets import Dataset, LazyImages, load_mnist
from xpcnn.errors import ConfigError, DataError
from xpcnn.recipes.pictures import Pictures, augmentation, hold_out, load_pictures, sized
from xpcnn.recipes.table import RECIPES

Image = pytest.importorskip("PIL.Image")
SHADES = {"dark": (40, 20, 30), "green": (20, 200, 40), "light": (220, 200, 230)}


def write(folder, names=tuple(SHADES), count=10, size=(20, 24), grey=False, seed=0):
    """Write noisy pictures, each class of a colour of its own."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(SHADES[name]) + rng.integers(-20, 20, (*size, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            (picture.convert("L") if grey else picture).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give 30 pictures of 32x32 in three classes; tests must not change it."""
    return write(tmp_path_factory.mktemp("pictures") / "set", size=(32, 32))


def test_a_folder_is_trained_on_and_read_back(backend, folder, tmp_path):
    done = recipes.run("lenet5", data=str(folder), epochs=8, batch_size=8, out=tmp_path / "run")
    assert done.kind == "pictures"
    assert (len(done.test), done.test.classes) == (6, list(SHADES))
    assert done.metrics.accuracy == 1
    assert done.model.eval()(backend.zeros((1, 3, 32, 32), "float32")).shape == (1, 3)
    about = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (about["names"], about["classes"], about["image_shape"]) == (list(SHADES), 3, [3, 32, 32])
    again = recipes.load(tmp_path / "run")
    assert again.metrics == done.metrics
    predictor = recipes.load_predictor(tmp_path / "run")
    assert predictor.classes == list(SHADES)
    assert predictor(folder / "green" / "0.png")[0].label == "green"


def test_the_same_run_resumed(backend, folder, tmp_path):
    from tests.recipes.test_runs import StopAt

    options = {"data": str(folder), "epochs": 2, "batch_size": 8, "augment": "photo", "seed": 3}
    whole = recipes.run("lenet5", **options)
    with pytest.raises(KeyboardInterrupt):
        recipes.run("lenet5", **options, out=tmp_path / "run", callbacks=[StopAt(4)])
    resumed = recipes.run(out=tmp_path / "run", resume=True)
    assert list(resumed.history.steps["loss"]) == list(whole.history.steps["loss"])
    assert resumed.settings.augment == "photo"
    with pytest.raises(ConfigError, match=r"augment: expected 'photo' as the run in .* has it, got 'shift'"):
        recipes.run(out=tmp_path / "run", resume=True, augment="shift")


def test_grey_pictures_of_several_sizes(backend, tmp_path):
    root = write(tmp_path / "set", ("dark", "light"), grey=True)
    write(root, ("green",), size=(50, 31), grey=True)
    done = recipes.run("conv8", data=str(root), epochs=1, batch_size=4)
    assert done.test.images.shape[1:] == (28, 28)
    assert recipes.run("lenet5", data=str(root), epochs=1, image_size=32).test.images.shape[1:] == (32, 32)
    assert recipes.run("three-layer", data=str(root), epochs=1, image_size=12).test.images.shape[1:] == (12, 12)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_built_to_the_pictures(backend, name, folder, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", replace(RECIPES["tiny"], steps_per_epoch=3))  # of 2,000, which show no more
    done = recipes.run(name, data=str(folder), epochs=1, batch_size=8, image_size=20)
    assert done.evaluation.probabilities.shape == (6, 3)
    assert done.model._sample_shape == (3, 20, 20)


def test_a_last_batch_of_one_image_is_left_out(backend, folder, tmp_path):
    """Batch norm makes nothing of it: 24 images in batches of 23."""
    done = recipes.run("lenet5", data=str(folder), epochs=1, batch_size=23)
    assert len(done.history.steps["loss"]) == 1


def test_what_cannot_be_built_leaves_no_folder(folder, tmp_path):
    with pytest.raises(
        ConfigError, match=r"recipe lenet5 cannot be built to RGB images of 4x4: .*; take another recipe"
    ):
        recipes.run("lenet5", data=str(folder), image_size=4, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_are_taken_as_they_are(backend, tmp_path):
    for part, count, seed in (("train", 6, 0), ("val", 3, 1), ("test", 2, 2)):
        write(tmp_path / "set" / part, ("dark", "light"), count, seed=seed)
    train, validation, test = load_pictures(tmp_path / "set", Pictures(28))
    assert [len(each) for each in (train, validation, test)] == [12, 6, 4]
    assert train.images.shape[1:] == (3, 20, 24), "a common size is kept"
    done = recipes.run("three-layer", data=str(tmp_path / "set"), epochs=2, batch_size=4)
    assert len(done.test) == 4
    assert len(done.history.epochs["validation_loss"]) == 2


def test_large_sets_stay_on_the_disk(backend, folder, monkeypatch):
    whole = recipes.run("lenet5", data=str(folder), epochs=1, batch_size=8)
    monkeypatch.setattr("xpcnn.recipes.pictures._IN_MEMORY", 1000)
    lazy = recipes.run("lenet5", data=str(folder), epochs=1, batch_size=8)
    assert isinstance(lazy.test.images, LazyImages)
    assert list(lazy.history.steps["loss"]) == list(whole.history.steps["loss"])
    assert lazy.metrics == whole.metrics


def test_each_class_is_held_out_by_its_share(rng):
    labels = np.repeat([0, 1, 2], [40, 20, 3])
    dataset = Dataset(np.arange(63).reshape(63, 1, 1), labels, ["a", "b", "c"])
    kept, held = hold_out(dataset, 0.2)
    assert np.bincount(held.labels).tolist() == [8, 4, 1]
    assert np.bincount(kept.labels).tolist() == [32, 16, 2]
    assert sorted([*kept.images.ravel(), *held.images.ravel()]) == list(range(63))
    assert kept.labels[:20].tolist() != sorted(kept.labels[:20].tolist()), "the order is drawn"
    np.testing.assert_array_equal(hold_out(dataset, 0.2)[1].images, held.images)
    with pytest.raises(DataError, match="expected two or more images of class 'c'"):
        hold_out(dataset.subset(slice(61)), 0.2)


def test_patience_holds_out_and_stops_with_the_best_weights(backend, folder):
    done = recipes.run("lenet5", data=str(folder), epochs=60, batch_size=8, patience=2)
    losses = list(done.history.epochs["validation_loss"])
    assert len(losses) < 60
    assert min(losses) == min(losses[:-2])
    assert len(done.history.steps["loss"]) == 3 * len(losses), "21 of 30 are trained on"


@pytest.mark.parametrize("name", ["shift", "photo"])
def test_augmented_images_keep_their_form(backend, name, rng):
    for shape in ((28, 28), (3, 40, 24)):
        images = rng.integers(0, 256, (4, *shape), dtype=np.uint8)
        x = backend.to_numpy(Compose(*augmentation(name, shape))(backend.asarray(images)))
        assert x.shape == (4, 1 if len(shape) == 2 else 3, *shape[-2:])
        assert (x.min(), x.max()) >= (0, 0)
        assert x.max() <= 1


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("lenet5", 3, (8, 500)),
        ("lenet5", 32, (8, 125)),
        ("lenet5", 300, (16, 27)),
        ("lenet5", 1000, (32, 16)),
        ("lenet5", 60_000, (128, 2)),
        ("lenet5", 64_000, (128, 1)),
        ("mnist-best", 60_000, (128, 7)),
        ("conv8", 32, (1, 16)),
        ("tiny", 32, (2, 1)),
    ],
)
def test_batches_and_epochs_follow_the_number_of_pictures(name, count, expected):
    recipe = sized(recipes.find(name), count)
    assert (recipe.batch_size, recipe.epochs) == expected
    assert recipe.lr_scale == recipe.batch_size / recipes.find(name).batch_size


def test_other_pictures_are_all_tested_on_by_the_names_of_their_classes(folder, tmp_path, capsys):
    recipes.run("conv8", data=str(folder), epochs=8, out=tmp_path / "run")
    run = str(tmp_path / "run")

    def tested(place):
        assert main(["evaluate", run, "--data", str(place), "--json"]) == 0
        return {row["class"]: (row["images"], row["right"]) for row in json.loads(capsys.readouterr().out)["classes"]}

    own = {"dark": (2, 2), "green": (2, 2), "light": (2, 2)}
    assert tested(folder) == own
    shutil.copytree(folder, tmp_path / "moved")
    assert tested(tmp_path / "moved") == own, "of the others the network has learnt"
    write(tmp_path / "other", ("green", "light"), 5, size=(32, 32), seed=1)
    assert tested(tmp_path / "other") == {"dark": (0, 0), "green": (5, 5), "light": (5, 5)}
    write(tmp_path / "single", ("light",), 1, size=(32, 32), seed=1)
    write(tmp_path / "single", ("green",), 3, size=(32, 32), seed=1)
    assert tested(tmp_path / "single")["light"] == (1, 1)
    write(tmp_path / "strange", ("green",), 3)
    (tmp_path / "strange" / "mauve").symlink_to(tmp_path / "single" / "light")
    assert main(["evaluate", run, "--data", str(tmp_path / "strange")]) == 2
    assert "expected the model's classes, dark, green, light, got also 'mauve'" in capsys.readouterr().err


def test_what_is_asked_for_is_kept_and_the_rest_is_recorded(folder, tmp_path):
    done = recipes.run("tiny", data=str(folder), epochs=1, out=tmp_path / "run")
    assert (done.settings.epochs, done.settings.batch_size) == (1, 2)
    done = recipes.run("lenet5", data=str(folder), epochs=2, batch_size=24, out=tmp_path / "two")
    assert len(done.history.steps["loss"]) == 2
    assert done.settings.lr is None
    assert list(done.history.steps["lr"]) == [0.1, 0.1]
    again = recipes.run(out=tmp_path / "two", resume=True)
    assert (again.settings.epochs, again.settings.batch_size) == (2, 24)


def test_the_learning_rate_goes_with_the_batch(folder, tmp_path):
    options = {"data": str(folder), "epochs": 1}
    done = recipes.run("lenet5", **options, out=tmp_path / "run")
    assert done.settings.lr == pytest.approx(0.1 * 8 / 128)
    assert set(done.history.steps["lr"]) == {done.settings.lr}
    assert recipes.run(out=tmp_path / "run", resume=True).settings == done.settings
    assert recipes.run("lenet5", **options, lr=0.3).settings.lr == 0.3


def test_arrays_in_a_file(backend, tmp_path):
    train, test = load_mnist()
    np.savez(
        tmp_path / "set.npz",
        x_train=train.images[:40, 4:24, 4:24],
        y_train=train.labels[:40],
        x_test=test.images[:9, 4:24, 4:24],
        y_test=test.labels[:9],
    )
    done = recipes.run("three-layer", data=str(tmp_path / "set.npz"), epochs=1)
    assert (len(done.test), done.test.images.shape[1:]) == (9, (20, 20))


def test_the_command_line(folder, tmp_path, capsys):
    broken = tmp_path / "set"
    write(broken, ("dark", "light"), 5)
    (broken / "dark" / "page.png").write_text("<html>")
    argv = [
        "train",
        "lenet5",
        "--data",
        str(broken),
        "--epochs",
        "1",
        "--image-size",
        "32",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(argv) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert "1 of 11 pictures cannot be read: dark/page.png: no picture: a web page (HTML)" in text
    assert main([*argv, "--skip-broken", "--augment", "photo", "--patience", "3"]) == 0
    out = capsys.readouterr()
    assert "test accuracy: " in out.out
    assert "no pictures" not in out.err
    assert {each.name for each in (tmp_path / "run").iterdir()} >= {"predictions.png", "confusion.png", "curves.png"}
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "light" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "run"), str(broken / "light" / "0.png")]) == 0
    assert "light" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size: expected an integer of 1 or more, got 0"),
        ({"patience": True}, "patience: expected an integer of 1 or more, got True"),
        ({"augment": "wild"}, "augment: expected shift or photo, got 'wild'"),
        ({"image_size": 20}, "image_size: expected it with a folder of pictures alone, got it with mnist"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        recipes.run("lenet5", **options)


def test_folders_that_are_no_set(tmp_path):
    (tmp_path / "set" / "only").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"expected pictures .* of every class, got none of 'only': the folder is empty"
    ):
        recipes.run("lenet5", data=str(tmp_path / "set"))
    (tmp_path / "set" / "only").rmdir()
    with pytest.raises(DataError, match=r"a folder with one sub-folder of pictures a class, .*; the folder is empty"):
        recipes.run("lenet5", data=str(tmp_path / "set"))
