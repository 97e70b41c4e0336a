"""What a step works with follows from the groups as they are then, as an optimiser made for it from the start would."""

import copy

import numpy as np
import pytest

from xpcnn import nn, optim
from xpcnn.errors import ConfigError, DataError

from .conftest import give_gradients, parameters, train, values


def same(a, b):
    for mine, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_group_is_added(backend, make):
    members, others = parameters(), parameters()
    update, other = make(members[:2]), make(others)
    update.add_param_group({"params": members[2:]})
    assert update.parameters() == members
    train(update, members, range(3))
    train(other, others, range(3))
    same(values(members), values(others))


def test_a_group_has_options_of_its_own_and_the_defaults(backend):
    a, b, *_ = parameters()
    update = optim.SGD([a], 0.1, 0.9, weight_decay=0.5)
    update.add_param_group({"params": b, "lr": 0.3})
    assert update.param_groups[1]["params"] == [b]
    assert [group["lr"] for group in update.param_groups] == [0.1, 0.3]
    assert update.param_groups[1]["weight_decay"] == 0.5


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (lambda a, b: [b], "group: expected a dict"),
        (lambda a, b: {"lr": 1.0}, "groups such as"),
        (lambda a, b: {"params": [a]}, "'p0' twice"),
        (lambda a, b: {"params": [b, b]}, "'p1' twice"),
        (lambda a, b: {"params": [b.data]}, "instances of nn.Parameter"),
        (lambda a, b: {"params": [b], "rate": 1.0}, "'rate'"),
        (lambda a, b: {"params": [b], "lr": -1.0}, "lr: expected"),
    ],
)
def test_a_group_that_does_not_fit_changes_nothing(backend, group, message):
    a, b, *_ = parameters()
    update = optim.SGD([a], 0.1)
    with pytest.raises(ConfigError, match=message):
        update.add_param_group(group(a, b))
    assert update.parameters() == [a]
    train(update, [a], [0])


def test_lists_of_parameters_are_edited(backend, make):
    """Appended, removed, replaced: each parameter as if an optimiser of its own had it for just these steps."""
    members, alone = parameters(), parameters()
    update = make(members[:2])
    apart = [make([each]) for each in alone]

    def steps(which, seeds):
        for seed in seeds:
            give_gradients(members, seed)
            give_gradients(alone, seed)
            update.step()
            for i in which:
                apart[i].step()
            for each in (*members, *alone):
                each.zero_grad()

    steps([0, 1], range(2))
    update.param_groups[0]["params"].append(members[2])
    steps([0, 1, 2], range(2, 4))
    del update.param_groups[0]["params"][0]
    steps([1, 2], range(4, 6))
    update.param_groups[0]["params"] = [members[3], members[1]]
    steps([3, 1], range(6, 8))
    update.param_groups[0]["params"] = members
    steps([0, 1, 2, 3], range(8, 10))
    same(values(members), values(alone))
    assert update.parameters() == members


def test_a_parameter_moves_between_groups_with_its_state(backend):
    (a, b, *_), (c, d, *_) = parameters(), parameters()
    update, other = optim.SGD([{"params": [a]}, {"params": [b]}], 0.1, 0.9), optim.SGD([c, d], 0.1, 0.9)
    train(update, [a, b], range(3))
    train(other, [c, d], range(3))
    update.param_groups[1]["params"].append(update.param_groups[0]["params"].pop())
    del update.param_groups[0]
    train(update, [a, b], range(3, 5))
    train(other, [c, d], range(3, 5))
    same(values([a, b]), values([c, d]))


def test_a_group_put_into_the_list_gets_the_defaults(backend):
    a, b, *_ = parameters()
    update = optim.SGD([a], 0.1, 0.9)
    update.param_groups.append({"params": [b], "lr": 0.2})
    train(update, [a, b], [0])
    assert update.param_groups[1]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda group, p: group.update(momentun=0.9), "momentun.* added"),
        (lambda group, p: group.pop("lr"), "lr.* missing"),
        (lambda group, p: group.update(lr=-1.0), "lr: expected"),
        (lambda group, p: group.update(nesterov=True, momentum=0.0), "nesterov: expected momentum"),
        (lambda group, p: group["params"].append(p.data), "instances of nn.Parameter"),
        (lambda group, p: group["params"].append(p), "'p0' twice"),
        (lambda group, p: group.update(params=tuple(group["params"])), "params: expected a list"),
    ],
)
def test_an_edit_that_cannot_be_is_one_clear_error(backend, edit, message):
    members = parameters()
    update = optim.SGD(members, 0.1, 0.5)
    train(update, members, [0])
    before = values(members)
    edit(update.param_groups[0], members[0])
    give_gradients(members, 1)
    for _ in range(2):
        with pytest.raises(ConfigError, match=message) as caught:
            update.step()
        assert "\n" not in str(caught.value)
    same(values(members), before)


# --- options turned on and off ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fixed", "option", "on", "off"),
    [
        (optim.SGD, {}, "momentum", 0.9, 0.0),
        (optim.SGD, {"momentum": 0.9}, "nesterov", True, False),
        (optim.SGD, {"momentum": 0.9}, "weight_decay", 0.1, 0.0),
        (optim.SGD, {}, "shrink", 0.1, 0.0),
        (optim.Adam, {}, "weight_decay", 0.1, 0.0),
        (optim.AdamW, {}, "weight_decay", 0.1, 0.0),
        (optim.RMSprop, {}, "momentum", 0.9, 0.0),
        (optim.RMSprop, {}, "centered", True, False),
        (optim.Adagrad, {}, "weight_decay", 0.1, 0.0),
    ],
)
def test_an_option_that_is_turned_works_at_once(backend, kind, fixed, option, on, off):
    """Each step against a new optimiser with that option, which is given the state."""
    members, others = parameters(), parameters()
    update = kind(members, 0.01, **fixed, **{option: off})
    other = kind(others, 0.01, **fixed, **{option: off})
    for seed, value in enumerate([off, on, on, off, on]):
        update.param_groups[0][option] = value
        train(update, members, [seed])
        state = other.state_dict()
        state[f"group.0.{option}"] = value
        for i, parameter in enumerate(others):
            for name in kind(others, 0.01, **fixed, **{option: value})._state(update.param_groups[0]):
                state.setdefault(f"state.{i}.{name}", np.zeros(parameter.shape, "float32"))
        other = kind(others, 0.01, **fixed, **{option: value})
        other.load_state_dict(state)
        train(other, others, [seed])
        same(values(members), values(others))


def test_what_is_to_be_replayed_is_known_before_the_step(backend):
    """A trainer chooses its record after `gather`: `upload` must not change the kind of update any more."""
    members = parameters()
    update = optim.SGD(members, 0.1)
    train(update, members, [0])
    for edit in (
        lambda: update.param_groups[0].update(momentum=0.9),
        lambda: update.param_groups[0].update(weight_decay=0.1),
        lambda: update.param_groups[0]["params"].pop(),
        lambda: setattr(members[0], "requires_grad", False),
        lambda: update.add_param_group({"params": [members[-1]]}),
    ):
        before = update.generation
        edit()
        update.gather()
        known = update.generation
        assert known > before
        update.upload()
        assert update.generation == known
    update.param_groups[0]["lr"] = 0.2
    update.gather()
    update.upload()
    assert update.generation == known


# --- frozen parameters ------------------------------------------------------------------------------------------------


def test_a_frozen_parameter_stands_still_and_comes_back(backend, make):
    """As if an optimiser of its own had not been called meanwhile: no decay, no momentum, no count of steps."""
    members, alone = parameters(), parameters()
    update, apart = make(members), [make([each]) for each in alone]
    for seed in range(9):
        frozen = {3: [1], 4: [1, 3], 5: [0, 1, 2, 3], 6: [1]}.get(seed, [])
        for i, each in enumerate(members):
            each.requires_grad = i not in frozen
        before = values(members)
        give_gradients(members, seed)
        give_gradients(alone, seed)
        update.step()
        for i, other in enumerate(apart):
            if i not in frozen:
                other.step()
            else:
                np.testing.assert_array_equal(values(members)[i], before[i])
        for each in (*members, *alone):
            each.zero_grad()
        same(values(members), values(alone))


def test_the_state_of_frozen_and_later_parameters_is_saved(backend, make):
    straight, members = parameters(), parameters()
    update = make(members[:3])

    def begin(update, members):
        train(update, members, range(2))
        members[0].requires_grad = False
        train(update, members, [2])
        update.param_groups[0]["params"].append(members[3])
        train(update, members, range(3, 5))

    def go_on(update, members):
        train(update, members, [5])
        members[0].requires_grad = True
        train(update, members, range(6, 8))

    begin(first := make(straight[:3]), straight)
    go_on(first, straight)
    begin(update, members)
    state = copy.deepcopy(update.state_dict())
    others = parameters(seed=5)
    others[0].requires_grad = False
    for mine, value in zip(others, values(members), strict=True):
        mine.data[...] = backend.asarray(value)
    other = make(others)
    other.load_state_dict(state)
    assert other.state_dict().keys() == state.keys()
    go_on(other, others)
    same(values(straight), values(others))


def test_a_counter_of_no_parameter_is_refused(backend):
    members = parameters()
    update = optim.Adam(members)
    state = update.state_dict()
    for key in ("counter.9.step", "counter.0.age", "counter.0"):
        with pytest.raises(DataError, match="expected no"):
            update.load_state_dict({**state, key: 1})
    with pytest.raises(DataError, match=r"counter.0.step"):
        update.load_state_dict({**state, "counter.0.step": "many"})


def test_all_frozen(backend, make):
    members = parameters()
    update = make(members)
    for each in members:
        each.requires_grad = False
    before = values(members)
    train(update, members, range(2))
    same(values(members), before)
    update.collect()
    assert [float(backend.to_numpy(total)) for total in update.gradient_sums()] == [0.0]


def test_buffers_that_nobody_lies_in_go(backend):
    members = parameters()
    update = optim.SGD(members, 0.1)
    (flat,) = update._plans[0].flats
    members[0].requires_grad = False
    del update.param_groups[0]["params"][1]
    update.gather()
    for each in members:
        assert not backend.xp.shares_memory(each.data, flat.data)


# --- models whose layers change ---------------------------------------------------------------------------------------


def test_a_net_that_grows(backend, rng):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    update = optim.SGD(net.parameters(), 0.1, 0.9)
    x = backend.asarray(rng.normal(size=(5, 3)).astype("float32"))
    net.backward(net(x), input_gradient=False)
    update.step()
    net.insert(2, nn.Linear(4, 2))
    update.add_param_group({"params": net[2].parameters()})
    net[0].weight = nn.Parameter(backend.zeros((4, 3), "float32"))
    update.param_groups[0]["params"][0] = net[0].weight
    before = values(net.parameters())
    net[0].bias.data += 1
    net.backward(net(x), input_gradient=False)
    update.step()
    assert {id(each) for each in update.parameters()} == {id(each) for each in net.parameters()}
    assert all(not np.array_equal(a, b) for a, b in zip(before, values(net.parameters()), strict=True))
