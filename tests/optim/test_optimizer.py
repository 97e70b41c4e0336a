"""What all optimisers share: groups, the flat buffer, gradients that count as zero, state, moves between backends."""

import numpy as np
import pytest

from tests.fake_device import capture, counters
from tests.marks import needs_speed
from xpcnn import nn, optim
from xpcnn.backend import backend_of, get_backend, set_num_threads, use_backend
from xpcnn.errors import ConfigError, DataError
from xpcnn.nn import Linear, Parameter, Sequential
from xpcnn.optim import flat

from .conftest import give_gradients, parameters, train, values


def same(a, b):
    for mine, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_shrink_and_decay_by_hand(backend):
    p = Parameter(backend.asarray(np.array([1.0, -2.0], "float32")))
    optimizer = optim.SGD([p], lr=0.5, momentum=0.5, weight_decay=0.1, shrink=0.25)
    for _ in range(2):
        p.accumulate(backend.asarray(np.array([1.0, 1.0], "float32")))
        optimizer.step()
        optimizer.zero_grad()
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for _ in range(2):
        expected = expected * 0.75
        velocity = 0.5 * velocity + 1.0 + 0.1 * expected
        expected = expected - 0.5 * velocity
    np.testing.assert_allclose(backend.to_numpy(p.data), expected, rtol=1e-6)


def test_arrays_are_views_of_one_buffer(backend, make):
    members = parameters()
    before = values(members)
    optimizer = make(members)
    same(before, values(members))
    (buffer,) = optimizer._plans[0].flats
    assert len({id(p.data) for p in members}) == len(members)
    for p in members:
        assert backend.xp.shares_memory(p.data, buffer.data)
        assert backend.xp.shares_memory(p.grad, buffer.grad)


@needs_speed
def test_chunks_and_threads_do_not_change_a_bit(make, monkeypatch):
    whole = parameters(shapes=[(300, 7), (50,)])
    train(make(whole), whole, range(3))
    monkeypatch.setattr(flat, "CHUNK", 64)
    monkeypatch.setattr(get_backend().pool, "worth", 0)
    set_num_threads(2)
    pieces = parameters(shapes=[(300, 7), (50,)])
    optimizer = make(pieces)
    assert len(optimizer._plans[0].flats[0].chunks) > 10
    train(optimizer, pieces, range(3))
    same(values(whole), values(pieces))


def test_zero_grad_writes_nothing_and_counts_as_zero(backend, make):
    members = parameters()
    optimizer = make(members)
    give_gradients(members, 0)
    optimizer.zero_grad()
    (buffer,) = optimizer._plans[0].flats
    assert np.abs(backend.to_numpy(buffer.grad)).max() > 0  # the memory is as it was
    others = parameters()
    other = make(others)
    for p in others:
        p.grad = backend.zeros(p.shape, "float32")
    optimizer.step()
    other.step()
    same(values(members), values(others))
    assert all(not backend.to_numpy(p.grad).any() for p in members)


def test_a_step_needs_nothing_from_the_host(make):
    with use_backend("fake"):
        members = parameters()
        optimizer = make(members)
        train(optimizer, members, range(2))
        give_gradients(members, 2)
        optimizer.collect()
        optimizer.upload()
        counters.reset()
        with capture():
            optimizer.apply()
        assert (counters.uploads, counters.downloads, counters.syncs) == (0, 0, 0)
        expected = parameters()
        train(make(expected), expected, range(3))
        same(values(members), values(expected))


def test_numbers_that_change_reach_the_update_through_memory(backend, make):
    """A captured step replays `apply` alone: a new rate must arrive without running Python."""
    members = parameters()
    optimizer = make(members)
    train(optimizer, members, [0])
    generation = optimizer.generation
    give_gradients(members, 1)
    optimizer.lr = 0.0
    optimizer.collect()
    optimizer.upload()
    assert optimizer.generation == generation


def test_replaced_arrays_are_taken_in(backend, make):
    members, others = parameters(), parameters()
    optimizer, other = make(members), make(others)
    train(optimizer, members, [0])
    train(other, others, [0])
    new = backend.asarray(np.full(members[0].shape, 0.5, "float32"))
    members[0].data = new
    others[0].data[...] = new
    train(optimizer, members, [1])
    train(other, others, [1])
    same(values(members), values(others))
    np.testing.assert_array_equal(backend.to_numpy(new), 0.5)  # the user's array is not written


def test_a_second_optimiser_takes_over(backend, make):
    members, others = parameters(), parameters()
    train(make(members), members, [0])
    second = make(members)
    train(second, members, [1])
    first = make(others)
    train(first, others, [0])
    train(make(others), others, [1])
    same(values(members), values(others))


def test_moving_between_backends_in_mid_training(make, backend, other_backend):
    order = backend.name, other_backend
    stayed = parameters()
    train(make(stayed), stayed, range(6))
    with use_backend(order[0]):
        net = Sequential(Linear(3, 4))
        members = parameters()
        for i, p in enumerate(members):
            setattr(net, f"p{i}", p)
    # Sequential shows its layers only; a plain holder shows the parameters.
    holder = Linear(1, 1, bias=False)
    holder.weight = None
    for i, p in enumerate(members):
        setattr(holder, f"p{i}", p)
    with use_backend(order[0]):
        optimizer = make(members)
        train(optimizer, members, range(3))
    holder.to(order[1])
    with use_backend(order[1]):
        train(optimizer, members, range(3, 6))
        assert all(backend_of(p.data) is get_backend() for p in members)
    for mine, other in zip(values(members), values(stayed), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-7)


def test_a_gradient_survives_the_move(backend, other_backend):
    member = Parameter(backend.asarray(np.ones(3, "float32")))
    optimizer = optim.SGD([member], lr=1.0)
    member.accumulate(backend.asarray(np.array([1.0, 2.0, 3.0], "float32")))
    holder = Linear(1, 1, bias=False)
    holder.weight = member
    holder.to(other_backend)
    optimizer.step()
    np.testing.assert_array_equal(values([member])[0], [0.0, -1.0, -2.0])


def test_state_continues_bit_by_bit(backend, make):
    straight = parameters()
    train(make(straight), straight, range(6))
    members = parameters()
    optimizer = make(members)
    train(optimizer, members, range(3))
    saved, state = values(members), optimizer.state_dict()
    train(optimizer, members, [7])  # what was saved must not change with the optimiser
    resumed = parameters(seed=5)
    other = make(resumed)
    for p, value in zip(resumed, saved, strict=True):
        p.data[...] = backend.asarray(value)
    other.load_state_dict(state)
    train(other, resumed, range(3, 6))
    same(values(straight), values(resumed))


def test_state_is_flat_host_arrays_and_plain_numbers(backend, make):
    members = parameters()
    optimizer = make(members)
    train(optimizer, members, [0])
    for name, value in optimizer.state_dict().items():
        assert isinstance(name, str)
        assert isinstance(value, (np.ndarray, int, float, bool)), name


def _damage(state, change):
    damaged = dict(state)
    change(damaged)
    return damaged


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("state.0.velocity"),
        lambda s: s.pop("group.0.lr"),
        lambda s: s.update({"state.0.velocity": np.zeros(3, "float32")}),
        lambda s: s.update({"state.1.velocity": np.zeros(4, "float64")}),
        lambda s: s.update({"state.1.velocity": 3.0}),
        lambda s: s.update({"state.9.velocity": np.zeros(4, "float32")}),
        lambda s: s.update({"group.0.lr": "fast"}),
        lambda s: s.update({"group.0.lr": -1.0}),
        lambda s: s.update({"group.0.nesterov": 1}),
        lambda s: s.update({"group.7.lr": 0.1}),
        lambda s: s.update({"group.0.momentum": float("nan")}),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(backend, change):
    members = parameters()
    optimizer = optim.SGD(members, lr=0.1, momentum=0.9, nesterov=True)
    train(optimizer, members, [0])
    state = optimizer.state_dict()
    with pytest.raises(DataError, match=r"optimiser state: .*expected"):
        optimizer.load_state_dict(_damage(state, change))
    after = optimizer.state_dict()
    assert after.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(after[name], value)


def test_state_of_another_kind_is_refused(backend):
    members = parameters()
    with pytest.raises(DataError, match="optimiser state"):
        optim.SGD(members, lr=0.1).load_state_dict(optim.Adam(members).state_dict())


def test_momentum_may_begin_later(backend):
    members, others = parameters(), parameters()
    optimizer, other = optim.SGD(members, 0.1), optim.SGD(others, 0.1, momentum=0.5)
    optimizer.param_groups[0]["momentum"] = 0.5
    train(optimizer, members, range(3))
    train(other, others, range(3))
    same(values(members), values(others))


@pytest.mark.parametrize(
    ("kind", "switch"), [(optim.SGD, "nesterov"), (optim.Adam, "amsgrad"), (optim.RMSprop, "centered")]
)
def test_a_switch_may_be_turned(backend, kind, switch):
    options = {"momentum": 0.5} if kind is optim.SGD else {}
    members, others = parameters(), parameters()
    optimizer, other = kind(members, 0.1, **options), kind(others, 0.1, **options, **{switch: True})
    give_gradients(members, 0)
    give_gradients(others, 0)
    for each in (optimizer, other):
        each.param_groups[0]["lr"] = 0.0
        each.step()
    optimizer.param_groups[0][switch] = True
    generation = optimizer.generation
    optimizer.step()
    assert optimizer.generation > generation
    assert optimizer.state_dict().keys() == other.state_dict().keys()


def test_lr_sets_every_group(backend):
    a, b, c, _ = parameters()
    optimizer = optim.Adam([{"params": [a], "lr": 0.5}, {"params": [b, c]}], lr=0.1)
    assert optimizer.lr == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    optimizer.param_groups[1]["lr"] = 0.2
    optimizer.lr = 0.3
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]


def test_mixed_dtypes_in_one_group(backend, make):
    members = [*parameters(dtype="float32"), *parameters(dtype="float64")]
    alone = parameters(dtype="float64")
    optimizer, other = make(members), make(alone)
    for seed in range(3):
        give_gradients(members[:4], seed)
        give_gradients(members[4:], seed)
        give_gradients(alone, seed)
        for each in (optimizer, other):
            each.step()
            each.zero_grad()
    assert [str(p.data.dtype) for p in members] == ["float32"] * 4 + ["float64"] * 4
    same(values(members[4:]), values(alone))


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gradient_sums_show_what_is_not_finite(backend, place, value):
    members = parameters()
    optimizer = optim.SGD(members, 0.1)
    give_gradients(members, 0)
    optimizer.collect()
    assert np.isfinite([backend.to_numpy(total) for total in optimizer.gradient_sums()]).all()
    bad = np.zeros(members[place].shape, "float32")
    bad.flat[-1] = value
    members[place].accumulate(backend.asarray(bad))
    optimizer.collect()
    assert not np.isfinite([backend.to_numpy(total) for total in optimizer.gradient_sums()]).all()


@pytest.mark.parametrize("place", [0, -1])
def test_gradient_sums_made_in_parts_leave_nothing_out(backend, rng, monkeypatch, place):
    monkeypatch.setattr(flat, "CHUNK", 32)
    monkeypatch.setattr(backend, "get_num_threads", lambda: 3)
    parameter = Parameter(backend.asarray(rng.normal(size=1000)))
    optimizer = optim.SGD([parameter], 0.1)
    gradient = rng.normal(size=1000)
    parameter.accumulate(backend.asarray(gradient))
    optimizer.collect()
    (total,) = optimizer.gradient_sums()
    assert float(backend.to_numpy(total)) == pytest.approx(gradient.sum(), rel=1e-12)
    bad = np.zeros(1000)
    bad[place] = np.nan
    parameter.accumulate(backend.asarray(bad))
    optimizer.collect()
    assert np.isnan(backend.to_numpy(optimizer.gradient_sums()[0]))


@pytest.mark.parametrize(("when", "limit"), [(0, None), (2, None), (2, 5)], ids=["first", "later", "too large"])
def test_guard_leaves_everything_as_it_was(backend, make, when, limit, monkeypatch):
    if limit is not None:  # more numbers than a backend's kernel counts
        monkeypatch.setattr(backend, "update_limit", min(limit, backend.update_limit))
    members = parameters()
    optimizer = make(members)
    train(optimizer, members, range(when))
    before, state = values(members), optimizer.state_dict()
    for p in members:
        p.accumulate(backend.asarray(np.full(p.shape, np.nan, "float32")))
    optimizer.collect()
    optimizer.upload()
    optimizer.guard(backend.asarray([False]))
    optimizer.apply()
    same(before, values(members))
    for name, value in optimizer.state_dict().items():
        if name.startswith("state."):
            np.testing.assert_array_equal(value, state[name])
    # And a step that is let through is the usual one.
    optimizer.zero_grad()
    others = parameters()
    other = make(others)
    train(other, others, range(when))
    if any(name.startswith("memory") for name in state):
        other.load_state_dict(optimizer.state_dict())  # the host has counted the step that was left out
    give_gradients(members, 9)
    optimizer.collect()
    optimizer.upload()
    optimizer.guard(backend.asarray([True]))
    optimizer.apply()
    train(other, others, [9])
    same(values(members), values(others))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda p: optim.SGD([], 0.1), "at least one Parameter"),
        (lambda p: optim.SGD([p.data], 0.1), "instances of nn.Parameter"),
        (lambda p: optim.SGD([p, p], 0.1), "'p0' twice"),
        (lambda p: optim.SGD([{"params": [p], "rate": 3}], 0.1), "'rate'"),
        (lambda p: optim.SGD([{"lr": 3}], 0.1), "groups such as"),
        (lambda p: optim.SGD([p], -0.1), "lr: expected"),
        (lambda p: optim.SGD([p], "0.1"), "lr: expected"),
        (lambda p: optim.SGD([p], float("nan")), "lr: expected"),
        (lambda p: optim.SGD([p], 0.1, nesterov=True), "nesterov: expected momentum"),
        (lambda p: optim.SGD([p], 0.1, shrink=1.0), "shrink: expected"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), r"betas\[1\]: expected"),
        (lambda p: optim.Adam([p], betas=0.9), "betas: expected two numbers"),
        (lambda p: optim.RMSprop([p], alpha=1.5), "alpha: expected"),
        (lambda p: optim.RMSprop([p], centered=1), "centered: expected True or False"),
        (lambda p: optim.Adagrad([p], lr_decay=-1), "lr_decay: expected"),
        (lambda p: optim.clip_grad_norm([], 1.0), "at least one Parameter"),
        (lambda p: optim.clip_grad_norm([p], -1.0), "max_norm: expected"),
    ],
)
def test_wrong_arguments(backend, arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        arguments(parameters()[0])
    assert "\n" not in str(caught.value)


def test_clip_grad_norm_on_every_backend(backend):
    members = parameters()
    give_gradients(members[:2], 0)  # the others count as zero
    host = [backend.to_numpy(p.grad).astype("float64") for p in members[:2]]
    expected = np.sqrt(sum((g**2).sum() for g in host))
    norm = optim.clip_grad_norm(members, 1.0)
    assert float(backend.to_numpy(norm)) == pytest.approx(expected, rel=1e-5)
    for p, g in zip(members, host, strict=False):
        np.testing.assert_allclose(backend.to_numpy(p.grad), g / (expected + 1e-6), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", [0.55, 0.95, -0.55, -0.95])
def test_clip_grad_norm_of_any_magnitude(backend, dtype, share):
    """Squares have twice the exponents that there are."""
    size = float(np.finfo(dtype).max) ** share
    members = [nn.Parameter(np.zeros(2, dtype)), nn.Parameter(np.zeros((1, 1), dtype))]
    for parameter, gradient in zip(members, ([3 * size, 4 * size], [[0.0]]), strict=True):
        parameter.grad = backend.asarray(np.array(gradient, dtype))
    norm = optim.clip_grad_norm(members, size if share > 0 else 1.0)
    assert norm.dtype == dtype
    assert float(backend.to_numpy(norm)) == pytest.approx(5 * size, rel=1e-6)
    expected = np.array([0.6, 0.8]) * size if share > 0 else np.array([3, 4]) * size
    np.testing.assert_allclose(backend.to_numpy(members[0].grad), expected, rtol=1e-5)


def test_clip_grad_norm_beyond_the_dtype(backend):
    parameter = nn.Parameter(backend.zeros((4,), "float32"))
    parameter.grad = backend.asarray(np.full(4, 3e38, np.float32))
    with np.errstate(all="raise"):
        assert backend.to_numpy(optim.clip_grad_norm(parameter, np.float32(1e30))) == np.inf
    np.testing.assert_allclose(backend.to_numpy(parameter.grad), 0.5e30, rtol=1e-5)
