"""The loop: what it computes, what it calls, and that nothing waits for the device."""

import io
import itertools
import math

import numpy as np
import pytest

import xpcnn
from tests.fake_device import counters
from tests.nn.layers import kept_by
from xpcnn import nn, optim
from xpcnn.backend import use_backend
from xpcnn.training import Callback, Checkpointer, Progress, Trainer

from .common import BATCH, SAMPLES, arrays, assert_same, loader, trainer

pytestmark = pytest.mark.usefixtures("backend")


def test_fit_is_the_loop_written_out(backend):
    mine = trainer()
    mine.fit(loader(), epochs=2)
    other = trainer()
    model, optimizer, criterion, schedule = other.model, other.optimizer, other.criterion, other.schedule
    train = loader()
    for _ in range(2):
        for x, target in train:
            criterion(model(x), target)
            model.backward(criterion.backward(), input_gradient=False)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    assert_same(arrays(mine.model), arrays(model))


def test_history_counts_every_sample_once(backend):
    mine = trainer(compile=False)  # the loss below looks at numbers
    train = loader(shuffle=False)
    seen = []

    class Watch(nn.CrossEntropyLoss):
        def __call__(self, logits, target):
            loss = super().__call__(logits, target)
            right = backend.to_numpy(logits).argmax(1) == backend.to_numpy(target)
            seen.append((float(backend.to_numpy(loss)), right))
            return loss

    mine.criterion = Watch()
    history = mine.fit(train, epochs=1)
    sizes = [len(right) for _, right in seen]
    assert sizes == [BATCH] * (SAMPLES // BATCH) + [SAMPLES % BATCH]
    assert list(history.steps["loss"]) == pytest.approx([loss for loss, _ in seen])
    assert list(history.steps["accuracy"]) == pytest.approx([right.mean() for _, right in seen])
    assert history.epochs["accuracy"] == [np.concatenate([right for _, right in seen]).sum() / SAMPLES]
    assert history.epochs["loss"][0] == pytest.approx(np.average([loss for loss, _ in seen], weights=sizes))
    assert history.steps["lr"][0] == 0.05
    assert history.steps["lr"][3] == pytest.approx(0.05 * 0.7)
    assert history.epochs["seconds"][0] > 0
    assert math.isnan(history.epochs["validation_loss"][0])
    assert history.epochs["images_per_second"][0] == pytest.approx(SAMPLES / history.epochs["seconds"][0])


def test_evaluate_by_hand(backend):
    mine = trainer()
    mine.fit(loader(), epochs=1)
    metrics = mine.evaluate(loader(shuffle=False))
    mine.model.eval()
    logits, target = [], []
    with xpcnn.no_grad():
        for x, t in loader(shuffle=False):
            logits.append(backend.to_numpy(mine.model(x)).astype("float64"))
            target.append(backend.to_numpy(t))
    logits, target = np.concatenate(logits), np.concatenate(target)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(SAMPLES), target]
    assert metrics.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics.accuracy == (logits.argmax(1) == target).sum() / SAMPLES
    assert metrics.count == SAMPLES


def test_evaluate_with_a_summed_loss_is_a_mean(backend):
    mine = trainer()
    mean = mine.evaluate(loader(shuffle=False))
    other = Trainer(mine.model, mine.optimizer, nn.CrossEntropyLoss(reduction="sum"))
    assert other.evaluate(loader(shuffle=False)).loss == pytest.approx(mean.loss, rel=1e-5)


def test_one_hot_labels_count_as_their_class(backend):
    mine = trainer()
    one_hot = [(x, backend.asarray(np.eye(3, dtype="float32")[backend.to_numpy(t)])) for x, t in loader(shuffle=False)]
    plain, hot = mine.evaluate(loader(shuffle=False)), mine.evaluate(one_hot)
    assert hot.accuracy == plain.accuracy
    assert hot.loss == pytest.approx(plain.loss, rel=1e-6)


def test_evaluate_never_sees_training_mode_and_restores_it(backend):
    mine = trainer()
    frozen = mine.model[1]
    modes = []

    class Watch(nn.Module):
        def forward(self, x):
            modes.append([module.training for module in mine.model.modules()])
            return x

        def backward(self, dy):
            return dy

    mine.model.append(Watch())
    mine.model.train()
    frozen.eval()  # as a user may do to keep the statistics
    before = arrays(mine.model)
    mine.evaluate(loader())
    assert not any(itertools.chain(*modes))
    assert [module.training for module in mine.model.modules()] == [
        module is not frozen for module in mine.model.modules()
    ]
    assert_same(before, arrays(mine.model))
    assert not kept_by(mine.model)


def test_validation_does_not_change_training(backend):
    plain = trainer()
    plain.fit(loader(), epochs=2)
    validated = trainer()
    history = validated.fit(loader(), loader(), epochs=2)
    assert_same(arrays(plain.model), arrays(validated.model))
    assert history.epochs["validation_accuracy"][-1] == validated.evaluate(loader(shuffle=False)).accuracy


def test_the_device_is_read_once_in_so_many_steps():
    """A step waits for nothing: uploads are the batch and the rates, downloads the table once in `read_every`."""
    with use_backend("fake") as device:
        device.__dict__.pop("_demands", None)  # other tests' labels are not ours to read
        mine = trainer("adam", "none", read_every=4)
        batches = list(loader())[:-1] * 4  # 20 full batches
        mine.fit(batches[:4])
        counters.reset()
        mine.fit(batches)
        assert counters.syncs == 0
        # One table for every 4 steps; the labels' check is read with it.
        assert counters.downloads <= 2 * len(batches) / 4 + 2
        assert len(mine.history) == 24


def test_reading_more_often_changes_nothing():
    often = trainer(read_every=1)
    often.fit(loader(), epochs=2)
    seldom = trainer(read_every=50)
    seldom.fit(loader(), epochs=2)
    assert_same(arrays(often.model), arrays(seldom.model))
    assert often.history.steps == seldom.history.steps


def test_backends_draw_and_compute_alike(backend, other_backend):
    """Same initial values, same batches, same masks; losses differ by rounding alone (float32, 12 steps)."""
    curves = []
    for name in (backend.name, other_backend):
        with use_backend(name):
            mine = trainer()
            mine.fit(loader(), epochs=2)
            curves.append(list(mine.history.steps["loss"]))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits(threads):
    before = xpcnn.get_num_threads()
    xpcnn.set_num_threads(threads)
    try:
        runs = [trainer(seed=3), trainer(seed=3), trainer(seed=4)]
        for run in runs:
            xpcnn.manual_seed(7)
            run.fit(loader(), epochs=2)
    finally:
        xpcnn.set_num_threads(before)
    assert_same(arrays(runs[0].model), arrays(runs[1].model))
    assert any((arrays(runs[0].model)[name] != value).any() for name, value in arrays(runs[2].model).items())


def test_moving_the_model_between_two_epochs(backend):
    with use_backend("numpy"):
        stayed = trainer()
        stayed.fit(loader(seed=1), epochs=1)
        stayed.fit(loader(seed=2), epochs=1)
        moved = trainer()
        moved.fit(loader(seed=1), epochs=1)
    moved.model.to(backend.name)
    moved.fit(loader(seed=2), epochs=1)
    for name, value in arrays(stayed.model).items():
        np.testing.assert_allclose(arrays(moved.model)[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_way_back_from_a_device(backend):
    stays = trainer()
    stays.fit(loader(seed=1), epochs=1)
    stays.fit(loader(seed=2), epochs=1)
    moved = trainer()
    moved.fit(loader(seed=1), epochs=1)
    moved.model.to("numpy")
    with xpcnn.use_backend("numpy"):
        moved.fit(loader(seed=2), epochs=1)
    for name, value in arrays(stays.model).items():
        np.testing.assert_allclose(arrays(moved.model)[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_step_of_ones_own_after_a_trainers(backend):
    made = trainer("sgd", "none")
    made.fit(loader(), epochs=1)
    before = arrays(made.model)["0.weight"]
    for parameter in made.model.parameters():
        parameter.grad[...] = 1.0
    made.optimizer.param_groups[0]["lr"] = 0.25
    made.optimizer.step()
    np.testing.assert_allclose(arrays(made.model)["0.weight"], before - 0.25, rtol=0, atol=1e-6)


def test_clipped_steps_are_the_loop_written_out(backend):
    mine = trainer("momentum", "none", clip_norm=0.1)
    mine.fit(loader(), epochs=2)
    other = trainer("momentum", "none")
    model, optimizer, criterion = other.model, other.optimizer, other.criterion
    train = loader()
    for _ in range(2):
        for x, target in train:
            criterion(model(x), target)
            model.backward(criterion.backward(), input_gradient=False)
            optim.clip_grad_norm(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    assert_same(arrays(mine.model), arrays(model))


def test_clip_norm(backend):
    mine = trainer("sgd", "none", clip_norm=1e-3)
    before = arrays(mine.model)
    mine.fit(list(loader())[:1])
    change = [
        arrays(mine.model)[name].astype("float64") - value
        for name, value in before.items()
        if name in dict(mine.model.named_parameters())
    ]
    assert math.sqrt(sum((part**2).sum() for part in change)) == pytest.approx(0.05 * 1e-3, rel=1e-2)


def test_callbacks():
    calls = []

    class Whole(Callback):
        def on_fit_start(self, trainer):
            calls.append("start")

        def on_epoch(self, trainer):
            calls.append(("epoch", trainer.epoch, trainer.step))

        def on_fit_end(self, trainer):
            calls.append("end")

    class Part:  # any object with any of the methods
        def on_step(self, trainer):
            calls.append((trainer.epoch, trainer.batch))

    trainer(callbacks=[Whole(), Part()]).fit(list(loader())[:2], epochs=2)
    assert calls == ["start", (0, 1), (0, 2), ("epoch", 1, 2), (1, 1), (1, 2), ("epoch", 2, 4), "end"]


def test_a_second_fit_goes_on():
    twice = trainer()
    train = loader()
    twice.fit(train, epochs=1)
    history = twice.fit(train, epochs=1)
    once = trainer()
    once.fit(loader(), epochs=2)
    assert_same(arrays(twice.model), arrays(once.model))
    assert history.epochs["step"] == [6, 12]


def test_train_batch_does_the_steps_of_fit(backend):
    by_fit, by_hand = trainer(), trainer()
    xpcnn.manual_seed(1)  # the same masks
    by_fit.fit(loader(seed=5), epochs=2)
    xpcnn.manual_seed(1)
    batches = loader(seed=5)
    for _ in range(2):
        for x, target in batches:
            by_hand.train_batch(x, target)
            by_hand.schedule.step()
    by_hand.read()
    assert_same(arrays(by_fit.model), arrays(by_hand.model))
    assert list(by_hand.history.steps["loss"]) == list(by_fit.history.steps["loss"])


def regression(backend, outputs):
    """Six batches of 4, and a net, of as many numbers as asked."""
    rng = np.random.default_rng(0)
    xpcnn.manual_seed(0)
    x, y = (rng.normal(size=(24, n)).astype("float32") for n in (5, outputs))
    batches = [(backend.asarray(x[i : i + 4]), backend.asarray(y[i : i + 4])) for i in range(0, 24, 4)]
    return batches, nn.Sequential(nn.Linear(5, outputs))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("capture", ["auto", False])
def test_a_regression_has_no_accuracy(backend, outputs, capture, tmp_path):
    batches, model = regression(backend, outputs)
    file = io.StringIO()
    checkpoint = Checkpointer(tmp_path / "kept", every_steps=1, keep=1)
    mine = Trainer(
        model, optim.SGD(model.parameters(), 0.1), nn.MSELoss(), compile=capture, callbacks=[Progress(3, file)],
        checkpoint=checkpoint,
    )  # fmt: skip
    history = mine.fit(batches, batches, epochs=3)
    assert np.isfinite(history.steps["loss"]).all()
    assert np.isnan(history.steps["accuracy"]).all()
    assert np.isnan(history.epochs["accuracy"]).all()
    assert np.isnan(history.epochs["validation_accuracy"]).all()
    assert math.isnan(mine.evaluate(batches).accuracy)
    assert "accuracy" not in file.getvalue()
    assert "loss" in file.getvalue()
    lowest = int(np.argmin(history.epochs["validation_loss"]))
    assert checkpoint.best().numbers["step"] == history.epochs["step"][lowest]
    again = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.MSELoss(), checkpoint=checkpoint)
    again.fit(batches, epochs=4, resume=True)
    assert again.step == 24


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3)])
def test_a_loss_of_ones_own_on_values(shape):
    """The loss does not say that there are no classes; the targets do."""

    class Absolute:
        def __call__(self, x, target):
            self.sign = np.sign(x.reshape(target.shape) - target).reshape(x.shape) / x.size
            return abs(x.reshape(target.shape) - target).mean()

        def backward(self):
            return self.sign.astype("float32")

    with use_backend("numpy"):
        model = nn.Sequential(nn.Linear(5, math.prod(shape[1:])))
        x, y = np.ones((4, 5), "float32"), np.zeros(shape, "float32")
        mine = Trainer(model, optim.SGD(model.parameters(), 0.1), Absolute())
        mine.fit([(x, y)])
    assert np.isnan(mine.history.steps["accuracy"]).all()
    assert math.isnan(mine.evaluate([(x, y)]).accuracy)
