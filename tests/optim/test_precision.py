"""float16 parameters: the float32 masters behind them, and the scale of their gradients."""

import copy

import numpy as np
import pytest

from xpcnn import nn, optim
from xpcnn.errors import DataError
from xpcnn.nn import Parameter

from .conftest import SHAPES, give_gradients, parameters, values


def halves(seed=0):
    return parameters(seed, "float16")


def in_float32(members):
    """Return float32 parameters of the same values."""
    return [Parameter(p.data.astype("float32"), p.name) for p in members]


def train_both(mine, members, its, others, seeds, scale=1.0):
    for seed in seeds:
        give_gradients(members, seed)
        for ours, theirs in zip(members, others, strict=True):
            theirs.accumulate(ours.grad.astype("float32"))
            ours.grad *= scale
        for optimizer in (mine, its):
            optimizer.step()
            optimizer.zero_grad()


def assert_rounded(members, others):
    for ours, theirs in zip(values(members), values(others), strict=True):
        assert ours.dtype == np.float16
        np.testing.assert_array_equal(ours, theirs.astype("float16"))


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_float16_is_the_rounding_of_a_float32_training(backend, make, scale):
    members = halves()
    others = in_float32(members)
    mine, its = make(members), make(others)
    if scale is not None:
        mine.grad_scale = backend.asarray([scale], "float32")
    train_both(mine, members, its, others, range(6), scale or 1.0)
    assert_rounded(members, others)
    for name, value in its.state_dict().items():
        np.testing.assert_array_equal(mine.state_dict()[name], value)


def test_chunks_and_threads_do_not_change_a_bit(make, monkeypatch):
    members, others = halves(), halves()
    whole = make(members)
    monkeypatch.setattr("xpcnn.optim.flat.CHUNK", 16)
    pieces = make(others)
    for optimizer, parts in ((whole, members), (pieces, others)):
        for seed in range(4):
            give_gradients(parts, seed)
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(values(members), values(others), strict=True):
        np.testing.assert_array_equal(a, b)


def test_updates_too_small_for_float16_add_up(backend):
    """A hundred steps of 1e-4 from 1, each a fifth of what float16 can tell from 1."""
    weight = Parameter(backend.asarray(np.ones(3, "float16")))
    update = optim.SGD([weight], lr=1e-4)
    for _ in range(100):
        weight.accumulate(backend.asarray(np.ones(3, "float16")))
        update.step()
        update.zero_grad()
    np.testing.assert_array_equal(values([weight])[0], np.float16(0.99))


def test_a_parameter_that_was_written_takes_the_place_of_its_master(backend, make):
    members = halves()
    others = in_float32(members)
    mine, its = make(members), make(others)
    train_both(mine, members, its, others, range(3))
    members[0].data[...] = 0.25  # in place, as load_state_dict does
    others[0].data[...] = 0.25
    members[1].data = backend.asarray(np.full(SHAPES[1], 0.75, "float16"))
    others[1].data = backend.asarray(np.full(SHAPES[1], 0.75, "float32"))
    train_both(mine, members, its, others, range(3, 6))
    assert_rounded(members, others)


def test_half_keeps_the_float32_values_as_masters(backend, make):
    members = parameters()
    start = values(members)
    mine = make(members)
    layer = nn.Linear(2, 2)
    layer.members = nn.Module()
    for i, parameter in enumerate(members):
        setattr(layer.members, f"p{i}", parameter)
    layer.half()
    mine.gather()
    masters = [mine.state_dict()[f"state.{i}.master"] for i in range(len(members))]
    for value, master, parameter in zip(start, masters, values(members), strict=True):
        np.testing.assert_array_equal(master, value)
        np.testing.assert_array_equal(parameter, value.astype("float16"))


def test_state_continues_bit_by_bit(backend, make):
    members = halves()
    mine = make(members)
    for seed in range(4):
        give_gradients(members, seed)
        mine.step()
        mine.zero_grad()
    state, where = copy.deepcopy(mine.state_dict()), values(members)
    masters = [name for name in state if name.endswith(".master")]
    assert len(masters) == len(SHAPES)
    assert all(state[name].dtype == np.float32 for name in masters)
    others = [Parameter(backend.asarray(value)) for value in where]
    other = make(others)
    other.load_state_dict(state)
    for optimizer, parts in ((mine, members), (other, others)):
        for seed in range(4, 8):
            give_gradients(parts, seed)
            optimizer.step()
            optimizer.zero_grad()
    for name, value in mine.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)
    for a, b in zip(values(members), values(others), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_without_masters_is_refused(make):
    mine = make(halves())
    with pytest.raises(DataError, match=r"expected 'state\.0\.master' as float32 \(4, 2, 3, 3\), got none"):
        make(halves()).load_state_dict({k: v for k, v in mine.state_dict().items() if not k.endswith("master")})


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_guard_leaves_everything_as_it_was(backend, make, value):
    members = halves()
    mine = make(members)
    mine.grad_scale = backend.asarray([8.0], "float32")
    give_gradients(members, 0)
    mine.step()
    mine.zero_grad()
    mine.guard(backend.asarray([True]))
    before, state = values(members), mine.state_dict()
    give_gradients(members, 1)
    members[2].grad[1, 1] = value
    mine.collect()
    assert not all(np.isfinite(float(backend.to_numpy(total))) for total in mine.gradient_sums())
    mine.upload()
    mine.guard(backend.asarray([False]))
    mine.apply()
    for a, b in zip(values(members), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, array in mine.state_dict().items():
        if name.startswith("state."):
            np.testing.assert_array_equal(array, state[name])


def test_the_sum_of_finite_gradients_is_finite(backend):
    weight = Parameter(backend.asarray(np.zeros(1000, "float16")))
    mine = optim.SGD([weight], lr=0.1)
    weight.accumulate(backend.asarray(np.full(1000, 6e4, "float16")))
    mine.collect()
    assert float(backend.to_numpy(mine.gradient_sums()[0])) == pytest.approx(6e7, rel=1e-3)


def test_clipping_counts_without_the_scale(backend):
    """The squares of scaled gradients have no room in float16, nor do they count."""
    members = halves()
    others = in_float32(members)
    give_gradients(members, 3)
    for ours, theirs in zip(members, others, strict=True):
        theirs.accumulate(ours.grad.astype("float32"))
        ours.grad *= 4096
    scale = backend.asarray([4096.0], "float32")
    norm = optim.clip_grad_norm(members, 0.5, scale=scale)
    expected = optim.clip_grad_norm(others, 0.5)
    assert float(backend.to_numpy(norm)) == pytest.approx(float(backend.to_numpy(expected)), rel=1e-6)
    for ours, theirs in zip(members, others, strict=True):
        found = backend.to_numpy(ours.grad).astype("float32") / 4096
        np.testing.assert_allclose(found, backend.to_numpy(theirs.grad), rtol=1e-3)
