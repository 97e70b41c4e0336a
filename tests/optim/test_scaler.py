"""How the scale of the loss moves, and its state."""

import pytest

from xpcnn import optim
from xpcnn.errors import ConfigError, DataError


def follow(scaler, backend, history):
    scaler.place(backend)
    scales = []
    for ok in history:
        scaler.update(backend.asarray([ok]))
        scales.append(scaler.get_scale())
    return scales


def test_scale_by_hand(backend):
    scaler = optim.GradScaler(8.0, 4.0, 0.5, 3)
    history = [True, True, False, True, True, True, True, False, False]
    assert follow(scaler, backend, history) == [8, 8, 4, 4, 4, 16, 16, 8, 4]
    assert scaler.state_dict() == {
        "scale": 4.0, "growth_factor": 4.0, "backoff_factor": 0.5, "growth_interval": 3, "_growth_tracker": 0
    }  # fmt: skip


def test_scale_stays_in_its_limits(backend):
    scaler = optim.GradScaler(2.0**119, growth_interval=1)
    assert follow(scaler, backend, [True] * 3) == [2.0**120] * 3
    low = optim.GradScaler(2.0**-13)
    assert follow(low, backend, [False] * 3) == [2.0**-14] * 3
    assert low.can_lower(2.0**-13)
    assert not low.can_lower(2.0**-14)


def test_a_static_scale_stays(backend):
    scaler = optim.GradScaler(128.0, 1.0, 1.0, 2)
    assert follow(scaler, backend, [True, True, False, True]) == [128.0] * 4
    assert not scaler.can_lower(128.0)


def test_an_update_that_does_not_count(backend):
    scaler = optim.GradScaler(8.0, growth_interval=1)
    scaler.place(backend)
    for ok in (True, False):
        scaler.update(backend.asarray([ok]), backend.asarray([False]))
    assert scaler.get_scale() == 8.0


def test_scaler_state_goes_on(backend):
    history = [True, True, False, True, True, True]
    whole = optim.GradScaler(8.0, growth_interval=3)
    expected = follow(whole, backend, history)
    first, second = optim.GradScaler(8.0, growth_interval=3), optim.GradScaler()
    follow(first, backend, history[:4])
    array = second.place(backend)
    second.load_state_dict(first.state_dict())
    assert second.place(backend) is array  # a recorded step reads it
    assert follow(second, backend, history[4:]) == expected[4:]
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"scale": "8"},
        {"growth_factor": 0.5},
        {"backoff_factor": 2.0},
        {"growth_interval": 0},
        {"_growth_tracker": -1},
        {"_growth_tracker": True},
        {"more": 1},
    ],
)
def test_a_scaler_state_that_does_not_fit_changes_nothing(backend, change):
    scaler = optim.GradScaler()
    before = scaler.state_dict()
    with pytest.raises(DataError, match="scaler state: ") as caught:
        scaler.load_state_dict({**before, **change})
    assert "\n" not in str(caught.value)
    assert scaler.state_dict() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_scale": 0.0}, "init_scale: expected a number"),
        ({"init_scale": float("nan")}, "init_scale: expected a number"),
        ({"growth_factor": 0.9}, "growth_factor: expected a number, 1 or more, got 0.9"),
        ({"backoff_factor": 1.5}, "backoff_factor: expected a number"),
        ({"growth_interval": 2.0}, "growth_interval: expected an integer of 1 or more, got 2.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        optim.GradScaler(**arguments)
