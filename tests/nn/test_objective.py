"""The loss of a whole network with L2, and its gradients."""

import numpy as np

from xpcnn import models, nn
from xpcnn.nn import loss_and_gradients
from xpcnn.testing import assert_close, relative_error


def small_net():
    return models.create(
        "three-layer", num_filters=3, filter_size=3, input_shape=(3, 8, 8), hidden_dim=7, weight_scale=0.2
    )


def batch(backend, rng):
    x = rng.standard_normal((5, 3, 8, 8)).astype("float32")
    return backend.asarray(x), backend.asarray(rng.integers(0, 10, 5))


def test_decay_adds_half_the_squares_and_the_weights_themselves(backend, rng):
    net = small_net()
    x, labels = batch(backend, rng)
    plain, slopes = loss_and_gradients(net, x, labels)
    loss, gradients = loss_and_gradients(net, x, labels, reg=0.5)
    weights = {name: backend.to_numpy(p.data).astype("float64") for name, p in net.named_parameters()}
    decayed = [name for name in weights if name.endswith("weight")]
    assert len(decayed) == 3
    expected = float(backend.to_numpy(plain)) + 0.25 * sum(np.sum(weights[name] ** 2) for name in decayed)
    assert relative_error(backend.to_numpy(loss), expected) < 1e-6
    for name, slope in slopes.items():
        want = backend.to_numpy(slope) + (0.5 * weights[name] if name in decayed else 0.0)
        assert_close(backend.to_numpy(gradients[name]), want.astype("float32"))


def test_gradients_are_copies_and_the_model_s_own_are_zero_after(backend, rng):
    net = small_net()
    x, labels = batch(backend, rng)
    _, first = loss_and_gradients(net, x, labels)
    kept = {name: backend.to_numpy(g).copy() for name, g in first.items()}
    _, second = loss_and_gradients(net, x, labels)
    for name, parameter in net.named_parameters():
        assert np.array_equal(backend.to_numpy(first[name]), kept[name])
        assert np.array_equal(backend.to_numpy(second[name]), kept[name])  # they did not add up
        assert not backend.to_numpy(parameter.grad).any()


def test_it_is_the_loss_that_was_asked_for(backend, rng):
    net = small_net()
    x, labels = batch(backend, rng)
    mean, slopes = loss_and_gradients(net, x, labels)
    total, sums = loss_and_gradients(net, x, labels, criterion=nn.CrossEntropyLoss(reduction="sum"))
    assert relative_error(backend.to_numpy(total), 5 * backend.to_numpy(mean)) < 1e-6
    for name, slope in slopes.items():
        assert_close(backend.to_numpy(sums[name]), 5 * backend.to_numpy(slope))
