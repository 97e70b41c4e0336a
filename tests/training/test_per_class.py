"""Precision, recall and F1 of each class against plain counting, and scikit-learn where it is there."""

import numpy as np
import pytest

from xpcnn import get_backend, nn, optim
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.training import Trainer, class_metrics

from .common import loader, trainer


def counted(labels, predicted, classes):
    rows = []
    for c in range(classes):
        right = sum(1 for a, b in zip(labels, predicted, strict=True) if a == b == c)
        of_it, taken = list(labels).count(c), list(predicted).count(c)
        precision, recall = right / taken if taken else 0.0, right / of_it if of_it else 0.0
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        rows.append((precision, recall, f1, of_it))
    return [tuple(column) for column in zip(*rows, strict=True)]


def drawn(rng, count=200, classes=5):
    labels = rng.integers(0, classes - 1, count)  # the last is only ever said
    return labels, np.where(rng.random(count) < 0.6, labels, rng.integers(0, classes, count))


def test_against_counting(backend, rng):
    labels, said = drawn(rng)
    found = class_metrics(get_backend().asarray(labels), get_backend().asarray(said))
    for mine, other in zip(
        (found.precision, found.recall, found.f1, found.support), counted(labels, said, 5), strict=True
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-12)
    for i, row in enumerate(found.confusion):
        assert row == tuple(int(((labels == i) & (said == j)).sum()) for j in range(5))


@pytest.mark.parametrize("average", ["macro", "weighted", None])
def test_against_scikit_learn(rng, average):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, said = drawn(rng, classes=7)
    expected = metrics.precision_recall_fscore_support(labels, said, average=average, zero_division=0)
    found = class_metrics(labels, said)
    mine = getattr(found, average) if average else (found.precision, found.recall, found.f1, found.support)
    for a, b in zip(mine, expected, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_scores_and_one_hot_rows(rng):
    labels, said = drawn(rng)
    assert class_metrics(np.eye(5)[labels], np.eye(5)[said]) == class_metrics(labels.tolist(), said.tolist())
    assert len(class_metrics(labels, np.eye(9)[said]).support) == 9


def test_as_a_table():
    found = class_metrics([0, 0, 1], [0, 1, 1], classes=["cat", "dog & co"])
    assert str(found).splitlines() == [
        "class          precision  recall      f1  support",
        "cat               1.0000  0.5000  0.6667        2",
        "dog & co          0.5000  1.0000  0.6667        1",
        "macro mean        0.7500  0.7500  0.6667        3",
        "weighted mean     0.8333  0.6667  0.6667        3",
    ]
    assert "<td>dog &amp; co</td><td>0.5000</td>" in found._repr_html_()


def test_of_an_evaluation(backend):
    made = trainer()
    made.fit(loader(), epochs=1)
    plain = made.evaluate(loader(shuffle=False))
    found = made.evaluate(loader(shuffle=False), per_class=True)
    assert plain.per_class is None
    assert (found.loss, found.accuracy, found.count) == (plain.loss, plain.accuracy, plain.count)
    assert sum(found.per_class.support) == 43
    right = sum(found.per_class.confusion[i][i] for i in range(3))
    assert right / 43 == found.accuracy
    assert "per_class" not in repr(found)


def test_of_pixels_and_labels_to_ignore(backend):
    here = get_backend()
    model = nn.Sequential(nn.Conv2d(1, 3, 1))
    made = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(ignore_index=-100))
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((4, 1, 5, 5)).astype("float32"), rng.integers(0, 3, (4, 5, 5))
    labels[0, 0, :3] = -100
    found = made.evaluate([(here.asarray(x), here.asarray(labels))], per_class=True).per_class
    with nn.no_grad():
        said = here.to_numpy(model(here.asarray(x))).argmax(axis=1)
    counts = labels != -100
    assert found == class_metrics(labels[counts], said[counts], num_classes=3)
    assert sum(found.support) == 97


def test_of_values_there_are_no_classes(backend):
    made = Trainer(net := nn.Sequential(nn.Linear(2, 1)), optim.SGD(net.parameters(), 0.1), nn.MSELoss())
    with pytest.raises(ConfigError, match="per_class: expected a loss of classes with it, got MSELoss"):
        made.evaluate([(np.ones((2, 2), "f"), np.ones((2, 1), "f"))], per_class=True)


@pytest.mark.parametrize(
    ("labels", "said", "error", "message"),
    [
        ([0, 1], [0], ShapeError, "predicted: expected one for each of 2 labels, got 1"),
        ([], [], ShapeError, r"labels: expected \(N,\) or \(N, K\) with N of 1 or more"),
        ([0, -1], [0, 0], DataError, "labels: expected class indices of 0 or more, got -1"),
        ([0, 1], [0.0, 1.0], DTypeError, r"predicted: expected integers \(N,\) or rows of scores"),
    ],
)
def test_what_does_not_fit(labels, said, error, message):
    with pytest.raises(error, match=message):
        class_metrics(np.array(labels, int), np.array(said))


def test_names_for_all():
    with pytest.raises(ShapeError, match="classes: expected 3 names or more, got 2"):
        class_metrics([0, 2], [0, 1], classes=["a", "b"])
    assert class_metrics([0], [0], classes=["a", "b"]).support == (1, 0)
