"""The three-stage notebook's mistakes: sorted data, unscaled pixels, wrong labels, an undefined name, lost images."""

import numpy as np
import pytest

from xpcnn import functional as F
from xpcnn import models, nn, optim, recipes
from xpcnn.data import DataLoader
from xpcnn.datasets import load_mnist
from xpcnn.training import Trainer


class Oracle(nn.Module):
    """Reads the label off the first pixel: right on every image, whatever the order."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 10)

    def forward(self, x):
        xp = self.backend.xp
        label = x[:, 0, 0, 0] * 10.0
        classes = xp.arange(10, dtype="float32")
        self.keep(x.shape)
        return -20.0 * xp.abs(label[:, None] - classes[None, :])

    def backward(self, dy):
        return self.backend.zeros(self.take(), dy.dtype)


def labelled(count, rng):
    """Images whose first pixel says what they are, sorted by class."""
    labels = np.sort(rng.integers(0, 10, count))
    images = np.zeros((count, 4, 4), np.float32)
    images[:, 0, 0] = labels / 10
    return images, labels


def test_a_set_sorted_by_class_is_shuffled(backend):
    images, labels = np.zeros((1000, 4, 4), np.uint8), np.repeat(np.arange(10), 100)
    loader = DataLoader(images, labels, 100, seed=0)
    epochs = [[backend.to_numpy(y) for _, y in loader] for _ in range(2)]
    for batch in epochs[0]:
        assert len(np.unique(batch)) == 10
    assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))


def test_deep3_tests_on_all_classes_it_trained_on():
    splits = recipes.find("deep3").split(*load_mnist())
    for part in (splits.train, splits.test):
        shares = np.bincount(part.labels, minlength=10) / len(part)
        assert shares.min() > 0.08
        assert (np.diff(part.labels[:1000].astype(int)) < 0).any()


def test_bytes_are_scaled(backend):
    images = np.full((4, 28, 28), 255, np.uint8)
    for name in recipes.names():
        recipe = recipes.find(name)
        x = backend.to_numpy(recipe.transforms["mnist"](backend.asarray(images)))
        assert np.abs(x).max() < 4, name


def test_deep3_starts_with_a_finite_loss(backend):
    recipe = recipes.find("deep3")
    model = recipe.create_model()
    x, labels = next(iter(recipe.train_loader(load_mnist()[0].subset(slice(32)), "mnist")))
    loss = float(backend.to_numpy(recipe.create_criterion()(model(x), labels)))
    assert 1.0 < loss < 10.0


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_logits_of_unscaled_pixels_overflow_nothing(backend, rng, size):
    logits = backend.asarray((rng.standard_normal((8, 10)) * size).astype("float32"))
    labels = backend.asarray(rng.integers(0, 10, 8))
    loss, dlogits = F.cross_entropy(logits, labels)
    assert np.isfinite(backend.to_numpy(loss))
    assert np.isfinite(backend.to_numpy(dlogits)).all()
    np.testing.assert_allclose(backend.to_numpy(F.softmax(logits)).sum(axis=1), 1.0, rtol=1e-6)


def test_accuracy_is_scored_against_the_batch_s_own_labels(backend, rng):
    """Every batch but the first would score low against the set's first labels, which are all 0 here."""
    images, labels = labelled(64, rng)
    model = Oracle()
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss())
    history = trainer.fit(DataLoader(images, labels, 8, seed=1), epochs=1)
    assert list(history.steps["accuracy"]) == [1.0] * 8
    assert history.epochs["accuracy"] == [1.0]


def test_the_test_loop_runs_and_counts_every_image(backend, rng):
    images, labels = labelled(21, rng)
    model = Oracle()
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss())
    metrics = trainer.evaluate(DataLoader(images, labels, 8, shuffle=False))
    assert (metrics.accuracy, metrics.count) == (1.0, 21)
    wrong = labels.copy()
    wrong[20] = (wrong[20] + 1) % 10  # in the last, partial batch
    assert trainer.evaluate(DataLoader(images, wrong, 8, shuffle=False)).accuracy == 20 / 21


def test_the_last_partial_batch_is_trained_on(backend, rng):
    images, labels = rng.integers(0, 256, (21, 28, 28), dtype=np.uint8), rng.integers(0, 10, 21)
    loader = DataLoader(images, labels, 8, seed=0)
    assert [x.shape[0] for x, _ in loader] == [8, 8, 5]
    model = models.create("conv8")
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss())
    trainer.fit(loader, epochs=1)
    assert trainer.step == 3
    seen = sorted(int(y) for _, batch in loader for y in backend.to_numpy(batch))
    assert seen == sorted(labels.tolist())


def test_deep3_drops_no_image():
    recipe = recipes.find("deep3")
    loader = recipe.train_loader(recipe.split(*load_mnist()).train, "mnist")
    assert len(loader) == 1563  # 1562 full batches and one of 16
