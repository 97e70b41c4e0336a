import math

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError, DataError, DTypeError, MixedBackendsError, ShapeError, StateError
from xpcnn.testing import gradcheck


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
