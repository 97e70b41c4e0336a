"""Schedules: formulas by hand, restoring, wrong arguments. Parity with torch is in tests/parity."""

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
