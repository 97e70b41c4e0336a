import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm2d, (2, 3, 4, 5))])
def test_running_statistics(backend, rng, layer, shape):
    norm = layer(3, momentum=0.3)
    x = values(rng, shape, "float32") * 2 + 1
    rows = np.moveaxis(x, 1, 0).reshape(3, -1).astype("float64")
    mean, variance = np.zeros(3), np.ones(3)
    for _ in range(3):
        y = backend.to_numpy(norm(backend.asarray(x)))
        mean = 0.7 * mean + 0.3 * rows.mean(axis=1)
        variance = 0.7 * variance + 0.3 * rows.var(axis=1, ddof=1)  # the unbiased one, as in torch
    channels = np.moveaxis(y, 1, 0).reshape(3, -1)
    assert np.allclose(channels.mean(axis=1), 0, atol=1e-6)
    assert np.allclose(channels.std(axis=1), 1, atol=1e-4)
    assert np.allclose(backend.to_numpy(norm.running_mean), mean, rtol=1e-6)
    assert np.allclose(backend.to_numpy(norm.running_var), variance, rtol=1e-6)
    norm.eval()
    before = backend.to_numpy(norm.running_mean).copy()
    y = backend.to_numpy(norm(backend.asarray(x)))
    expected = (rows - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5)
    assert np.allclose(np.moveaxis(y, 1, 0).reshape(3, -1), expected, atol=1e-5)
    assert np.array_equal(backend.to_numpy(norm.running_mean), before)


def test_running_statistics_stay_the_same_arrays(backend, rng):
    norm = nn.BatchNorm2d(3)
    held = norm.state_dict()["running_mean"]
    norm(backend.asarray(values(rng, (2, 3, 4, 5), "float32") + 1))
    assert norm.running_mean is held
    assert np.all(backend.to_numpy(held) != 0)
