"""The one-image notebook's mistakes: sizes, slices, layers that never train, ties."""

import numpy as np
import pytest

from xpcnn import functional as F
from xpcnn import nn, recipes
from xpcnn.datasets import load_mnist


def test_a_convolution_keeps_its_whole_width(backend):
    """28x28 gives 26x26, and the last column is computed like the first."""
    x = np.arange(28 * 28, dtype=np.float32).reshape(1, 1, 28, 28)
    weight = np.zeros((1, 1, 3, 3), np.float32)
    weight[0, 0, 1, 1] = 1.0  # the image without its border
    y, _ = F.conv2d(backend.asarray(x), backend.asarray(weight))
    assert y.shape == (1, 1, 26, 26)
    np.testing.assert_allclose(backend.to_numpy(y)[0, 0], x[0, 0, 1:-1, 1:-1], rtol=1e-5)


def test_pooling_looks_at_every_window(backend):
    x = np.arange(26 * 26, dtype=np.float32).reshape(1, 1, 26, 26)
    y, _ = F.max_pool2d(backend.asarray(x), 2)
    assert np.array_equal(backend.to_numpy(y), x[:, :, 1::2, 1::2])


@pytest.mark.parametrize("name", recipes.names())
def test_every_parameter_trains(backend, name):
    recipe = recipes.find(name)
    model = recipe.create_model()
    optimizer = recipe.optimizer(model)
    before = {path: backend.to_numpy(p.data).copy() for path, p in model.named_parameters()}
    x, labels = next(iter(recipe.train_loader(load_mnist()[0].subset(slice(64)), "mnist", 32)))
    criterion = recipe.create_criterion()
    for _ in range(2):
        criterion(model(x), labels)
        model.backward(criterion.backward(), input_gradient=False)
        optimizer.step()
        optimizer.zero_grad()
    followed_by_norm = {f"{i}.bias" for i, layer in enumerate(model) if _norm_follows(model, i, layer)}
    for path, parameter in model.named_parameters():
        if path not in followed_by_norm:  # batch norm takes the mean away again: the gradient is 0
            assert not np.array_equal(backend.to_numpy(parameter.data), before[path]), path


def _norm_follows(model, i, layer):
    return isinstance(layer, nn.Conv2d) and i + 1 < len(model) and isinstance(model[i + 1], nn.BatchNorm2d)


def test_a_tie_sends_the_gradient_to_one_winner(backend):
    """All four are the maximum; the first gets the gradient, and the sum of it is what came in."""
    x = np.full((1, 1, 4, 4), 7.0, np.float32)
    _, cache = F.max_pool2d(backend.asarray(x), 2)
    dy = np.array([[[[1.0, 2.0], [3.0, 4.0]]]], np.float32)
    dx = backend.to_numpy(F.max_pool2d_backward(backend.asarray(dy), cache))
    expected = np.zeros((1, 1, 4, 4))
    expected[0, 0, ::2, ::2] = dy[0, 0]
    assert np.array_equal(dx, expected)


def test_conv8_learns():
    """It trains on images that it is not tested on."""
    recipe = recipes.find("conv8")
    splits = recipe.split(*load_mnist())
    assert len(splits.train) == 1000
    assert splits.test.images is load_mnist()[1].images
    done = recipes.run("conv8", epochs=1)
    assert done.metrics.accuracy > 0.7
