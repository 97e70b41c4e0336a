import math

import numpy as np
import pytest

from xpcnn import manual_seed, nn
from xpcnn.backend import use_backend
from xpcnn.errors import ShapeError
from xpcnn.nn import init

DENSE, FILTERS = (300, 200), (40, 30, 5, 3)  # (out, in), (F, C, KH, KW)


@pytest.mark.parametrize(("shape", "fan_in", "fan_out"), [(DENSE, 200, 300), (FILTERS, 450, 600)])
def test_spread(shape, fan_in, fan_out):
    for draw, variance in [
        (init.he_normal, 2 / fan_in),
        (init.he_uniform, 2 / fan_in),
        (init.xavier_normal, 2 / (fan_in + fan_out)),
        (init.xavier_uniform, 2 / (fan_in + fan_out)),
        (lambda shape: init.normal(shape, std=0.3), 0.09),
    ]:
        drawn = draw(shape)
        assert drawn.shape == shape
        assert drawn.std() == pytest.approx(math.sqrt(variance), rel=0.03)
        assert abs(drawn.mean()) < 0.02 * math.sqrt(variance) * 3
    bound = math.sqrt(6 / fan_in)
    drawn = init.he_uniform(shape)
    assert np.abs(drawn).max() <= bound
    assert np.abs(drawn).max() > 0.99 * bound
    assert not np.any(init.zeros(shape))
    assert init.normal(shape, 0.1, 5.0).mean() == pytest.approx(5.0, abs=0.01)


def test_fans_need_two_axes():
    for draw in (init.he_normal, init.he_uniform, init.xavier_normal, init.xavier_uniform):
        with pytest.raises(ShapeError, match=r"shape: expected \(out, in\) or \(F, C/groups, KH, KW\), got \(3,\)"):
            draw((3,))


def test_a_seed_means_the_same_values_on_every_backend():
    drawn = []
    for name in ("numpy", "fake"):
        manual_seed(3)
        with use_backend(name) as backend:
            net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
            drawn.append([backend.to_numpy(parameter.data) for parameter in net.parameters()])
    for one, other in zip(*drawn, strict=True):
        assert np.array_equal(one, other)
    assert np.any(drawn[0][0])
    assert not np.any(drawn[0][1])  # biases are zeros


def test_an_initializer_of_the_user(backend):
    layer = nn.Linear(3, 2, weight_init=lambda shape: np.full(shape, 0.5), bias_init=lambda shape: np.ones(shape))
    assert layer.weight.data.dtype == "float32"
    assert np.all(backend.to_numpy(layer.weight.data) == 0.5)
    assert np.all(backend.to_numpy(layer.bias.data) == 1.0)


def test_an_initializer_of_a_wrong_shape(backend):
    with pytest.raises(ShapeError, match=r"weight: expected initial values of shape \(2, 3\), got \(3, 2\)"):
        nn.Linear(3, 2, weight_init=lambda shape: np.zeros(shape[::-1]))
