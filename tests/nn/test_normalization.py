import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn
from xpcnn.errors import ConfigError, ShapeError


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


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm2d, (2, 3, 4, 5))])
def test_without_momentum_all_batches_are_averaged(backend, rng, layer, shape):
    norm = layer(3, momentum=None)
    batches = [values(rng, shape, "float32") * 2 + 1 for _ in range(8)]
    for x in batches:
        norm(backend.asarray(x))
    rows = [np.moveaxis(x, 1, 0).reshape(3, -1).astype("float64") for x in batches]
    assert int(backend.to_numpy(norm.num_batches_tracked)) == 8
    assert np.allclose(backend.to_numpy(norm.running_mean), np.mean([r.mean(axis=1) for r in rows], axis=0), rtol=1e-5)
    variances = np.mean([r.var(axis=1, ddof=1) for r in rows], axis=0)
    assert np.allclose(backend.to_numpy(norm.running_var), variances, rtol=1e-5)
    other = layer(3, momentum=None)
    other.load_state_dict(norm.state_dict())  # it goes on counting
    for each in (norm, other):
        each(backend.asarray(batches[0]))
    assert np.array_equal(backend.to_numpy(norm.running_mean), backend.to_numpy(other.running_mean))


def test_a_momentum_of_its_own_counts_no_batches():
    assert set(nn.BatchNorm2d(3).state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_a_refused_batch_does_not_count(backend):
    norm = nn.BatchNorm1d(3, momentum=None)
    for shape in ((1, 3), (4, 2)):
        with pytest.raises(ShapeError):
            norm(backend.asarray(np.ones(shape, "float32")))
    assert int(backend.to_numpy(norm.num_batches_tracked)) == 0


def test_of_no_images_there_are_no_statistics(backend):
    norm = nn.BatchNorm2d(3)
    y = norm(backend.zeros((0, 3, 4, 4), "float32"))
    assert y.shape == (0, 3, 4, 4)
    assert norm.backward(y).shape == (0, 3, 4, 4)
    assert not np.any(backend.to_numpy(norm.running_mean))
    assert np.all(backend.to_numpy(norm.running_var) == 1)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps: expected a number above 0, got -1.0"),
        ({"eps": 0}, "eps: expected a number above 0, got 0"),
        ({"eps": float("nan")}, "eps: expected a number above 0, got nan"),
        ({"eps": "small"}, "eps: expected a number above 0, got 'small'"),
        ({"momentum": 1.5}, "momentum: expected a number from 0 to 1, got 1.5"),
        ({"momentum": True}, "momentum: expected a number from 0 to 1, got True"),
    ],
)
def test_batch_norm_refuses_options_that_are_not_allowed(layer, options, message):
    with pytest.raises(ConfigError, match=message):
        layer(3, **options)


def test_one_layer_twice_in_a_chain_gets_the_sum_of_both_gradients(backend, rng):
    """Gradients are written where the parameters have theirs: not by both places at once."""
    shared, first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x, dy = (backend.asarray(rng.normal(size=(5, 3)).astype("float32")) for _ in "ab")
    for model in (nn.Sequential(shared, shared), nn.Sequential(first, second)):
        model.train()
        model(x)
        model.backward(dy)
    for name in ("weight", "bias"):
        mine, *apart = (backend.to_numpy(getattr(layer, name).grad) for layer in (shared, first, second))
        np.testing.assert_allclose(mine, apart[0] + apart[1], rtol=1e-5, atol=1e-6)
        assert np.abs(apart).max() > 0
