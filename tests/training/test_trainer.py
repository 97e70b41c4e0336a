"""The loop: what it computes, what it calls, and that nothing waits for the device."""

import io
import itertools
import math
import re

import numpy as np
import pytest

import xpcnn
from tests.fake_device import counters
from tests.nn.layers import kept_by
from xpcnn import nn, optim
from xpcnn.backend import use_backend
from xpcnn.datasets import Dataset
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import Callback, Checkpointer, Progress, Trainer

from .common import BATCH, SAMPLES, StopAfter, arrays, assert_same, loader, net, trainer

pytestmark = pytest.mark.usefixtures("backend")

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


class TestProgress:
    def test_plain_lines(self, backend):
        file = io.StringIO()
        mine = trainer(callbacks=[Progress(every=4, file=file)])
        mine.fit(loader(), loader(), epochs=2)
        lines = file.getvalue().splitlines()
        assert len(lines) == 6
        step = r" +[\d.]+ s  epoch 1/2  batch 4/6  accuracy 0\.\d{4}  loss \d\.\d{4}  lr 0\.035"
        assert re.fullmatch(step, lines[0])
        epoch = r"epoch 2/2  loss [\d.]+  accuracy [\d.]+  validation loss [\d.]+  validation accuracy [\d.]+  [\d.]+ s"
        assert re.match(epoch, lines[-1])
        mean = sum(mine.history.steps["loss"][:4]) / 4
        assert f"loss {mean:.4f}" in lines[0]

    def test_bar(self, backend, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr(Progress, "REFRESH", 0.0)
        file = Terminal()
        mine = trainer(callbacks=[Progress(file=file)], read_every=2)
        mine.fit(loader(), epochs=1)
        text = file.getvalue()
        assert "6/6" in text
        assert re.search(r"epoch 1/1 loss [\d.]+ accuracy [\d.]+ \|.*\| \d/6 [\d:]+<[\d:?]+, \d+/s", text)
        assert text.splitlines()[-1].startswith("epoch 1/1  loss")


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


def test_without_tqdm_a_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setattr("xpcnn.training.progress.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bar: expected False or None without tqdm, got True: pip install"):
        Progress(bar=True)
    file = io.StringIO()
    file.isatty = lambda: True
    with use_backend("numpy"):
        trainer(callbacks=[Progress(every=1, file=file)]).fit(loader(), epochs=1)
    assert re.search(r"epoch 1/1  batch 1/", file.getvalue())


# --- what a schedule counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step", "exponential"])
def test_a_schedule_that_may_count_either_is_asked(name):
    with pytest.raises(
        ConfigError, match=r'schedule_every: expected "batch" or "epoch" with (Step|Exponential)LR, got'
    ):
        trainer(schedule=name, schedule_every=None)


def test_schedules_count_batches_by_default(backend):
    mine = trainer(schedule="inverse", schedule_every=None)
    assert mine.schedule_every == "batch"
    mine.fit(loader(), epochs=1)
    assert list(mine.history.steps["lr"]) == pytest.approx([0.05 / (1 + 0.1 * step) for step in range(6)])


def test_a_schedule_that_counts_epochs(backend, tmp_path):
    mine = trainer(schedule="exponential", schedule_every="epoch")
    mine.fit(loader(), epochs=3)
    assert list(mine.history.steps["lr"]) == pytest.approx([0.05 * 0.95**epoch for epoch in range(3) for _ in range(6)])
    assert mine.optimizer.lr == pytest.approx(0.05 * 0.95**3)


def test_a_schedule_that_watches_epochs(backend):
    mine = trainer(schedule="plateau", schedule_every=None)
    assert mine.schedule_every == "epoch"
    mine.fit(loader(), loader(shuffle=False), epochs=4)
    twin = optim.ReduceLROnPlateau(optim.SGD(net().parameters(), 0.05), patience=0, threshold=0.2, factor=0.5)
    rates = []
    for loss in mine.history.epochs["validation_loss"]:
        rates += [twin.optimizer.lr] * 6
        twin.step(loss)
    assert list(mine.history.steps["lr"]) == rates
    assert len(set(rates)) > 1
    assert mine.schedule.best == twin.best


@pytest.mark.parametrize(
    ("options", "column"), [({}, "loss"), ({"mode": "max"}, "accuracy"), ({"monitor": "seconds"}, "seconds")]
)
def test_what_is_watched_without_validation_data(options, column):
    mine = trainer(schedule="none")
    mine = Trainer(
        mine.model, mine.optimizer, mine.criterion, schedule=optim.ReduceLROnPlateau(mine.optimizer, **options)
    )
    mine.fit(loader(), epochs=1)
    assert mine.schedule.best == mine.history.epochs[column][0]


def test_what_cannot_be_watched():
    with pytest.raises(ConfigError, match='schedule_every: expected "epoch" with ReduceLROnPlateau, got "batch"'):
        trainer(schedule="plateau", schedule_every="batch")
    mine = trainer(schedule="none")
    wrong = optim.ReduceLROnPlateau(mine.optimizer, monitor="val_loss")
    with pytest.raises(ConfigError, match=r"monitor: expected None or one of loss, accuracy, .*, got 'val_loss'"):
        Trainer(mine.model, mine.optimizer, mine.criterion, schedule=wrong)
    other = optim.ReduceLROnPlateau(mine.optimizer, monitor="validation_loss")
    with pytest.raises(ConfigError, match="got 'validation_loss' without validation data"):
        Trainer(mine.model, mine.optimizer, mine.criterion, schedule=other).fit(loader())


def test_a_resumed_schedule_counts_what_it_counted(tmp_path):
    def make(unit="epoch", **options):
        return trainer(
            schedule="step", schedule_every=unit, checkpoint=Checkpointer(tmp_path, every_steps=2), **options
        )

    with pytest.raises(StopAfter.Stopped):
        make(callbacks=[StopAfter(9)]).fit(loader(), epochs=4)
    with pytest.raises(DataError, match="schedule_every: expected 'batch' as the trainer has it, got 'epoch'"):
        make("batch").fit(loader(), epochs=4, resume=True)
    resumed = make()
    resumed.fit(loader(), epochs=4, resume=True)
    whole = trainer(schedule="step", schedule_every="epoch")
    whole.fit(loader(), epochs=4)
    assert resumed.history.steps == whole.history.steps


def one_cycle(total, unit, **options):
    xpcnn.manual_seed(0)
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.05)
    schedule = optim.OneCycleLR(optimizer, 0.05, total)
    return Trainer(model, optimizer, nn.CrossEntropyLoss(), schedule=schedule, schedule_every=unit, **options)


@pytest.mark.parametrize(("unit", "needed"), [("batch", 12), ("epoch", 2)])
def test_a_schedule_that_ends_too_soon_is_refused_before_the_first_step(unit, needed):
    mine = one_cycle(needed - 1, unit)
    with pytest.raises(
        ConfigError, match=f"^total_steps: expected {needed} or more .* for this training, got {needed - 1}$"
    ):
        mine.fit(loader(), epochs=2)
    assert mine.step == 0
    mine = one_cycle(needed, unit)
    mine.fit(loader(), epochs=1)
    mine.fit(loader(), epochs=1)
    with pytest.raises(ConfigError, match="total_steps: expected"):
        mine.fit(loader(), epochs=1)


def test_a_resumed_training_needs_the_rest_of_its_schedule(tmp_path):
    folder = Checkpointer(tmp_path, every_steps=2)
    with pytest.raises(StopAfter.Stopped):
        one_cycle(12, "batch", checkpoint=folder, callbacks=[StopAfter(9)]).fit(loader(), epochs=2)
    resumed = one_cycle(12, "batch", checkpoint=folder)
    resumed.fit(loader(), epochs=2, resume=True)
    assert resumed.step == 12


# --- what is given by mistake ----------------------------------------------------------------------------------------


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


# --- targets that are no classes --------------------------------------------------------------------------------------


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


def test_80_columns_show_loss_and_accuracy(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setenv("COLUMNS", "80")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    progress = Progress(file=file)
    progress.REFRESH = 0.0
    made = trainer(callbacks=[progress], read_every=1)
    made.fit(loader(), epochs=1)
    shown = [line for line in file.getvalue().split("\r") if "|" in line]
    assert all(len(line) <= 80 for line in shown)
    assert re.search(r"epoch 1/1 loss \d\.\d{4} accuracy \d\.\d{4}", shown[-1])
