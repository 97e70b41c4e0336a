import copy
import math
import pickle

import numpy as np
import pytest

import xpcnn
from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError, DataError, DTypeError, MixedBackendsError, ShapeError, StateError
from xpcnn.testing import gradcheck, numerical_gradient


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["integers", "one-hot", "probabilities"])
def test_cross_entropy_gradient(backend, rng, reduction, smoothing, kind):
    labels = rng.integers(0, 5, 4)
    if kind == "one-hot":
        labels = np.eye(5, dtype="int64")[labels]
    elif kind == "probabilities":
        labels = backend.asarray(rng.dirichlet(np.ones(5), 4).astype("float64"))
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction=reduction)
    if kind == "probabilities":  # floating: gradcheck would look for their gradient too
        logits = backend.asarray(values(rng, (4, 5)))
        criterion(logits, labels)
        dlogits = backend.to_numpy(criterion.backward())
        target = backend.to_numpy(labels) * (1 - smoothing) + smoothing / 5
        exponent = np.exp(backend.to_numpy(logits))
        expected = exponent / exponent.sum(axis=1, keepdims=True) - target
        assert np.allclose(dlogits, expected / (4 if reduction == "mean" else 1), atol=1e-14)
        return
    report = gradcheck(criterion, (values(rng, (4, 5)), labels))
    assert report, report


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_gradient(backend, rng, reduction):
    target = backend.asarray(values(rng, (4, 5)))
    criterion = nn.MSELoss(reduction=reduction)
    x = backend.asarray(values(rng, (4, 5)))
    loss = backend.to_numpy(criterion(x, target))
    difference = backend.to_numpy(x) - backend.to_numpy(target)
    scale = difference.size if reduction == "mean" else 1
    assert loss == pytest.approx((difference**2).sum() / scale)
    assert np.allclose(backend.to_numpy(criterion.backward()), 2 * difference / scale)


def test_the_loss_is_a_scalar_of_the_backend(backend, rng):
    logits = backend.asarray(values(rng, (4, 10), "float32") * 0)
    loss = nn.CrossEntropyLoss()(logits, backend.asarray(rng.integers(0, 10, 4)))
    assert backend.owns(loss)
    assert loss.shape == ()
    assert loss.dtype == "float32"
    assert backend.to_numpy(loss) == pytest.approx(math.log(10), rel=1e-6)


def test_one_backward_for_each_call(backend):
    criterion = nn.CrossEntropyLoss()
    with pytest.raises(StateError, match=r"CrossEntropyLoss.backward: expected a call of the loss before it, got none"):
        criterion.backward()
    criterion(backend.zeros((2, 3), "float32"), backend.asarray([0, 1]))
    criterion.backward()
    with pytest.raises(StateError):
        criterion.backward()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            np.array([0.0, 1.0], "float32"),
            DTypeError,
            r"labels: expected integers for shape \(N,\), got float32; convert",
        ),
        (np.array([True, False]), DTypeError, "labels: expected integers .*, got bool"),
        (np.array([0]), ShapeError, r"labels: expected shape \(2,\) or \(2, 3\), got \(1,\)"),
        (np.array([[0, 1]]), ShapeError, r"labels: expected shape \(2, 3\) like the logits, got \(1, 2\)"),
    ],
)
def test_labels_that_do_not_fit(backend, labels, error, message):
    with pytest.raises(error, match=message):
        nn.CrossEntropyLoss()(backend.zeros((2, 3), "float32"), backend.asarray(labels))


@pytest.mark.parametrize("wrong", [-1, 3, 200])
def test_labels_out_of_range(backend, wrong):
    criterion = nn.CrossEntropyLoss()
    message = "labels: expected classes from 0 to 2, got one outside; do the logits have enough columns"

    def lose():
        criterion(backend.zeros((2, 3), "float32"), backend.asarray([0, wrong]))
        backend.check_demands()  # a device tells when a value is next read

    with pytest.raises(DataError, match=message):
        lose()
    criterion(backend.zeros((2, 3), "float32"), backend.asarray([0, 1]))
    backend.check_demands()


def test_labels_of_small_types(backend):
    for dtype in ("uint8", "int8", "int64"):
        logits = backend.zeros((2, 3), "float32")
        loss = nn.CrossEntropyLoss()(logits, backend.asarray(np.array([0, 2], dtype)))
        assert backend.to_numpy(loss) == pytest.approx(math.log(3), rel=1e-6)


def test_labels_of_another_backend(backend):
    other = "fake" if backend.name == "numpy" else "numpy"
    with use_backend(other) as elsewhere:
        labels = elsewhere.asarray([0, 1])
    with pytest.raises(MixedBackendsError, match="expected all on one backend"):
        nn.CrossEntropyLoss()(backend.zeros((2, 3), "float32"), labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.CrossEntropyLoss(reduction="none"), 'reduction: expected "mean" or "sum", got \'none\''),
        (lambda: nn.MSELoss(reduction="none"), 'reduction: expected "mean" or "sum"'),
        (lambda: nn.CrossEntropyLoss(label_smoothing=1.5), "label_smoothing: expected a share from 0 to 1, got 1.5"),
    ],
)
def test_options_that_do_not_fit(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_mse_of_shapes_that_differ(backend):
    with pytest.raises(ShapeError, match=r"target: expected shape \(2, 3\), got \(3, 2\)"):
        nn.MSELoss()(backend.zeros((2, 3), "float32"), backend.zeros((3, 2), "float32"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.CrossEntropyLoss(weight=[1.0, 2.0, 0.5, 1, 1]),
        lambda: nn.CrossEntropyLoss(ignore_index=3, label_smoothing=0.2),
        lambda: nn.CrossEntropyLoss(weight=np.arange(1.0, 6.0), ignore_index=-100, reduction="sum"),
    ],
)
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 2)])
def test_weighted_cross_entropy_gradient(backend, rng, make, shape):
    labels = rng.integers(0, 5, shape[:1] + shape[2:])
    criterion = make()
    if criterion.ignore_index is not None:
        labels[0] = criterion.ignore_index
    report = gradcheck(criterion, (values(rng, shape), labels))
    assert report, report


@pytest.mark.parametrize("kind", ["L1Loss", "BCEWithLogitsLoss"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_elementwise_losses(backend, rng, kind, reduction):
    options = {"pos_weight": [1.0, 2.0, 0.5, 3.0, 1.0]} if kind == "BCEWithLogitsLoss" else {}
    criterion = getattr(nn, kind)(reduction=reduction, **options)
    x, target = values(rng, (4, 5)), rng.uniform(0, 1, (4, 5))
    device = backend.asarray(target)

    def loss(array):
        return float(backend.to_numpy(criterion(backend.asarray(array), device)))

    loss(x)
    dx = backend.to_numpy(criterion.backward())
    assert np.allclose(dx, numerical_gradient(loss, x), rtol=0, atol=1e-8)


def test_weights_are_read_anew_and_a_new_one_is_seen(backend, rng):
    """Compiled: the array that the loss holds is read at each replay, another array or option is a guard."""
    criterion = nn.CrossEntropyLoss(weight=[1.0, 2.0, 3.0])
    logits, labels = backend.asarray(values(rng, (4, 3), "float32")), backend.asarray(np.array([0, 1, 2, 1]))

    def step(logits, labels):
        return criterion(logits, labels), criterion.backward()

    compiled = xpcnn.compile(step)
    for change in (
        lambda: None,
        lambda: criterion.weight.__setitem__(0, 5.0),
        lambda: setattr(criterion, "weight", backend.asarray(np.array([3.0, 1.0, 1.0], "float32"))),
        lambda: setattr(criterion, "ignore_index", 1),
        lambda: setattr(criterion, "weight", None),
        lambda: setattr(criterion, "label_smoothing", 0.3),
        lambda: setattr(criterion, "reduction", "sum"),
    ):
        change()
        with backend.as_recorded():
            expected = [backend.to_numpy(array).copy() for array in step(logits, labels)]
        for _ in range(5):
            found = compiled(logits, labels)
            assert [np.array_equal(backend.to_numpy(a), b) for a, b in zip(found, expected, strict=True)] == [True] * 2


def test_a_loss_with_weights_is_copied_and_pickled(rng):
    criterion = nn.BCEWithLogitsLoss(pos_weight=[1.0, 2.0])
    for again in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        x = values(rng, (3, 2), "float32")
        assert again(x, np.ones_like(x)) == criterion(x, np.ones_like(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.CrossEntropyLoss(weight="no"), DTypeError, "weight: expected an array or numbers"),
        (
            lambda: nn.BCEWithLogitsLoss(pos_weight=[[1], [2, 3]]),
            DTypeError,
            "pos_weight: expected an array",
        ),
        (lambda: nn.CrossEntropyLoss(ignore_index="x"), ConfigError, "ignore_index: expected an integer or None"),
        (lambda: nn.L1Loss(reduction="none"), ConfigError, "reduction: expected"),
    ],
)
def test_weights_that_do_not_fit(backend, make, error, message):
    with pytest.raises(error, match=message):
        make()
