import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import manual_seed, nn
from xpcnn.backend import use_backend


def ones(backend, shape=(50, 4, 5, 5)):
    return backend.asarray(np.ones(shape, "float32"))


def test_drops_a_share_and_scales_the_rest(backend):
    y = backend.to_numpy(nn.Dropout(0.25)(ones(backend)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.02)


def test_the_gradient_takes_the_same_mask(backend):
    layer = nn.Dropout(0.5)
    masks = [layer(ones(backend)) for _ in range(3)]
    assert not np.array_equal(backend.to_numpy(masks[0]), backend.to_numpy(masks[1]))
    for mask in reversed(masks):  # also for forwards whose mask is not the last one
        assert np.array_equal(backend.to_numpy(layer.backward(ones(backend))), backend.to_numpy(mask))


def test_a_seed_means_the_same_masks_on_every_backend(rng):
    x = values(rng, (6, 4, 5, 5), "float32")
    results = []
    for name in ("numpy", "fake", "numpy"):
        manual_seed(7)
        with use_backend(name) as backend:
            layers = [nn.Dropout(0.5), nn.Dropout(0.5)]
            results.append([backend.to_numpy(layer(backend.asarray(x))) for layer in layers for _ in range(2)])
    for others in results[1:]:
        for mask, other in zip(results[0], others, strict=True):
            assert np.array_equal(mask, other)
    first = results[0]
    assert not np.array_equal(first[0] != 0, first[1] != 0)  # from call to call
    assert not np.array_equal(first[0] != 0, first[2] != 0)  # and from layer to layer


@pytest.mark.parametrize(("p", "value"), [(0.0, 1.0), (1.0, 0.0)])
def test_all_or_nothing(backend, p, value):
    layer = nn.Dropout(p)
    assert np.all(backend.to_numpy(layer(ones(backend))) == value)
    assert np.all(backend.to_numpy(layer.backward(ones(backend))) == value)


def test_evaluation_changes_nothing(backend, rng):
    x = backend.asarray(values(rng, (3, 4), "float32"))
    layer = nn.Dropout(0.9).eval()
    y = layer(x)
    assert np.array_equal(backend.to_numpy(y), backend.to_numpy(x))
    assert not backend.xp.shares_memory(y, x)  # y is the caller's
