import numpy as np
import pytest

from tests.functional.checks import check_op
from tests.functional.strategies import values
from xpcnn import functional as F
from xpcnn.functional import reference as R
from xpcnn.testing import numerical_gradient


def loops(pool):
    """The composition out of loops, ReLU before the pooling as the exercise notebook has it."""

    def forward(x, weight, bias, kernel_size=2, pool_stride=None, **options):
        y, conv = R.conv2d(x, weight, bias, **options)
        y, relu = R.relu(y)
        if not pool:
            return y, (conv, relu, None)
        y, maximum = R.max_pool2d(y, kernel_size, stride=pool_stride)
        return y, (conv, relu, maximum)

    def backward(dy, cache):
        conv, relu, maximum = cache
        dy = R.max_pool2d_backward(dy, maximum) if pool else dy
        return R.conv2d_backward(R.relu_backward(dy, relu), conv)

    return forward, backward


@pytest.mark.parametrize(
    "options", [{}, {"padding": 1}, {"padding": 1, "kernel_size": 3, "pool_stride": 2}, {"kernel_size": (2, 1)}]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_conv_relu_pool_agrees_with_the_loops(backend, rng, options, dtype):
    arrays = [values(rng, shape, dtype) for shape in [(2, 3, 8, 7), (3, 3, 3, 3), (3,)]]
    ours = F.conv_relu_pool, F.conv_relu_pool_backward
    check_op(backend, ours, loops(pool=True), arrays, layout="chwn", rng=rng, **options)


def test_conv_relu_agrees_with_the_loops(backend, rng):
    arrays = [values(rng, shape) for shape in [(2, 3, 8, 8), (3, 3, 3, 3), (3,)]]
    check_op(backend, (F.conv_relu, F.conv_relu_backward), loops(pool=False), arrays, rng=rng, padding=1)


def test_conv_relu_pool_backward_is_the_derivative(backend, rng):
    arrays = [values(rng, shape) for shape in [(2, 3, 6, 6), (3, 3, 3, 3), (3,)]]
    y, cache = F.conv_relu_pool(*map(backend.asarray, arrays), padding=1)
    dy = values(rng, y.shape)
    gradients = F.conv_relu_pool_backward(backend.asarray(dy), cache)

    def loss(_):
        return np.sum(dy * backend.to_numpy(F.conv_relu_pool(*map(backend.asarray, arrays), padding=1)[0]))

    for array, gradient in zip(arrays, gradients, strict=True):
        assert np.allclose(backend.to_numpy(gradient), numerical_gradient(loss, array), rtol=0, atol=1e-7)
