"""The LeNet notebook's mistakes: pooling that assigns and loops, a removed argument, a fixed batch, batch norm."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

import xpcnn
from xpcnn import functional as F
from xpcnn import models, nn
from xpcnn.functional import reference
from xpcnn.testing import assert_close, gradcheck


def test_gradients_of_overlapping_windows_add(backend):
    """The middle is the maximum of all four windows: it gets all four gradients."""
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 1, 1] = 1.0
    _, cache = F.max_pool2d(backend.asarray(x), 2, stride=1)
    dx = F.max_pool2d_backward(backend.asarray(np.array([[[[1.0, 2.0], [3.0, 4.0]]]], np.float32)), cache)
    expected = np.zeros((1, 1, 3, 3))
    expected[0, 0, 1, 1] = 10.0
    assert np.array_equal(backend.to_numpy(dx), expected)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_overlapping_pooling_by_differences(backend, rng, kernel, stride):
    assert gradcheck(nn.MaxPool2d(kernel, stride), rng.permutation(2 * 3 * 49).reshape(2, 3, 7, 7) / 10.0)


def calls(function):
    """Count the Python-level calls of `function`."""
    count = 0

    def see(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_pooling_does_not_loop_over_images_or_places(rng):
    """The interpreter works as much for 64 images as for 2, and for 24x24 pixels as for 8x8."""

    def step(count, size):
        y, cache = F.max_pool2d(x[count, size], 2)
        F.max_pool2d_backward(y, cache)

    x = {(n, s): rng.standard_normal((n, 6, s, s)).astype("float32") for n in (2, 64) for s in (8, 24)}
    for count, size in x:
        step(count, size)  # buffers are made, threads started
    before = xpcnn.get_num_threads()
    xpcnn.set_num_threads(1)
    try:
        least = calls(lambda: step(2, 8))
        assert calls(lambda: step(64, 8)) <= least + 20
        assert calls(lambda: step(2, 24)) <= least + 20
        assert least < 500
    finally:
        xpcnn.set_num_threads(before)


def test_no_argument_that_numpy_has_removed():
    for path in Path(xpcnn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert "newshape" not in {keyword.arg for keyword in node.keywords}, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("name", ["lenet5", "conv8"])
def test_any_batch_size_after_construction(backend, rng, name):
    """The same image gets the same answer alone and in company; each size has its backward."""
    net = models.create(name)
    size = 32 if name == "lenet5" else 28
    x = rng.standard_normal((128, 1, size, size)).astype("float32")
    for count in (128, 7, 1, 64):
        net.eval()
        alone = backend.to_numpy(net(backend.asarray(x[:1])))
        y = net(backend.asarray(x[:count]))
        assert y.shape == (count, 10)
        np.testing.assert_allclose(backend.to_numpy(y)[:1], alone, atol=1e-4)
        net.forget()
        if count > 1:
            net.train()
            y = net(backend.asarray(x[:count]))
            assert net.backward(y).shape == (count, 1, size, size)


def run_batch_norm(backend, batches):
    layer = nn.BatchNorm2d(3)
    for x in batches:
        layer(backend.asarray(x))
        layer.forget()
    state = {name: backend.to_numpy(value).astype("float64") for name, value in layer.state_dict().items()}
    return state["running_mean"], state["running_var"]


def test_running_statistics_begin_at_0_and_1(backend, rng):
    """The first batch is averaged in as every other is, not put in their place."""
    x = rng.standard_normal((6, 3, 5, 5)).astype("float32") * 2 + 3
    mean, variance = run_batch_norm(backend, [x])
    np.testing.assert_allclose(mean, 0.1 * x.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * x.var(axis=(0, 2, 3), ddof=1), rtol=1e-5)


def test_a_batch_of_mean_0_and_variance_1_starts_nothing_anew(backend, rng):
    """Statistics that stand at 0 and 1 after many batches are no sign that there was none."""
    x = rng.standard_normal((6, 3, 5, 5))
    x = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / x.std(axis=(0, 2, 3), ddof=1, keepdims=True)
    later = rng.standard_normal((6, 3, 5, 5)) * 2 + 3
    mean, variance = run_batch_norm(backend, [x.astype("float32")] * 3 + [later.astype("float32")])
    np.testing.assert_allclose(mean, 0.1 * later.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * later.var(axis=(0, 2, 3), ddof=1), rtol=1e-4)


def test_the_running_variance_is_the_unbiased_one(backend):
    """Two values -1 and 1: variance 2 unbiased, 1 biased."""
    x = np.array([-1.0, 1.0], np.float32).reshape(2, 1, 1, 1).repeat(3, axis=1)
    _, variance = run_batch_norm(backend, [x])
    np.testing.assert_allclose(variance, 0.9 + 0.1 * 2.0, rtol=1e-6)


def test_the_reference_is_right_too(rng):
    x = rng.standard_normal((2, 2, 5, 5))
    y, cache = F.max_pool2d(x, 3, stride=1)
    dy = rng.standard_normal(y.shape)
    _, loops = reference.max_pool2d(x, 3, stride=1)
    assert_close(F.max_pool2d_backward(dy, cache), reference.max_pool2d_backward(dy, loops))
