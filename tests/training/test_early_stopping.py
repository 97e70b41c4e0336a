"""EarlyStopping: when it stops, what the model has then, and what a resumed training knows of it."""

import math

import numpy as np
import pytest

from xpcnn import nn, optim
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import Checkpointer, EarlyStopping, Trainer
from xpcnn.training.interrupt import Interruption

from .common import StopAfter, arrays, assert_same, loader, trainer

pytestmark = pytest.mark.usefixtures("backend")


class Scripted:
    """Puts numbers of its own in the place of an epoch's."""

    def __init__(self, values, column="validation_loss"):
        self.values, self.column, self.weights = values, column, []

    def on_metrics(self, made):
        made.history.epochs[self.column][-1] = self.values[made.epoch - 1]
        self.weights.append(arrays(made.model))


def run(values, column="validation_loss", epochs=None, **options):
    script, stopping = Scripted(values, column), EarlyStopping(column, **options)
    made = trainer(schedule="none", callbacks=[script, stopping])
    made.fit(loader(), loader(shuffle=False), epochs=epochs or len(values))
    return made, script, stopping


def persistent(made, state):
    """Leave out the keys of dropout, which no weights are."""
    return {name: state[name] for name in made.model.state_dict()}


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([3, 2, 2.5, 2.1, 1], {"patience": 2}, 4, 2),
        ([3, 2, 2.5, 1.9, 2, 2, 2], {"patience": 2}, 6, 4),
        ([3, 2, 2, 2], {"patience": 1}, 3, 2),
        ([3, 2.5, 2.1, 1.8, 1.8], {"patience": 2, "min_delta": 0.6}, 5, 3),
        ([3, math.nan, 2, math.nan, math.nan], {"patience": 2}, 5, 3),
        ([1, 2, 3, 4, 5], {"patience": 4, "mode": "max"}, 5, 5),
    ],
)
def test_when_it_stops(values, options, epochs, best):
    made, script, stopping = run(values, **options)
    assert made.epoch == epochs
    assert stopping.best_epoch == best
    assert stopping.best == values[best - 1]
    assert_same(persistent(made, arrays(made.model)), persistent(made, script.weights[best - 1]))


def test_accuracies_are_better_when_they_are_higher():
    made, _, stopping = run([0.5, 0.7, 0.6, 0.6], "validation_accuracy", patience=2)
    assert stopping.mode == "max"
    assert made.stopped
    assert made.stop_reason == ("the validation accuracy has not got better than 0.7, of epoch 2, for 2 epochs")


def test_the_best_weights_may_stay_behind():
    made, script, _ = run([1, 2, 3], patience=5, restore_best=False)
    assert_same(arrays(made.model), script.weights[-1])


def test_without_validation_data():
    made = trainer(callbacks=[EarlyStopping(patience=3)])
    made.fit(loader(), epochs=2)
    assert made.callbacks[0].best == min(made.history.epochs["loss"])
    with pytest.raises(ConfigError, match="got 'validation_accuracy' without validation data; give"):
        trainer(callbacks=[EarlyStopping("validation_accuracy")]).fit(loader())


def test_a_later_fit_begins_to_count_anew():
    made, _, stopping = run([1, 2, 2, 0.5, 3, 3], patience=2)
    assert made.epoch == 3
    made.fit(loader(), loader(shuffle=False), epochs=3)
    assert made.epoch == 6
    assert stopping.best == 0.5
    assert stopping.best_epoch == 4


VALUES = [3, 2, 2.5, 1.5, 1.7, 1.6, 1.9]


@pytest.mark.parametrize("step", [5, 6, 13, 24, 31])
def test_resumed_to_the_bit(tmp_path, step):
    def make(*others, seed=0, folder=None):
        checkpoint = None if folder is None else Checkpointer(folder, every_steps=1)
        callbacks = [Scripted(VALUES), EarlyStopping("validation_loss", 3), *others]
        return trainer(seed=seed, callbacks=callbacks, checkpoint=checkpoint)

    with pytest.raises(StopAfter.Stopped):
        make(StopAfter(step + 1), folder=tmp_path).fit(loader(), loader(shuffle=False), epochs=9)
    resumed = make(seed=99, folder=tmp_path)
    resumed.fit(loader(), loader(shuffle=False), epochs=9, resume=True)
    whole = make()
    whole.fit(loader(), loader(shuffle=False), epochs=9)
    assert resumed.epoch == whole.epoch == 7
    assert resumed.stop_reason == whole.stop_reason != ""
    assert_same(arrays(resumed.model), arrays(whole.model))
    # Of a training that has stopped nothing is left to do, and the best weights are there again.
    again = make(seed=5, folder=tmp_path)
    again.fit(loader(), loader(shuffle=False), epochs=9, resume=True)
    assert again.epoch == 7
    assert again.stopped
    assert_same(persistent(again, arrays(again.model)), persistent(whole, arrays(whole.model)))


def test_an_interrupted_training_keeps_its_own_weights(tmp_path):
    class Interrupt:
        def on_epoch(self, made):
            made.interrupted = made.epoch == 2

    made = trainer(callbacks=[Scripted([1, 2, 3]), EarlyStopping(), Interrupt()], checkpoint=Checkpointer(tmp_path))
    with pytest.raises(Interruption):
        made.fit(loader(), loader(shuffle=False), epochs=3)
    plain = trainer()
    plain.fit(loader(), epochs=2)
    assert_same(arrays(made.model), arrays(plain.model))


@pytest.mark.parametrize("change", [{"best": None}, {"wait": "2"}, {"more": 1}, {"best.0.weight": 3}])
def test_damaged_state(change):
    stopping = EarlyStopping()
    with pytest.raises(DataError, match="early stopping state: expected"):
        stopping.load_state_dict({**stopping.state_dict(), **change})
    assert stopping.best == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "val_loss"}, "monitor: expected None or one of loss, accuracy"),
        ({"patience": 0}, "patience: expected an integer of 1 or more"),
        ({"min_delta": -1}, "min_delta: expected a number, 0 or more"),
        ({"restore_best": "yes"}, "restore_best: expected True or False"),
        ({"mode": "best"}, 'mode: expected "min", "max" or None'),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        EarlyStopping(**options)


def test_in_a_training_of_values():
    rng = np.random.default_rng(0)
    from xpcnn import get_backend

    backend = get_backend()
    x = backend.asarray(rng.standard_normal((16, 4)).astype("float32"))
    model = nn.Sequential(nn.Linear(4, 1))
    made = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.MSELoss(), callbacks=[EarlyStopping(patience=2)])
    made.fit([(x, x[:, :1])], [(x, x[:, :1])], epochs=3)
    assert made.callbacks[0].best == min(made.history.epochs["validation_loss"])
