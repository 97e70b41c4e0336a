"""States of other libraries: names and tensors as PyTorch has them, read without it."""

from collections import OrderedDict

import numpy as np
import pytest

from tests.backend.test_exchange import Bits, Theirs, Watched
from xpcnn import nn
from xpcnn.errors import ConfigError, DTypeError, ShapeError, StateError


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))


def host(model):
    return {name: model.backend.to_numpy(array).copy() for name, array in model.state_dict().items()}


def assert_state(model, expected):
    found = host(model)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name, strict=True)


@pytest.mark.parametrize("kind", [np.asarray, Theirs, Watched, Bits])
def test_tensors_of_all_kinds(backend, kind):
    net = network()
    expected = {name: array + 1 for name, array in host(net).items()}
    keys = net.load_state_dict(OrderedDict((name, kind(array)) for name, array in expected.items()))
    assert keys == ([], [])
    assert repr(keys) == "<All keys matched successfully>"
    assert_state(net, expected)


def test_the_count_of_batches_is_left_out_where_nothing_counts(backend):
    net = network()
    expected = {name: array + 1 for name, array in host(net).items()}
    counter = {"1.num_batches_tracked": np.asarray(7)}
    assert net.load_state_dict({**expected, **counter}) == ([], [])
    assert_state(net, expected)
    norm = nn.BatchNorm2d(3)
    assert norm.load_state_dict({**host(norm), "num_batches_tracked": np.asarray(7)}) == ([], [])
    with pytest.raises(StateError, match=r"unknown \['0.num_batches_tracked'\]"):  # no batch norm is there
        net.load_state_dict({**expected, "0.num_batches_tracked": np.asarray(7)})


def test_the_count_of_batches_is_taken_where_it_counts(backend):
    norm = nn.BatchNorm2d(3, momentum=None)
    norm.load_state_dict({**host(norm), "num_batches_tracked": np.asarray(7)})
    assert host(norm)["num_batches_tracked"] == 7
    with pytest.raises(StateError, match=r"missing \['num_batches_tracked'\]"):
        norm.load_state_dict({name: a for name, a in host(norm).items() if name != "num_batches_tracked"})


def test_not_strict_reports_what_was_left(backend):
    net = network()
    before = host(net)
    state = {"4.bias": before["4.bias"] + 1, "head.bias": np.ones(3), "0.weight": before["0.weight"] + 1}
    keys = net.load_state_dict(state, strict=False)
    assert keys.missing_keys == sorted(before.keys() - {"4.bias", "0.weight"})
    assert keys.unexpected_keys == ["head.bias"]
    assert repr(keys).startswith("IncompatibleKeys(missing_keys=['0.bias', ")
    assert_state(net, {**before, "4.bias": state["4.bias"], "0.weight": state["0.weight"]})
    assert net.load_state_dict({}, strict=False).missing_keys == sorted(before)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"4.bias": np.ones(5, "float32")}, ShapeError, r"4.bias: expected shape \(4,\), got \(5,\)"),
        ({"4.bias": np.ones(4, "float64")}, DTypeError, r"4.bias: expected dtype float32, got float64, .*model.to"),
        ({"4.bias": np.ones(4, "int32")}, DTypeError, "4.bias: expected dtype float32, got int32"),
        ({"4.bias": np.ones(4, "complex64")}, DTypeError, "4.bias: expected real numbers, got dtype complex64"),
        ({"4.bias": 1.0}, DTypeError, "4.bias: expected an array, got float"),
    ],
)
def test_what_does_not_fit_changes_nothing(backend, strict, change, error, message):
    net = network()
    before = host(net)
    state = {name: array + 1 for name, array in before.items()}
    with pytest.raises(error, match=message):
        net.load_state_dict({**state, **change}, strict)
    assert_state(net, before)


@pytest.mark.parametrize("state", [None, [1], "model.pt", 3])
def test_no_state_at_all(state):
    with pytest.raises(ConfigError, match=r"state: expected names with their arrays, .*got"):
        network().load_state_dict(state)


@pytest.mark.parametrize(("found", "own"), [("float16", "float32"), ("float16", "float64"), ("float32", "float64")])
def test_narrow_floats_fit_into_wide_ones(backend, found, own):
    net = network().to(dtype=own)
    state = {name: (array + 1).astype(found) for name, array in host(net).items()}
    net.load_state_dict(state)
    assert_state(net, {name: array.astype(own) for name, array in state.items()})
    with pytest.raises(DTypeError, match=f"expected dtype {found}, got {own}"):
        nn.Linear(2, 2).to(dtype=found).load_state_dict(host(nn.Linear(2, 2).to(dtype=own)))


def test_layers_that_a_model_holds_twice_go_by_both_names(backend):
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    expected = {name: array + 1 for name, array in host(net).items()}
    theirs = {**expected, **{name.replace("0.", "2."): array for name, array in expected.items()}}
    assert net.load_state_dict(theirs) == ([], [])
    assert_state(net, expected)
    net.load_state_dict({name.replace("0.", "2."): array + 1 for name, array in expected.items()})
    assert_state(net, {name: array + 1 for name, array in expected.items()})
