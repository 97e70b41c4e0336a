"""What is given to a trainer by mistake is refused by name, before anything has changed."""

import numpy as np
import pytest

from xpcnn import nn, optim
from xpcnn.backend import use_backend
from xpcnn.datasets import Dataset
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import Progress, Trainer

from .common import loader, net, trainer

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trainer("net", None, None), "model: expected an nn.Module, got str"),
        (lambda: Trainer(net(), "sgd", None), "optimizer: expected an optim.Optimizer"),
        (
            lambda: Trainer(net(), optim.SGD(net().parameters(), 0.1), None),
            "optimizer: expected parameters of the model",
        ),
        (lambda: (lambda m: Trainer(m, optim.SGD(m.parameters(), 0.1), "ce"))(net()), "criterion: expected a loss"),
        (
            lambda: (lambda m: Trainer(m, optim.SGD(m.parameters(), 0.1), nn.CrossEntropyLoss))(net()),
            r"criterion: expected a loss such as nn.CrossEntropyLoss\(\), got the class CrossEntropyLoss",
        ),
        (lambda: trainer(compile="yes"), "compile: expected"),
        (lambda: trainer(nonfinite="ignore"), "nonfinite: expected"),
        (lambda: trainer(clip_norm=-1.0), "clip_norm: expected"),
        (lambda: trainer(read_every=0), "read_every: expected"),
        (lambda: trainer(checkpoint="runs"), "checkpoint: expected a Checkpointer"),
        (lambda: trainer().fit(loader(), epochs=-1), "epochs: expected"),
        (lambda: trainer().fit(loader(), epochs=1.5), "epochs: expected"),
        (lambda: trainer().fit(loader(), resume=True), "resume: expected a trainer with checkpoint"),
        (lambda: trainer().save(), "checkpoint: expected a trainer with"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_steps_cannot_be_recorded_everywhere():
    with use_backend("fake"), pytest.raises(ConfigError, match=r'compile: expected "auto" or False on fake'):
        trainer(compile=True).fit(loader())


def test_a_schedule_of_another_optimiser_is_refused():
    model = net()
    other = optim.StepLR(optim.SGD(net().parameters(), 0.1), 3)
    with pytest.raises(ConfigError, match="schedule: expected one made with this trainer's optimizer"):
        Trainer(model, optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), schedule=other)


@pytest.mark.parametrize(("x", "labels", "name"), [([1.0], [0], "x"), (np.zeros((2, 36)), 1, "labels")])
def test_a_batch_that_is_no_array(x, labels, name):
    with pytest.raises(DataError, match=f"{name}: expected an array of a batch, got"):
        trainer().train_batch(x, labels)


def test_no_data():
    with pytest.raises(DataError, match="train: expected at least one batch"):
        trainer().fit([])
    with pytest.raises(DataError, match="data: expected at least one batch"):
        trainer().evaluate([])


class Misspelt:
    def on_epoch_end(self, trainer):
        raise AssertionError


class Nothing:
    def step(self, trainer):
        raise AssertionError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            Misspelt(),
            r"expected methods among on_fit_start, on_step, .*, on_fit_end, got Misspelt\.on_epoch_end, which",
        ),
        (
            Nothing(),
            "any of the methods on_fit_start, on_step, on_metrics, on_epoch, on_fit_end, got Nothing",
        ),
        (print, "any of the methods .*, got builtin_function_or_method"),
        (Progress, r"expected objects, got the class Progress; write Progress\(\.\.\.\)"),
    ],
)
def test_callbacks_that_nothing_would_call(wrong, message):
    with pytest.raises(ConfigError, match=f"callbacks: .*{message}"):
        trainer(callbacks=[wrong])
    mine = trainer()
    mine.callbacks.append(wrong)
    with pytest.raises(ConfigError, match="callbacks: expected"):
        mine.fit(loader())


def test_a_single_callback_is_no_sequence():
    with pytest.raises(ConfigError, match="callbacks: expected a sequence of them, got Progress"):
        trainer(callbacks=Progress())


def test_names_that_are_no_methods_are_left_alone():
    class Flags:
        on_gpu = True
        on_step = staticmethod(lambda trainer: None)

    trainer(callbacks=[Flags()])


IMAGES, LABELS = np.zeros((9, 6, 6), np.uint8), np.zeros(9, int)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (IMAGES, r"an array of shape \(9, 6, 6\)"),
        ((IMAGES, LABELS), r"an array of shape \(9, 6, 6\)"),
        (Dataset(IMAGES, LABELS), "Dataset"),
        (3, "int"),
        ("mnist", "str"),
    ],
)
def test_what_holds_no_batches(given, got):
    message = rf"expected a DataLoader or another iterable of batches \(x, labels\), got {got}; use DataLoader\(images"
    with pytest.raises(ConfigError, match=f"^train: {message}"):
        trainer().fit(given)
    with pytest.raises(ConfigError, match=f"^validation: {message}"):
        trainer().fit(loader(), given)
    with pytest.raises(ConfigError, match=f"^data: {message}"):
        trainer().evaluate(given)


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (IMAGES[:, None], r"an array of shape \(9, 1, 6, 6\)"),
        ((IMAGES, LABELS, LABELS), "tuple of 3"),
        ({"x": IMAGES, "y": LABELS}, "dict"),
    ],
)
def test_batches_that_are_no_pairs(batch, got):
    with pytest.raises(DataError, match=rf"^train: expected batches \(x, labels\), got {got}; use DataLoader"):
        trainer().fit(iter([batch]))
    with pytest.raises(DataError, match=rf"^data: expected batches \(x, labels\), got {got}; use DataLoader"):
        trainer().evaluate(iter([batch]))
