"""Branches side by side: what holds beside the rules of every layer."""

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.testing import gradcheck


def test_dense_blocks_and_skips_have_right_gradients(backend, rng):
    def dense(channels, growth):
        layers = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, growth, 3, padding=1))
        return nn.Concat(nn.Identity(), layers)

    model = nn.Sequential(dense(2, 3), dense(5, 3), nn.AvgPool2d(2), nn.Concat(nn.Tanh(), nn.Identity()))
    report = gradcheck(model, values(rng, (3, 2, 4, 4)))
    assert report, report


def test_a_layer_that_is_in_two_branches(backend, rng):
    """Its caches are a stack: backward goes through the branches in reverse."""
    shared = nn.Linear(3, 2)
    model = nn.Concat(shared, nn.Sequential(nn.Sigmoid(), shared))
    report = gradcheck(model, values(rng, (4, 3)))
    assert report, report


def test_results_lie_in_the_order_of_the_branches(backend, rng):
    x = values(rng, (2, 3, 4, 4), "float32")
    model = nn.Concat(nn.ReLU(), nn.Identity(), dim=3)
    y = backend.to_numpy(model(backend.asarray(x)))
    assert np.array_equal(y, np.concatenate([np.maximum(x, 0), x], 3))
    assert [name for name, _ in nn.Concat(nn.Linear(3, 2), nn.Linear(3, 2)).named_parameters()] == [
        "0.weight", "0.bias", "1.weight", "1.bias",
    ]  # fmt: skip


def test_modes_and_state_reach_the_branches(backend):
    model = nn.Concat(nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    assert [module.training for module in model.modules()] == [False] * 3
    assert set(model.state_dict()) == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_what_does_not_fit_is_refused(backend, rng):
    x = backend.asarray(values(rng, (2, 3, 4, 4), "float32"))
    with pytest.raises(ConfigError, match="branches: expected at least one module, got none"):
        nn.Concat()
    with pytest.raises(ConfigError, match=r"branches: expected instances of xpcnn.nn.Module, got 3"):
        nn.Concat(nn.ReLU(), 3)
    with pytest.raises(ShapeError, match="dim: expected 1 or more, got 0"):
        nn.Concat(nn.ReLU(), dim=0)
    with pytest.raises(DTypeError, match="dim: expected integers, got 'channels'"):
        nn.Concat(nn.ReLU(), dim="channels")
    with pytest.raises(ShapeError, match=r"arrays\[1\]: expected shape \(2, 3, 4, 4\), got \(2, 3, 2, 2\)"):
        nn.Concat(nn.ReLU(), nn.MaxPool2d(2))(x)
