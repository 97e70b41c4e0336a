"""The loops against the exercise notebook's golden arrays, hand-made cases and central differences.

The parity tests hold them against PyTorch.
"""

import numpy as np
import pytest

from xpcnn.functional import reference as R
from xpcnn.testing import numerical_gradient, relative_error


def golden_conv_output():
    # The exercise notebook prints this array inside one bracket too many.
    return np.array(
        [
            [
                [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
                [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
                [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
            ],
            [
                [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
                [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
                [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
            ],
        ]
    )


def golden_max_pool_output():
    return np.array(
        [
            [
                [[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]],
                [[-0.14526316, -0.13052632], [-0.08631579, -0.07157895]],
                [[-0.02736842, -0.01263158], [0.03157895, 0.04631579]],
            ],
            [
                [[0.09052632, 0.10526316], [0.14947368, 0.16421053]],
                [[0.20842105, 0.22315789], [0.26736842, 0.28210526]],
                [[0.32631579, 0.34105263], [0.38526316, 0.4]],
            ],
        ]
    )


def ramp(first, last, shape):
    return np.linspace(first, last, num=np.prod(shape)).reshape(shape)


def test_conv2d_gives_the_golden_array():
    x, weight = ramp(-0.1, 0.5, (2, 3, 4, 4)), ramp(-0.2, 0.3, (3, 3, 4, 4))
    y, _ = R.conv2d(x, weight, np.linspace(-0.1, 0.2, num=3), stride=2, padding=1)
    assert relative_error(y, golden_conv_output()) < 3e-8


def test_max_pool2d_gives_the_golden_array():
    y, _ = R.max_pool2d(ramp(-0.3, 0.4, (2, 3, 4, 4)), 2, stride=2)
    assert relative_error(y, golden_max_pool_output()) < 5e-8


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "ceil_mode", "expected"),
    [
        (7, 2, 2, (0, 0), False, 3),
        (7, 2, 2, (0, 0), True, 4),
        (5, 2, 3, (0, 0), True, 2),  # a third window would start at 6, behind the image
        (4, 1, 3, (1, 1), True, 2),  # and one that starts in the padding behind it does not count either
        (6, 3, 2, (1, 0), False, 3),
    ],
)
def test_output_size(size, kernel, stride, padding, ceil_mode, expected):
    assert R.output_size(size, kernel, stride, padding, 1, ceil_mode) == expected


def test_same_padding_is_heavier_at_the_end():
    assert R.sides("same", (1, 1, 4, 7), 2, (1, 3)) == ((0, 1), (0, 1))
    assert R.conv2d(np.zeros((1, 1, 5, 6)), np.zeros((1, 1, 3, 2)), padding="same", stride=2)[0].shape == (1, 1, 3, 3)


def test_max_pool2d_sends_a_tie_to_the_first_place_and_adds_where_windows_overlap():
    _, cache = R.max_pool2d(np.zeros((1, 1, 1, 3)), (1, 2), stride=1)
    assert R.max_pool2d_backward(np.array([[[[2.0, 3.0]]]]), cache).tolist() == [[[[2.0, 3.0, 0.0]]]]
    _, cache = R.max_pool2d(np.array([[[[0.0, 1.0, 0.0]]]]), (1, 2), stride=1)
    assert R.max_pool2d_backward(np.array([[[[2.0, 3.0]]]]), cache).tolist() == [[[[0.0, 5.0, 0.0]]]]


def test_max_pool2d_keeps_nan_and_never_picks_padding():
    x = np.array([[[[np.nan, -5.0], [-np.inf, -7.0]]]])
    assert np.array_equal(R.max_pool2d(x, 1, stride=1)[0], x, equal_nan=True)
    assert R.max_pool2d(x[..., 1:], 2, stride=2, padding=1)[0].tolist() == [[[[-5.0], [-7.0]]]]


@pytest.mark.parametrize(("count_include_pad", "expected"), [(True, [1 / 2, 5 / 2, 4.0]), (False, [1.0, 5 / 2, 4.0])])
def test_avg_pool2d_counts_padding_but_not_what_ceil_mode_adds(count_include_pad, expected):
    x = np.array([[[[1.0, 2.0, 3.0, 4.0]]]])
    y, _ = R.avg_pool2d(
        x, (1, 2), stride=(1, 2), padding=((0, 0), (1, 0)), ceil_mode=True, count_include_pad=count_include_pad
    )
    assert y.ravel().tolist() == expected


def test_batch_norm_moves_the_running_statistics_by_the_unbiased_variance():
    mean, var = np.zeros(1), np.ones(1)
    y, _ = R.batch_norm([[1.0], [3.0]], [2.0], [1.0], mean, var, training=True, eps=0.0)
    assert y.ravel().tolist() == [-1.0, 3.0]
    assert (mean[0], var[0]) == pytest.approx((0.2, 0.9 + 0.1 * 2.0))
    y, _ = R.batch_norm([[1.0], [3.0]], [2.0], [1.0], np.array([1.0]), np.array([4.0]), training=False, eps=0.0)
    assert y.ravel().tolist() == [1.0, 3.0]


def test_dropout_scales_what_its_mask_keeps():
    y, cache = R.dropout([1.0, 2.0, 3.0], 0.75, training=True, mask=[True, False, True])
    assert y.tolist() == [4.0, 0.0, 12.0]
    assert R.dropout_backward([1.0, 1.0, 2.0], cache).tolist() == [4.0, 0.0, 8.0]
    assert R.dropout([1.0, 2.0], 0.75, training=False)[0].tolist() == [1.0, 2.0]
    assert R.dropout([1.0, 2.0], 1.0, training=True)[0].tolist() == [0.0, 0.0]


def test_cross_entropy_of_integer_one_hot_and_smoothed_labels():
    logits = np.log([[0.25, 0.75], [0.5, 0.5]])
    for labels in ([1, 0], [[0, 1], [1, 0]]):
        loss, dlogits = R.cross_entropy(logits, labels)
        assert loss == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)
        assert dlogits == pytest.approx(np.array([[0.25, -0.25], [-0.5, 0.5]]) / 2)
    loss, _ = R.cross_entropy(logits[:1], [1], label_smoothing=0.2, reduction="sum")
    assert loss == pytest.approx(-(0.9 * np.log(0.75) + 0.1 * np.log(0.25)))


def test_softmax_and_sigmoid_take_any_size_of_number():
    assert R.softmax([1000.0, 0.0]).tolist() == [1.0, 0.0]
    assert R.log_softmax([1000.0, 0.0]).tolist() == [0.0, -1000.0]
    assert R.sigmoid([-1000.0, 1000.0])[0].tolist() == [0.0, 1.0]
    assert R.relu([-np.inf, np.inf])[0].tolist() == [0.0, np.inf]


def test_col2im_is_the_adjoint_of_im2col():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 4))
    options = {"stride": (2, 1), "padding": ((0, 1), (2, 1)), "dilation": (1, 2)}
    cols = R.im2col(x, (3, 2), **options)
    other = rng.normal(size=cols.shape)
    assert np.sum(cols * other) == pytest.approx(np.sum(x * R.col2im(other, x.shape, (3, 2), **options)))


def test_conv2d_is_one_matrix_product_over_im2col():
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(4, 3, 3, 2))
    y, _ = R.conv2d(x, weight, stride=(2, 1), padding=(1, 0))
    product = weight.reshape(4, -1) @ R.im2col(x, (3, 2), stride=(2, 1), padding=(1, 0))
    assert relative_error(product.reshape(4, 3, 3, 2).transpose(3, 0, 1, 2), y) < 1e-12


def away_from_zero(rng, shape):
    x = rng.normal(size=shape)
    return x + np.sign(x) * 0.05


def distinct(rng, shape):
    return rng.permutation(np.prod(shape)).reshape(shape) * 0.1


IMAGES = (2, 4, 5, 6)
CASES = {
    "conv2d": (lambda a, w, b: R.conv2d(a, w, b, stride=(2, 1), padding=((1, 0), (1, 2)), dilation=(1, 2), groups=2),
               R.conv2d_backward, [IMAGES, (2, 2, 3, 2), (2,)]),
    "max_pool2d": (lambda a: R.max_pool2d(a, (3, 2), stride=(1, 2), padding=1, dilation=(2, 1), ceil_mode=True),
                   R.max_pool2d_backward, [IMAGES]),
    "avg_pool2d": (lambda a: R.avg_pool2d(a, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
                   R.avg_pool2d_backward, [IMAGES]),
    "avg_pool2d padded": (lambda a: R.avg_pool2d(a, 3, stride=2, padding=((1, 0), (2, 1)), ceil_mode=True),
                          R.avg_pool2d_backward, [IMAGES]),
    "global_avg_pool2d": (R.global_avg_pool2d, R.global_avg_pool2d_backward, [IMAGES]),
    "linear": (R.linear, R.linear_backward, [(3, 4), (2, 4), (2,)]),
    "batch_norm images": (lambda x, g, b: R.batch_norm(x, g, b, np.zeros(4), np.ones(4), training=True),
                          R.batch_norm_backward, [IMAGES, (4,), (4,)]),
    "batch_norm features": (lambda x, g, b: R.batch_norm(x, g, b, np.zeros(3), np.ones(3), training=True),
                            R.batch_norm_backward, [(5, 3), (3,), (3,)]),
    "batch_norm eval": (lambda x, g, b: R.batch_norm(x, g, b, np.full(3, 0.5), np.full(3, 2.0), training=False),
                        R.batch_norm_backward, [(5, 3), (3,), (3,)]),
    "relu": (R.relu, R.relu_backward, [(3, 4)]),
    "leaky_relu": (lambda x: R.leaky_relu(x, 0.2), R.leaky_relu_backward, [(3, 4)]),
    "sigmoid": (R.sigmoid, R.sigmoid_backward, [(3, 4)]),
    "tanh": (R.tanh, R.tanh_backward, [(3, 4)]),
    "gelu": (R.gelu, R.gelu_backward, [(3, 4)]),
    "layer_norm": (lambda x, w, b: R.layer_norm(x, (5, 6), w, b), R.layer_norm_backward, [IMAGES, (5, 6), (5, 6)]),
    "group_norm": (lambda x, w, b: R.group_norm(x, 2, w, b), R.group_norm_backward, [IMAGES, (4,), (4,)]),
    "silu": (R.silu, R.silu_backward, [(3, 4)]),
    "hardswish": (R.hardswish, R.hardswish_backward, [(3, 4)]),
    "elu": (lambda x: R.elu(x, 0.7), R.elu_backward, [(3, 4)]),
    "pad_channels": (lambda x: R.pad_channels(x, 2, 1), R.pad_channels_backward, [(2, 3, 2)]),
    "identity": (R.identity, R.identity_backward, [(3, 4)]),
    "concat": (lambda *a: R.concat(a), lambda dy, cache: tuple(R.concat_backward(dy, cache)), [(3, 4), (3, 2)]),
    "dropout2d": (lambda a: R.dropout2d(a, 0.4, training=True, mask=np.arange(8).reshape(2, 4) % 3),
                  R.dropout2d_backward, [IMAGES]),
    "adaptive_avg_pool2d": (lambda a: R.adaptive_avg_pool2d(a, (4, 2)), R.adaptive_avg_pool2d_backward, [IMAGES]),
    "upsample": (lambda a: R.upsample(a, (3, 8)), R.upsample_backward, [IMAGES]),
    "upsample bilinear": (lambda a: R.upsample(a, None, (2, 1.7), "bilinear"), R.upsample_backward, [IMAGES]),
    "upsample corners": (lambda a: R.upsample(a, (9, 3), None, "bilinear", True), R.upsample_backward, [IMAGES]),
    "softmax": (lambda x: 2 * (R.softmax(x, 1),), lambda dy, y: R.softmax_backward(dy, y, 1), [(2, 4, 3)]),
    "log_softmax": (lambda x: 2 * (R.log_softmax(x),), R.log_softmax_backward, [(3, 4)]),
    "cross_entropy": (lambda x: R.cross_entropy(x, [1, 0, 3], label_smoothing=0.1), np.multiply, [(3, 4)]),
    "cross_entropy of pixels": (
        lambda x: R.cross_entropy(x, np.arange(60).reshape(2, 5, 6) % 4, weight=[1, 2, 0.5, 3], ignore_index=1,
                                  label_smoothing=0.1), np.multiply, [IMAGES]),
    "mse_loss": (lambda x: R.mse_loss(x, np.ones((3, 4))), np.multiply, [(3, 4)]),
    "l1_loss": (lambda x: R.l1_loss(x, np.full((3, 4), 0.05), reduction="sum"), np.multiply, [(3, 4)]),
    "binary_cross_entropy_with_logits": (
        lambda x: R.binary_cross_entropy_with_logits(x, np.linspace(0, 1, 12).reshape(3, 4), pos_weight=[1, 2, 3, 4]),
        np.multiply, [(3, 4)]),
    "cross_entropy of weights": (lambda x: R.cross_entropy(x, np.arange(12).reshape(3, 4), reduction="sum"),
                                 np.multiply, [(3, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_derivative_of_forward(name):
    forward, backward, shapes = CASES[name]
    rng = np.random.default_rng(2)
    inputs = [(distinct if "max" in name else away_from_zero)(rng, shape) for shape in shapes]
    y, cache = forward(*inputs)
    dy = rng.normal(size=y.shape)
    gradients = backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for array, gradient in zip(inputs, gradients, strict=True):
        numerical = numerical_gradient(lambda _: np.sum(dy * forward(*inputs)[0]), array, 1e-5)
        assert np.max(np.abs(gradient - numerical)) < 1e-7 * max(1.0, np.max(np.abs(numerical)))


def test_conv2d_backward_has_no_bias_gradient_without_a_bias():
    y, cache = R.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))
    assert R.conv2d_backward(y, cache)[2] is None
