"""ModelAverage against the formula in plain numbers, through fits, checkpoints, backends and precisions."""

import copy
import pickle

import numpy as np
import pytest

from xpcnn import nn, optim
from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import Checkpointer, EarlyStopping, ModelAverage, Trainer

from .common import StopAfter, arrays, assert_same, loader, net, trainer

pytestmark = pytest.mark.usefixtures("backend")


class Record:
    """Keeps the state of each step."""

    def __init__(self):
        self.states = []

    def on_step(self, made):
        persistent = made.model.state_dict()
        self.states.append({name: value for name, value in arrays(made.model).items() if name in persistent})


def by_hand(states, decay, every=1, start=0, warmup=False):
    """Return the averages in float64."""
    average, count = None, 0
    for step, state in enumerate(states):
        if step < start or (step - start) % every:
            continue
        d = min(decay, (1 + count) / (10 + count)) if warmup else decay
        wide = {name: value.astype("float64") for name, value in state.items()}
        average = wide if average is None else {name: d * average[name] + (1 - d) * wide[name] for name in wide}
        count += 1
    return average, count


def host(average):
    from xpcnn.backend import backend_of

    return {name: backend_of(value).to_numpy(value).copy() for name, value in average.averages.items()}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"every": 3}, {"start": 4}, {"warmup": True}, {"every": 2, "start": 3}])
def test_the_formula(options):
    record, average = Record(), ModelAverage(0.8, **options)
    trainer(callbacks=[record, average]).fit(loader(), epochs=2)
    expected, count = by_hand(record.states, 0.8, **options)
    assert average.count == count > 2
    assert {"1.running_mean", "1.running_var", "0.weight"} <= set(average.averages)
    assert_close(host(average), expected)


def test_large_arrays_are_averaged_in_pieces():
    rng = np.random.default_rng(0)
    from xpcnn import get_backend

    backend = get_backend()
    model = nn.Sequential(nn.Linear(700, 401))
    average = ModelAverage(0.5)
    values = [rng.standard_normal((401, 700)).astype("float32") for _ in range(3)]
    for value in values:
        model[0].weight.data[...] = backend.asarray(value)
        average.update(model)
    expected = (values[0] + values[1]) / 4 + values[2] / 2
    np.testing.assert_allclose(host(average)["0.weight"], expected, rtol=1e-6, atol=1e-6)


def test_buffers_may_stay_the_model_s():
    average = ModelAverage(0.5, use_buffers=False)
    mine = trainer(callbacks=[average])
    mine.fit(loader(), epochs=1)
    assert set(average.averages) == {name for name, _ in mine.model.named_parameters()}


def test_validation_sees_the_average_and_training_does_not():
    made = []
    for callbacks in ([], [{}], [{"validate": False}]):
        made.append(trainer(callbacks=[ModelAverage(0.9, apply_at_end=False, **options) for options in callbacks]))
        made[-1].fit(loader(seed=1), loader(shuffle=False), epochs=2)
    plain, averaged, unseen = made
    assert plain.history.steps == averaged.history.steps
    assert_same(arrays(plain.model), arrays(averaged.model))
    assert plain.history.epochs["validation_loss"] == unseen.history.epochs["validation_loss"]
    assert plain.history.epochs["validation_loss"] != averaged.history.epochs["validation_loss"]
    with averaged.callbacks[0].applied(averaged.model):
        metrics = averaged.evaluate(loader(shuffle=False))
    assert metrics.loss == averaged.history.epochs["validation_loss"][-1]
    assert_same(arrays(plain.model), arrays(averaged.model))


def test_the_model_has_the_average_at_the_end_and_goes_on_from_what_was_trained():
    average = ModelAverage(0.9)
    mine = trainer(callbacks=[average])
    batches, validation = loader(seed=1), loader(shuffle=False)
    mine.fit(batches, validation, epochs=1)
    assert mine.evaluate(validation).loss == mine.history.epochs["validation_loss"][-1]
    assert_close({name: arrays(mine.model)[name] for name in average.averages}, host(average))
    mine.fit(batches, epochs=1)
    plain, other = trainer(), loader(seed=1)
    plain.fit(other, epochs=1)
    plain.fit(other, epochs=1)
    assert mine.history.steps == plain.history.steps


def test_weights_that_are_put_in_its_place_stay():
    average = ModelAverage(0.9)
    mine = trainer(callbacks=[average], schedule="none")
    mine.fit(loader(), epochs=1)
    state = {name: 0 * value for name, value in mine.model.state_dict().items()}
    mine.model.load_state_dict(state)
    mine.fit(loader(), epochs=0)
    mine.callbacks.append(StopAfter(7))
    with pytest.raises(StopAfter.Stopped):
        mine.fit(loader(), epochs=1)
    assert abs(arrays(mine.model)["0.weight"]).max() < 0.1


@pytest.mark.parametrize("step", [3, 6, 8])
def test_resumed_to_the_bit(tmp_path, step):
    def make(**options):
        made = trainer(checkpoint=Checkpointer(tmp_path, every_steps=1), **options)
        made.callbacks.insert(0, ModelAverage(0.9, warmup=True))
        return made

    with pytest.raises(StopAfter.Stopped):
        make(callbacks=[StopAfter(step + 1)]).fit(loader(), loader(shuffle=False), epochs=3)
    resumed = make(seed=99)
    resumed.fit(loader(), loader(shuffle=False), epochs=3, resume=True)
    whole = trainer(callbacks=[ModelAverage(0.9, warmup=True)])
    whole.fit(loader(), loader(shuffle=False), epochs=3)
    assert_same(host(resumed.callbacks[0]), host(whole.callbacks[0]))
    assert_same(arrays(resumed.model), arrays(whole.model))
    assert resumed.history.epochs["validation_loss"] == whole.history.epochs["validation_loss"]


def test_a_checkpoint_written_after_the_end_goes_on_from_what_was_trained(tmp_path):
    mine = trainer(callbacks=[ModelAverage(0.9)], checkpoint=Checkpointer(tmp_path))
    batches = loader(seed=2)
    mine.fit(batches, epochs=1)
    mine.save(batches)
    resumed = trainer(seed=9, callbacks=[ModelAverage(0.9)], checkpoint=Checkpointer(tmp_path))
    resumed.fit(loader(seed=2), epochs=2, resume=True)
    whole = trainer()
    whole.fit(loader(seed=2), epochs=2)
    assert resumed.history.steps == whole.history.steps


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_go_on_by_themselves(twin_of):
    mine = trainer(callbacks=[ModelAverage(0.9, apply_at_end=False)])
    mine.fit(loader(seed=1), epochs=1)
    twin = twin_of(mine)
    before = host(mine.callbacks[0])
    twin.fit(loader(seed=4), epochs=1)
    assert_same(host(mine.callbacks[0]), before)
    mine.fit(loader(seed=4), epochs=1)
    assert twin.callbacks[0].count == mine.callbacks[0].count == 12


def test_a_float16_model_is_averaged_in_float32(backend):
    model = nn.Sequential(nn.Linear(4, 3)).half()
    average = ModelAverage(0.999)
    one = model[0].weight.data
    one[...] = 1
    average.update(model)
    one[...] = 2
    average.update(model)
    assert str(average.averages["0.weight"].dtype) == "float32"
    np.testing.assert_allclose(host(average)["0.weight"], 1.001, rtol=1e-6)
    average.copy_to(model)
    assert str(model[0].weight.data.dtype) == "float16"


def test_layers_that_change_begin_anew(backend):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    average = ModelAverage(0.5)
    average.update(model)
    model.append(nn.Linear(3, 2))
    model[2].weight.data[...] = 1
    average.update(model)
    model[2].weight.data[...] = 2
    average.update(model)
    np.testing.assert_array_equal(host(average)["2.weight"], np.full((2, 3), 1.5, "float32"))


def test_it_follows_a_model_to_another_backend(backend, other_backend):
    model = nn.Sequential(nn.Linear(4, 3))
    average = ModelAverage(0.5)
    average.update(model)
    model.to(other_backend)
    average.update(model)
    with use_backend(other_backend) as there:
        assert there.owns(average.averages["0.weight"])


def test_an_error_in_a_validation_leaves_the_weights(backend):
    def broken():
        yield from list(loader(shuffle=False))[:2]
        raise OSError

    class Batches:
        def __iter__(self):
            return broken()

    mine = trainer(callbacks=[ModelAverage(0.5)])
    with pytest.raises(OSError):  # noqa: PT011
        mine.fit(loader(seed=1), Batches(), epochs=1)
    plain = trainer()
    plain.fit(loader(seed=1), epochs=1)
    assert_same(arrays(mine.model), arrays(plain.model))


def test_early_stopping_keeps_the_average_that_was_best():
    average, stopping = ModelAverage(0.9), EarlyStopping("validation_loss", 2)
    for callbacks in ([average, stopping], [stopping, average]):
        mine = trainer(callbacks=callbacks)
        mine.fit(loader(seed=1), loader(shuffle=False), epochs=4)
        assert mine.evaluate(loader(shuffle=False)).loss == min(mine.history.epochs["validation_loss"])


def test_before_the_first_update():
    model, average = net(), ModelAverage(0.9)
    before = arrays(model)
    average.copy_to(model)
    with average.applied(model) as same:
        assert same is model
    assert_same(arrays(model), before)
    assert average.state_dict() == {"count": 0, "steps": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay: expected a number, from 0 to below 1, got 1.0"),
        ({"every": 0}, "every: expected an integer of 1 or more, got 0"),
        ({"start": -1}, "start: expected an integer of 0 or more, got -1"),
        ({"warmup": 1}, "warmup: expected True or False"),
        ({"apply_at_end": None}, "apply_at_end: expected True or False"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        ModelAverage(**options)


@pytest.mark.parametrize("change", [{"count": -1}, {"steps": None}, {"extra": 1}, {"other.0.weight": np.zeros(3)}])
def test_damaged_state(change):
    average = ModelAverage(0.9)
    average.update(net())
    before = host(average)
    with pytest.raises(DataError, match="average state: expected"):
        average.load_state_dict({**average.state_dict(), **change})
    assert_same(host(average), before)


def test_a_checkpoint_without_it_is_another_training_s(tmp_path):
    mine = trainer(checkpoint=Checkpointer(tmp_path))
    mine.fit(loader(), epochs=1)
    with pytest.raises(DataError, match="callbacks: expected ModelAverage, got none"):
        trainer(callbacks=[ModelAverage()], checkpoint=Checkpointer(tmp_path)).fit(loader(), epochs=2, resume=True)


def test_by_hand_in_a_loop_of_one_s_own(backend):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    optimizer = optim.SGD(model.parameters(), 0.1)
    made, average = Trainer(model, optimizer, nn.CrossEntropyLoss()), ModelAverage(0.5)
    record = Record()
    for x, y in loader():
        made.train_batch(x, y)
        average.update(model)
        record.on_step(made)
    assert_close(host(average), by_hand(record.states, 0.5)[0])
