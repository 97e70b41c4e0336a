"""What a trainer's schedule counts, batches or epochs, what it watches, and how it goes on."""

import pytest

import xpcnn
from xpcnn import nn, optim
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import Checkpointer, Trainer

from .common import StopAfter, loader, net, trainer

pytestmark = pytest.mark.usefixtures("backend")


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
