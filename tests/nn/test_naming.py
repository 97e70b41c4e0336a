"""Errors name the layer in which they were raised by its path in the network that was called, once."""

import copy
import pickle

import numpy as np
import pytest

from xpcnn import nn, optim
from xpcnn.errors import DTypeError, ShapeError, StateError
from xpcnn.training import Trainer


class Mine(nn.Module):
    """A layer of a user's own that fails as NumPy or Python does."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error

    def backward(self, dy):
        return dy


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.body = inner

    def forward(self, x):
        return self.body(x)


def images(backend, *shape):
    return backend.asarray(np.ones(shape, "float32"))


@pytest.mark.parametrize(
    ("make", "shape", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(3, 4, 3)), (2, 1, 8, 8), ShapeError,
         r"^layer '2' \(Conv2d\): "),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (2, 1, 8, 8), ShapeError, r"^layer '1' \(Linear\): "),
        (lambda: nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3))),
         (2, 1, 8, 8), ShapeError, r"^layer '1\.1' \(Conv2d\): "),
        (lambda: Around(nn.Sequential(nn.Residual(nn.Sequential(nn.Conv2d(9, 4, 3))))), (2, 1, 8, 8), ShapeError,
         r"^layer 'body\.0\.body\.0' \(Conv2d\): "),
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Tanh()), (2, 1, 8, 8), ShapeError,
         r"^layer '1' \(BatchNorm2d\): "),
        (lambda: nn.Sequential(nn.ReLU(), nn.Tanh(), nn.MaxPool2d(9)), (2, 1, 8, 8), ShapeError,
         r"^layer '2' \(MaxPool2d\): "),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(9)), (2, 1, 8, 8), ShapeError,
         r"^layer '2' \(MaxPool2d\): "),
        (lambda: nn.Sequential(nn.Residual(nn.Conv2d(1, 1, 3, padding=1)), nn.ReLU(), nn.BatchNorm2d(3)), (2, 1, 8, 8),
         ShapeError, r"^layer '2' \(BatchNorm2d\): "),
        (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(1, 4, 3, dtype="float64")), (2, 1, 8, 8), DTypeError,
         r"^layer '1' \(Conv2d\): "),
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(1, dtype="float64")), (2, 1, 8, 8), DTypeError,
         r"^layer '1' \(BatchNorm2d\): "),
    ],
)  # fmt: skip
def test_the_innermost_layer_is_named_once(backend, make, shape, error, message):
    net = make()
    with pytest.raises(error, match=message) as caught:
        net(images(backend, *shape))
    assert str(caught.value).count("layer '") <= 1
    assert type(caught.value) is error
    assert not getattr(caught.value, "__notes__", [])


def test_the_message_of_the_layer_stays_as_it_is(backend):
    layer, x = nn.Conv2d(3, 4, 3), images(backend, 2, 1, 8, 8)
    with pytest.raises(ShapeError) as alone:
        layer(x)
    with pytest.raises(ShapeError) as inside:
        nn.Sequential(nn.ReLU(), layer)(x)
    assert not str(alone.value).startswith("layer")
    assert str(inside.value) == f"layer '1' (Conv2d): {alone.value}"
    again = pickle.loads(pickle.dumps(ShapeError(*inside.value.args)))
    assert str(again) == str(inside.value)


@pytest.mark.parametrize("error", [ValueError("shapes do not fit"), KeyError("x"), OSError(2, "no such file")])
def test_errors_of_others_carry_a_note(backend, error):
    args = error.args
    net = Around(nn.Sequential(nn.ReLU(), nn.Sequential(Mine(error))))
    with pytest.raises(type(error)) as caught:
        net(images(backend, 2, 1, 8, 8))
    assert caught.value is error
    assert error.args == args
    assert error.__notes__ == ["in layer 'body.1.0' (Mine)"]


def test_an_error_of_ours_without_a_message():
    with pytest.raises(StateError) as caught:
        nn.Sequential(Mine(StateError()))(np.ones((2, 1, 3, 3), "float32"))
    assert caught.value.args == ()


def test_a_layer_that_failed_works_afterwards(backend):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(ShapeError, match="layer '0'"):
        net(images(backend, 2, 3, 8, 8))
    assert copy.copy(net)(images(backend, 2, 1, 8, 8)).shape == (2, 4, 4, 4)


def test_training_and_evaluation_name_it_too(backend):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3))
    batches = [(images(backend, 4, 1, 6, 6), backend.asarray(np.zeros(4, "int64")))]
    trainer = Trainer(net, optim.SGD(net.parameters(), 0.1), nn.CrossEntropyLoss())
    for work in (trainer.fit, trainer.evaluate):
        with pytest.raises(ShapeError, match=r"^layer '4' \(Linear\): "):
            work(batches)
