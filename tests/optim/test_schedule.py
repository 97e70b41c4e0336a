"""Schedules: formulas by hand, restoring, wrong arguments. Parity with torch is in tests/parity."""

import json
import math

import pytest

from xpcnn import optim
from xpcnn.errors import ConfigError, DataError

from .conftest import parameters, train

SCHEDULES = [
    lambda o: optim.StepLR(o, 3, 0.5),
    lambda o: optim.ExponentialLR(o, 0.9),
    lambda o: optim.InverseTimeLR(o, 0.1),
    lambda o: optim.CosineAnnealingLR(o, 20),
    lambda o: optim.OneCycleLR(o, 0.5, 20),
    lambda o: optim.MultiStepLR(o, [2, 9, 12]),
    lambda o: optim.LinearLR(o, 0.1, total_iters=9),
    lambda o: optim.LambdaLR(o, lambda step: 1 / (1 + step)),
    lambda o: optim.SequentialLR(o, [optim.LinearLR(o, 0.1), optim.CosineAnnealingLR(o, 12)], [5]),
    lambda o: optim.SequentialLR(o, [optim.LinearLR(o, 0.1), optim.OneCycleLR(o, 0.5, 12)], [8]),
]


def optimizer():
    return optim.SGD(parameters(), lr=0.2, momentum=0.9)


def test_inverse_time():
    o = optimizer()
    schedule = optim.InverseTimeLR(o, 1e-2)
    for step in range(5):
        assert o.lr == pytest.approx(0.2 / (1 + 1e-2 * step))
        schedule.step()


def test_the_lenet_notebooks_step_decay():
    o = optim.SGD(parameters(), lr=0.1)
    schedule = optim.StepLR(o, 30, 0.9)
    for step in range(100):
        assert o.lr == pytest.approx(0.1 * 0.9 ** (step // 30))
        schedule.step()


def test_groups_keep_their_ratio():
    a, b, *_ = parameters()
    o = optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}], lr=0.5)
    schedule = optim.ExponentialLR(o, 0.5)
    schedule.step()
    assert [group["lr"] for group in o.param_groups] == [0.5, 0.05]


@pytest.mark.parametrize("make", SCHEDULES)
def test_restored_schedule_goes_on(make):
    straight, resumed = optimizer(), optimizer()
    first, second = make(straight), make(resumed)
    for _ in range(7):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(10):
        assert straight.param_groups[0]["lr"] == resumed.param_groups[0]["lr"]
        assert straight.param_groups[0]["momentum"] == resumed.param_groups[0]["momentum"]
        first.step()
        second.step()


def test_a_warm_up_starts_from_the_rates_before_it():
    o = optimizer()
    decay = optim.ExponentialLR(o, 0.5)
    warm_up = optim.LinearLR(o, 0.5, total_iters=2)
    inner = optim.SequentialLR(o, [warm_up, decay], [2])
    schedule = optim.SequentialLR(o, [inner, optim.StepLR(o, 1, 0.1)], [4])
    rates = []
    for _ in range(6):
        rates.append(o.lr)
        schedule.step()
    assert rates == pytest.approx([0.1, 0.15, 0.2, 0.1, 0.2, 0.02])
    assert schedule.asks_unit
    assert not inner.total_steps


def test_a_sequence_ends_where_its_last_does():
    o = optimizer()
    schedule = optim.SequentialLR(o, [optim.LinearLR(o), optim.OneCycleLR(o, 0.5, 4)], [3])
    assert schedule.total_steps == 7
    for _ in range(7):
        schedule.step()
    with pytest.raises(ConfigError, match="total_steps: expected 7 steps at most"):
        schedule.step()


def test_a_group_that_is_added_to_a_sequence():
    a, b, *_ = parameters()
    o = optim.SGD([a], lr=1.0)
    schedule = optim.SequentialLR(o, [optim.LinearLR(o, 0.5, total_iters=2), optim.ExponentialLR(o, 0.5)], [2])
    o.add_param_group({"params": [b], "lr": 0.1})
    rates = []
    for _ in range(4):
        schedule.step()
        rates.append([group["lr"] for group in o.param_groups])
    assert rates == [pytest.approx(each) for each in ([0.75, 0.075], [1.0, 0.1], [0.5, 0.05], [0.25, 0.025])]


def test_each_group_has_its_own_function():
    a, b, *_ = parameters()
    o = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.1}], lr=1.0)
    schedule = optim.LambdaLR(o, [lambda step: 1.0, lambda step: 0.5**step])
    schedule.step()
    assert [group["lr"] for group in o.param_groups] == [1.0, 0.05]
    o.add_param_group({"params": [parameters()[2]]})
    with pytest.raises(ConfigError, match="lr_lambda: expected 3 functions, one for each group, got 2"):
        schedule.step()


def test_a_function_that_gives_no_rate():
    schedule = optim.LambdaLR(optimizer(), lambda step: 1.0 - step)
    schedule.step()
    with pytest.raises(ConfigError, match=r"lr_lambda\(2\): expected a number, 0 or more, got -1.0"):
        schedule.step()


def test_a_plateau_is_restored():
    losses = [3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    straight, resumed = optimizer(), optimizer()
    make = lambda o: optim.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1)  # noqa: E731
    first, second = make(straight), make(resumed)
    for loss in losses[:6]:
        first.step(loss)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed.lr = straight.lr
    for loss in losses[6:]:
        first.step(loss)
        second.step(loss)
        assert straight.lr == resumed.lr
    assert straight.lr < 0.2
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize("change", [{"last_step": -1}, {"num_bad_epochs": 1.5}, {"best": "low"}, {"extra": 1}])
def test_damaged_state_of_a_plateau(change):
    schedule = optim.ReduceLROnPlateau(optimizer())
    with pytest.raises(DataError, match="schedule state: expected"):
        schedule.load_state_dict({**schedule.state_dict(), **change})
    assert schedule.best == math.inf


def test_a_plateau_wants_a_number():
    schedule = optim.ReduceLROnPlateau(optimizer())
    for wrong in (None, "low", [1.0, 2.0]):
        with pytest.raises(ConfigError, match="metrics: expected the number that is watched, got"):
            schedule.step(wrong)


def test_a_rate_that_changes_each_step_is_used(backend):
    members, others = parameters(), parameters()
    o, other = optim.SGD(members, lr=0.2), optim.SGD(others, lr=0.2)
    schedule = optim.ExponentialLR(o, 0.5)
    for seed in range(3):
        train(o, members, [seed])
        schedule.step()
        other.lr = 0.2 * 0.5**seed
        train(other, others, [seed])
    for mine, his in zip(members, others, strict=True):
        assert (backend.to_numpy(mine.data) == backend.to_numpy(his.data)).all()


def test_one_cycle_ends():
    o = optimizer()
    schedule = optim.OneCycleLR(o, 0.5, 4)
    for _ in range(4):
        schedule.step()
    with pytest.raises(ConfigError, match="total_steps: expected 4 steps at most"):
        schedule.step()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda o: optim.StepLR(o, 0), "step_size: expected an integer"),
        (lambda o: optim.StepLR(o, 2.5), "step_size: expected an integer"),
        (lambda o: optim.StepLR(o, 3, -1), "gamma: expected"),
        (lambda o: optim.ExponentialLR("sgd", 0.5), "optimizer: expected an Optimizer"),
        (lambda o: optim.OneCycleLR(o, 0.5, 10, pct_start=2), "pct_start: expected"),
        (lambda o: optim.OneCycleLR(o, 0.5, 10, anneal_strategy="sine"), "anneal_strategy: expected"),
        (lambda o: optim.OneCycleLR(o, 0.5, 10, div_factor=0), "div_factor: expected"),
        (lambda o: optim.CosineAnnealingLR(o, True), "T_max: expected"),
        (lambda o: optim.MultiStepLR(o, 3), "milestones: expected a list of integers"),
        (lambda o: optim.MultiStepLR(o, [3, 0]), "milestones: expected an integer of 1 or more"),
        (lambda o: optim.LinearLR(o, 0.0), "start_factor: expected a number above 0"),
        (lambda o: optim.LinearLR(o, 0.5, 1.5), "end_factor: expected a number from 0 to 1"),
        (lambda o: optim.LinearLR(o, total_iters=0), "total_iters: expected an integer"),
        (lambda o: optim.LambdaLR(o, 0.5), "lr_lambda: expected functions"),
        (lambda o: optim.SequentialLR(o, [], []), "schedulers: expected a list of schedules"),
        (lambda o: optim.SequentialLR(o, optim.LinearLR(o), []), "schedulers: expected a list of schedules"),
        (lambda o: optim.SequentialLR(o, [optim.LinearLR(o)], [3]), "milestones: expected 0 growing integers for 1"),
        (lambda o: optim.SequentialLR(o, [optim.LinearLR(o)] * 3, [5, 5]), "milestones: expected 2 growing integers"),
        (lambda o: optim.SequentialLR(o, [optim.LinearLR(optimizer())], []), "schedulers: expected ones made with"),
        (lambda o: optim.SequentialLR(o, [optim.ReduceLROnPlateau(o)], []), "schedulers: expected schedules that"),
        (lambda o: optim.ReduceLROnPlateau(o, "low"), "mode: expected"),
        (lambda o: optim.ReduceLROnPlateau(o, factor=1.0), "factor: expected"),
        (lambda o: optim.ReduceLROnPlateau(o, patience=-1), "patience: expected"),
        (lambda o: optim.ReduceLROnPlateau(o, threshold_mode="both"), "threshold_mode: expected"),
        (lambda o: optim.ReduceLROnPlateau(o, min_lr=[0.1, 0.2]), "min_lr: expected a number, or 1 for as many"),
        (lambda o: optim.ReduceLROnPlateau(o, monitor=3), "monitor: expected the name"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong(optimizer())


@pytest.mark.parametrize("change", [{"last_step": -1}, {"last_step": 1.5}, {"initial.0": math.inf}, {"extra": 1}])
def test_damaged_state(change):
    schedule = optim.StepLR(optimizer(), 3)
    with pytest.raises(DataError, match="schedule state: expected"):
        schedule.load_state_dict({**schedule.state_dict(), **change})
    assert schedule.last_step == 0
