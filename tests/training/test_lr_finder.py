"""The finder of learning rates: what it notes, what it suggests, and that it leaves no trace."""

import math

import numpy as np
import pytest

from xpcnn import get_backend, nn, optim
from xpcnn.errors import ConfigError, DataError, StateError
from xpcnn.training import EarlyStopping, LearningRateFinder, ModelAverage, Trainer

from .common import StopAfter, arrays, assert_same, loader, trainer

pytestmark = pytest.mark.usefixtures("backend")


def quadratic():
    """A loss (w - 1)^2 of one weight, as batches of one sample."""
    backend = get_backend()
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).to(dtype="float64")
    model[0].weight.data[...] = 0
    made = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.MSELoss())
    return made, [(backend.asarray(np.ones((1, 1))), backend.asarray(np.ones((1, 1))))]


def test_the_losses_are_those_of_the_rates():
    made, batches = quadratic()
    finder = LearningRateFinder(1e-3, 10.0, steps=40, smoothing=0.5)
    finder.run(made, batches)
    error, mean = 1.0, 0.0
    for i, (lr, loss, smooth) in enumerate(zip(finder.lrs, finder.losses, finder.smoothed, strict=True)):
        assert lr == pytest.approx(1e-3 * 1e4 ** (i / 39), rel=1e-9)
        assert loss == pytest.approx(error**2, rel=1e-6)
        mean = 0.5 * mean + 0.5 * loss
        assert smooth == pytest.approx(mean / (1 - 0.5 ** (i + 1)), rel=1e-6)
        error -= lr * 2 * error
    assert len(finder.lrs) < 40  # beyond a rate of 1 it diverges
    assert 0.01 < finder.suggestion() < 1
    i = finder.lrs.index(finder.suggestion())
    slopes = np.array(finder.smoothed[2:]) - np.array(finder.smoothed[:-2])
    assert slopes[i - 1] == slopes.min()


@pytest.mark.parametrize("schedule", ["none", "exponential"])
def test_it_leaves_no_trace(schedule):
    def train(find):
        mine = trainer("momentum", schedule, callbacks=[ModelAverage(0.9), EarlyStopping(patience=9)])
        data = loader()
        mine.fit(data, epochs=1)
        if find:
            before, history = arrays(mine.model), mine.history
            mine.model[1].eval()
            LearningRateFinder(1e-4, 1.0, steps=20).run(mine, data)
            assert not mine.model[1].training
            assert mine.model[0].training
            mine.model[1].train()
            assert_same(arrays(mine.model), before)
            assert mine.history is history
            assert (mine.step, mine.epoch, mine.batch) == (6, 1, 0)
        mine.fit(data, epochs=1)
        return mine

    plain, found = train(False), train(True)
    assert plain.history.steps == found.history.steps
    assert_same(arrays(plain.model), arrays(found.model))
    assert_same(plain.optimizer.state_dict(), found.optimizer.state_dict())


def test_groups_keep_their_ratio():
    made, batches = quadratic()
    other = nn.Linear(1, 1, bias=False).to(dtype="float64")
    made.optimizer.add_param_group({"params": other.parameters(), "lr": 0.01})
    seen = []
    update = made.optimizer.update

    def watch(*arguments):
        seen.append([group["lr"] for group in made.optimizer.param_groups])
        update(*arguments)

    made.optimizer.update = watch
    made.compile = False
    LearningRateFinder(1e-3, 1e-2, steps=5).run(made, batches)
    np.testing.assert_allclose([b / a for a, b in seen], 0.1)
    assert [group["lr"] for group in made.optimizer.param_groups] == [0.1, 0.01]


def test_a_loss_that_is_not_finite_ends_it():
    made = trainer("sgd", "none")
    finder = LearningRateFinder(1e-3, 1e30, steps=60, stop_at=1e300)
    before = arrays(made.model)
    finder.run(made, loader())
    assert 3 <= len(finder.lrs) < 60
    assert all(map(math.isfinite, finder.losses))
    assert_same(arrays(made.model), before)


def test_an_interruption_puts_everything_back():
    made = trainer("adam", "none", compile=False)
    before = arrays(made.model)
    forward = made.model[0].forward

    def stop(x):
        if made.step == 3:
            raise KeyboardInterrupt
        return forward(x)

    made.model[0].forward = stop
    with pytest.raises(KeyboardInterrupt):
        LearningRateFinder().run(made, loader())
    assert_same(arrays(made.model), before)
    assert made.step == len(made.history) == 0


def test_several_batches_a_step():
    made = trainer("sgd", "none", accumulate=2)
    finder = LearningRateFinder(1e-4, 1e-2, steps=7)
    finder.run(made, loader())
    assert len(finder.lrs) == 7


def test_callbacks_are_not_called():
    made = trainer(callbacks=[StopAfter(2)])
    LearningRateFinder(1e-4, 1e-2, steps=5).run(made, loader())


def test_too_little_to_say():
    made, batches = quadratic()
    finder = LearningRateFinder(5.0, 50.0, steps=5)
    with pytest.raises(StateError, match="suggestion: expected three steps or more before the loss rises, got"):
        finder.run(made, batches)
    with pytest.raises(DataError):
        LearningRateFinder().run(made, (np.ones(3),) * 0 or [np.ones(3)][:0] or (iter(()) and [None]))
    assert "suggestion" not in repr(LearningRateFinder())


def test_its_picture(tmp_path):
    pytest.importorskip("matplotlib")
    made, batches = quadratic()
    finder = LearningRateFinder(1e-3, 1.0, steps=20)
    with pytest.raises(DataError, match="finder: expected one that has run"):
        finder.plot()
    rate = finder.run(made, batches)
    figure = finder.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [line.get_label() for line in axes.lines] == ["each step", "running mean", f"falls fastest: {rate:.2g}"]
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), finder.lrs)
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), finder.smoothed)
    from matplotlib.figure import Figure

    mine = Figure().subplots()
    assert finder.plot(ax=mine) is mine.figure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_lr": 0.0}, "start_lr: expected a number above 0 and below end_lr"),
        ({"start_lr": 1.0, "end_lr": 0.1}, "start_lr: expected a number above 0 and below end_lr"),
        ({"steps": 1}, "steps: expected an integer of 2 or more"),
        ({"smoothing": 1.0}, "smoothing: expected a number, from 0 to below 1"),
        ({"stop_at": 0.5}, "stop_at: expected a number, 1 or more"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        LearningRateFinder(**options)
