"""A network as an estimator: learns, and works in all that scikit-learn builds of estimators."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from xpcnn import models, nn, optim, random  # noqa: E402
from xpcnn.data import Compose, Normalize, ToFloat  # noqa: E402
from xpcnn.datasets import load_mnist  # noqa: E402
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError  # noqa: E402
from xpcnn.sklearn import CNNClassifier  # noqa: E402
from xpcnn.training import load_model, save_model  # noqa: E402

from .networks import small  # noqa: E402

X, Y = load_digits(return_X_y=True)
TRAIN, TEST = slice(0, 500), slice(500, 700)


def classifier(**options):
    return CNNClassifier(**{"model": small, "epochs": 6, "lr": 0.01, "random_state": 0, **options})


def test_it_learns_digits(backend):
    found = classifier(image_shape=(8, 8), epochs=12).fit(X[TRAIN], Y[TRAIN])
    assert found.score(X[TEST], Y[TEST]) > 0.8  # by chance 0.1
    assert found.model_.backend is backend
    assert found.n_iter_ == len(found.history_.epochs["loss"]) == 12
    assert found.image_shape_ == (8, 8)
    assert not found.model_.training


@pytest.mark.parametrize("name", ["lenet5", "tiny", "three-layer", "resnet20"])
def test_networks_by_name_take_small_images(name):
    found = CNNClassifier(name, epochs=1, random_state=0).fit(X[:60], Y[:60])
    assert found.predict_proba(X[:3]).shape == (3, 10)
    size = {"lenet5": (28, 28)}.get(name, (8, 8))  # lenet5 takes 16x16 or more, so smaller images are put into 28x28
    assert found.model_._sample_shape == (1, *size)


def test_rows_images_and_lists_are_the_same():
    rows = X[:80]
    wanted = classifier().fit(rows, Y[:80]).predict_proba(rows)
    for given, options in (
        (rows.reshape(80, 8, 8), {}),
        (rows.reshape(80, 1, 8, 8), {}),
        (rows.reshape(80, 8, 8, 1), {}),
        (rows, {"image_shape": [8, 8]}),
        (rows, {"image_shape": (1, 8, 8)}),
        (rows.tolist(), {}),
        (rows.astype("uint8"), {}),
        (np.asfortranarray(rows), {}),
    ):
        found = classifier(**options).fit(given, Y[:80])
        np.testing.assert_allclose(found.predict_proba(given), wanted, rtol=1e-4, atol=1e-6)


def test_colours_and_layouts():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 3, 6, 5))
    y = (first[:, 0].mean(axis=(1, 2)) > 0).astype(int)
    last = first.transpose(0, 2, 3, 1)
    wanted = classifier().fit(first, y).predict_proba(first)
    for given, shape in (
        (last, None),
        (first.reshape(60, -1), (3, 6, 5)),
        (np.ascontiguousarray(last).reshape(60, -1), (6, 5, 3)),
    ):
        found = classifier(image_shape=shape).fit(given, y)
        np.testing.assert_allclose(found.predict_proba(given), wanted, rtol=1e-4, atol=1e-6)


def test_odd_sizes_are_filled_up_for_networks_of_even_ones(tmp_path):
    images = np.random.default_rng(0).normal(size=(40, 5, 7))
    found = CNNClassifier("lenet5", epochs=1, random_state=0).fit(images, np.arange(40) % 2)
    assert found.model_._sample_shape == (1, 28, 28)
    assert found.image_shape_ == (6, 8)
    assert found.predict(images).shape == (40,)


def test_classes_of_any_kind():
    for names in (np.array(["zero", "one"]), np.array([False, True]), np.array([3.0, -1.0])):
        y = np.asarray(names)[(Y[:80] > 4).astype(int)]
        found = classifier().fit(X[:80], y)
        np.testing.assert_array_equal(found.classes_, np.unique(y))
        assert found.predict(X[:80]).dtype == found.classes_.dtype
        assert found.score(X[:80], y) > 0.8


def test_probabilities_are_float64_and_of_no_batch():
    found = classifier().fit(X[TRAIN], Y[TRAIN])
    whole = found.predict_proba(X)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(found.classes_[whole.argmax(axis=1)], found.predict(X))
    for part in (slice(0, 1), slice(3, 260), slice(1790, 1797)):
        np.testing.assert_allclose(found.predict_proba(X[part]), whole[part], rtol=1e-9, atol=1e-12)
    model = copy.deepcopy(found.model_).to(dtype="float64")
    scaled = (X.astype("float32") - X[TRAIN].mean()) / X[TRAIN].std()
    logits = model(scaled.reshape(-1, 1, 8, 8))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(whole, shares, rtol=1e-4, atol=1e-7)


def test_a_seed_fixes_everything_and_draws_nothing_of_the_library_s(backend):
    state = random.get_state()
    options = {"early_stopping": True, "model": "tiny", "epochs": 2}
    found = [classifier(**options | {"random_state": seed}).fit(X[:90], Y[:90]) for seed in (1, 1, 2)]
    assert random.get_state() == state
    shares = [each.predict_proba(X[:50]) for each in found]
    np.testing.assert_array_equal(shares[0], shares[1])
    assert abs(shares[0] - shares[2]).max() > 1e-3


def test_early_stopping_returns_to_the_best():
    found = classifier(early_stopping=True, validation_fraction=0.3, n_iter_no_change=2, epochs=200, lr=0.05)
    found.fit(X[:200], Y[:200])
    losses = found.history_.epochs["validation_loss"]
    assert found.n_iter_ == len(losses) < 200
    assert found.n_iter_ == int(np.argmin(losses)) + 1 + 2


def test_a_network_of_ones_own_is_copied():
    mine = small((1, 8, 8), 10)
    before = [np.array(parameter.data) for parameter in mine.parameters()]
    estimator = CNNClassifier(mine, epochs=2, random_state=0)
    first = estimator.fit(X[:90], Y[:90]).predict_proba(X)
    second = estimator.fit(X[:90], Y[:90]).predict_proba(X)
    np.testing.assert_array_equal(first, second)
    for parameter, values in zip(mine.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.data, values)
    assert estimator.model is mine
    assert clone(estimator).model is not mine


def test_functions_get_what_they_ask_for():
    asked = []

    def some(num_classes, in_channels=1):
        asked.append((num_classes, in_channels))
        return models.create("resnet20", num_classes=num_classes, in_channels=in_channels)

    CNNClassifier(some, epochs=1).fit(X[:40], Y[:40] % 3)
    CNNClassifier(models.deep3, epochs=1).fit(X[:40], Y[:40] % 3)
    assert asked == [(3, 1)]


def test_optimizers_schedules_and_callbacks(capsys):
    seen = []

    class Watch:
        def on_step(self, trainer):
            seen.append(trainer.optimizer.param_groups[0]["lr"])

    for optimizer in ("adam", "adamw", "sgd", "rmsprop", lambda parameters, lr: optim.Adagrad(parameters, lr)):
        found = classifier(optimizer=optimizer, epochs=1, callbacks=[Watch()]).fit(X[:130], Y[:130])
        assert found.predict(X[:2]).shape == (2,)
    assert seen == [0.01] * 15
    seen.clear()
    schedule = lambda optimizer, steps: optim.InverseTimeLR(optimizer, 1.0 + 0 * steps)  # noqa: E731
    classifier(schedule=schedule, epochs=1, callbacks=[Watch()], verbose=1).fit(X[:130], Y[:130])
    np.testing.assert_allclose(seen, [0.01 / 2, 0.01 / 3, 0.01 / 4])
    assert "loss" in capsys.readouterr().err


def test_a_transform_of_ones_own(tmp_path):
    train = load_mnist()[0]
    images, labels = train.images[:120], train.labels[:120]
    found = classifier(image_transform=Compose(ToFloat(), Normalize(0.1, 0.3)), epochs=2).fit(images, labels)
    rows = found.predict_proba(images.reshape(120, -1)[:5].reshape(5, 28, 28))
    x = ((images[:5, None].astype("float32") / 255 - 0.1) / 0.3).astype("float32")
    logits = found.model_(x).astype(float)
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-6)
    save_model(
        found.model_, tmp_path / "a", classes=found.classes_, transform=found.image_transform_,
        image_shape=found.image_shape_,
    )  # fmt: skip
    predictor = load_model(tmp_path / "a")
    assert [each.label for each in predictor(images)] == found.predict(images).tolist()


# --- what scikit-learn builds of it -----------------------------------------------------------------------------------


def test_in_a_pipeline():
    found = make_pipeline(StandardScaler(), classifier(image_shape=(8, 8))).fit(X[TRAIN], Y[TRAIN])
    assert found.score(X[TEST], Y[TEST]) > 0.6
    found.set_params(cnnclassifier__epochs=1)
    assert found.named_steps["cnnclassifier"].epochs == 1


def test_in_a_grid_search_of_two_processes():
    grid = GridSearchCV(classifier(epochs=3), {"lr": [1e-5, 0.01]}, n_jobs=2, cv=2, error_score="raise")
    grid.fit(X[:200], Y[:200])
    assert grid.best_params_ == {"lr": 0.01}
    alone = GridSearchCV(classifier(epochs=3), {"lr": [1e-5, 0.01]}, cv=2, error_score="raise").fit(X[:200], Y[:200])
    np.testing.assert_allclose(grid.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], atol=0.02)


def test_calibrated_and_cross_validated():
    found = CalibratedClassifierCV(classifier(), cv=2).fit(X[:300], Y[:300])
    assert found.score(X[TEST], Y[TEST]) > 0.6
    np.testing.assert_allclose(found.predict_proba(X[TEST]).sum(axis=1), 1)
    assert cross_val_score(classifier(), X[:300], Y[:300], cv=3).mean() > 0.7


@pytest.mark.parametrize("fitted", [False, True])
def test_copies_and_pickles(tmp_path, fitted):
    import joblib

    found = classifier(epochs=2)
    if fitted:
        found.fit(X[:100], Y[:100])
    joblib.dump(found, tmp_path / "a.joblib")
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), joblib.load(tmp_path / "a.joblib")):
        assert again.get_params() == found.get_params()
        if fitted:
            np.testing.assert_array_equal(again.predict_proba(X), found.predict_proba(X))
    assert clone(found).get_params() == found.get_params()
    assert not hasattr(clone(found), "model_")


def test_frames_and_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X[:80], columns=[f"pixel {i}" for i in range(64)])
    found = classifier(epochs=1).fit(frame, pandas.Series(Y[:80]))
    assert found.feature_names_in_[0] == "pixel 0"
    assert found.predict(frame).shape == (80,)


def test_on_a_backend_by_name():
    found = classifier(backend="fake", epochs=1).fit(X[:60], Y[:60])
    assert found.model_.backend.name == "fake"
    assert isinstance(found.predict_proba(X[:3]), np.ndarray)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"model": "lenet"}, ConfigError, "model: expected one of lenet5, .*a Module or a function, got 'lenet'"),
        ({"model": 3}, ConfigError, "model: expected a name, a Module or a function, got 3"),
        ({"model": lambda shape, classes: None}, ConfigError, "function that returns an nn.Module, got NoneType"),
        ({"model": lambda shape, classes: nn.Flatten()}, ConfigError, "expected a network with parameters"),
        (
            {"model": small((1, 8, 8), 7)},
            ConfigError,
            "expected logits of 10 classes, as y has, got an output of shape",
        ),
        ({"model": small((1, 40, 40), 10)}, ShapeError, "takes no images of shape .*say image_shape=, resize"),
        ({"image_shape": (3, 8)}, ShapeError, "image_shape: expected 64 pixels, as each sample of X has, got"),
        ({"image_shape": 64}, ShapeError, r"image_shape: expected \(H, W\), .*got 64"),
        ({"image_shape": (8, 8, 1, 1)}, ShapeError, "image_shape: expected"),
        ({"epochs": 0}, (ShapeError, ConfigError), "epochs: expected 1 or more, got 0"),
        ({"epochs": 1.5}, (DTypeError, ConfigError), "epochs: expected"),
        ({"batch_size": 1}, (ShapeError, ConfigError), "batch_size: expected 2 or more"),
        ({"lr": -1.0}, ConfigError, "lr: expected"),
        ({"optimizer": "adams"}, ConfigError, "optimizer: expected one of adam, adamw, sgd, rmsprop, or a function"),
        ({"optimizer": lambda parameters, lr: 3}, ConfigError, "expected it to return an optim.Optimizer, got int"),
        ({"schedule": 3}, ConfigError, "schedule: expected"),
        ({"image_transform": lambda batch: batch[:, 0]}, ShapeError, r"image_transform: expected it to return"),
        ({"validation_fraction": 1.5}, ConfigError, "validation_fraction: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_mistakes(options, error, text):
    with pytest.raises(error, match=text):
        classifier(**options).fit(X[:40], Y[:40])


def test_mistakes_of_data():
    with pytest.raises(DataError, match="y: expected two classes or more, got one class"):
        classifier().fit(X[:5], [1] * 5)
    with pytest.raises(DataError, match="X: expected more than 2 samples with early_stopping"):
        classifier(early_stopping=True).fit(X[:2], [0, 1])
    with pytest.raises(ShapeError, match=r"X: expected \(N, D\), \(N, H, W\), .*got \(N, 2, 2, 2, 8\)"):
        classifier().fit(X[:5].reshape(5, 2, 2, 2, 8), [0, 1, 0, 1, 0])
    with pytest.raises(NotFittedError):
        classifier().predict(X)
    found = classifier(epochs=1).fit(X[:20].reshape(20, 8, 8), Y[:20] % 2)
    with pytest.raises(ValueError, match="8"):
        found.predict(X[:20].reshape(20, 4, 16))


def test_the_last_batch_may_be_of_one():
    model = lambda shape, classes: nn.Sequential(  # noqa: E731
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)
    )
    CNNClassifier(model, epochs=1, batch_size=8).fit(X[:17], Y[:17])


def test_without_scikit_learn_it_says_what_to_install():
    code = "import sys\nsys.modules['sklearn'] = None\nfrom xpcnn.sklearn import CNNClassifier"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'ConfigError: xpcnn.sklearn needs scikit-learn, which is not installed: pip install ".[sk' in done.stderr
