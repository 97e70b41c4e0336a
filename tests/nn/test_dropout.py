import copy
import pickle

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import manual_seed, nn, random
from xpcnn.backend import use_backend
from xpcnn.errors import DTypeError, ShapeError


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


def test_a_seed_before_each_of_two_calls_gives_one_mask(backend):
    layer, masks = nn.Dropout(0.5), []
    for _ in range(2):
        manual_seed(0)
        masks.append(backend.to_numpy(layer(ones(backend))))
    assert np.array_equal(*masks)
    manual_seed(1)
    assert not np.array_equal(backend.to_numpy(layer(ones(backend))), masks[0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_share_no_masks(backend, duplicate):
    """Each call draws, whichever layer it is of: copies do not repeat what the layer has drawn or will draw."""
    layer = nn.Dropout(0.5)
    layer(ones(backend))
    layer.forget()
    layers = [layer, duplicate(layer)]
    manual_seed(3)
    masks = [backend.to_numpy(each(ones(backend))) for each in (*layers, *layers)]
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(masks[i], masks[j])
    manual_seed(3)
    assert np.array_equal(backend.to_numpy(layers[1](ones(backend))), masks[0])  # the state is the generator's alone


def test_it_has_no_state_of_its_own(backend):
    layer = nn.Dropout(0.5)
    layer(ones(backend))
    assert not layer.state_dict()
    assert not list(layer.named_buffers())


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_calls_without_a_mask_draw_nothing(backend, p):
    layer = nn.Dropout(p)
    if p == 0.5:
        layer.eval()
    before = random.get_state()
    layer(ones(backend))
    assert random.get_state() == before


def test_one_draw_a_call_whatever_the_dtype(backend):
    masks, states = [], []
    for dtype in ("float16", "float32", "float64"):
        manual_seed(5)
        masks.append(backend.to_numpy(nn.Dropout(0.5)(backend.asarray(np.ones((6, 7), dtype)))) != 0)
        states.append(random.get_state())
    assert states[0] == states[1] == states[2]
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])


def test_a_batch_that_is_refused_draws_nothing(backend):
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Dropout(0.5))
    before = random.get_state()
    for shape in ((2, 3, 4), (2, 4, 5, 5)):
        with pytest.raises(ShapeError):
            net(ones(backend, shape))
    with pytest.raises(DTypeError):
        net(backend.asarray(np.ones((2, 3, 4, 4), "int64")))
    assert random.get_state() == before
