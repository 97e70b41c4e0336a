"""Every operation, of the loops and of the library, against PyTorch's in float64."""

import importlib
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.functional.strategies import both, convolutions, distinct, poolings, seeds, transposed_convolutions, values
from xpcnn.testing import assert_close

pytestmark = pytest.mark.parity


def as_sides(padding, size, kernel, stride, dilation=1):
    """Return ((top, bottom), (left, right)), by the documented rule of SAME_UPPER."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        vertical, horizontal = both(padding)
        return both(vertical), both(horizontal)
    totals = [
        max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        for n, k, s, d in zip(size, both(kernel), both(stride), both(dilation), strict=True)
    ]
    return tuple((total // 2, math.ceil(total / 2)) for total in totals)


def check(actual, expected, terms=0.0):
    assert actual.shape == expected.shape
    assert_close(actual, expected, terms=terms, same_dtype=False)


def check_op(forward, backward, arrays, expected):
    y_expected, dy, gradients_expected = expected
    y, cache = forward(*arrays)
    check(y, y_expected)
    gradients = backward(dy.astype(y.dtype), cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for gradient, gradient_expected in zip(gradients, gradients_expected, strict=False):
        if gradient_expected is None:
            assert gradient is None
        else:
            check(gradient, gradient_expected, terms=float(np.max(np.abs(dy), initial=0.0)))


def dtype_for(implementation, dtype):
    return "float64" if implementation.__name__.endswith("reference") else dtype


@given(case=convolutions())
def test_conv2d(implementation, torch, differentiate, case):
    rng, options = case.rng(), dict(case.options)
    shapes = [case.x_shape, case.weight_shape, (case.weight_shape[0],)]
    arrays = [values(rng, shape, dtype_for(implementation, case.dtype)) for shape in shapes]
    arrays[2] = arrays[2] if case.bias else None
    stride, dilation, padding = options["stride"], options["dilation"], options["padding"]
    (top, bottom), (left, right) = as_sides(padding, case.x_shape[2:], case.kernel, stride, dilation)

    def oracle(x, weight, bias):
        padded = torch.nn.functional.pad(x, (left, right, top, bottom))
        options = {"stride": stride, "dilation": dilation, "groups": case.options["groups"]}
        return torch.nn.functional.conv2d(padded, weight, bias, **options)

    expected = differentiate(oracle, arrays, lambda shape: values(rng, shape))
    check_op(lambda *a: implementation.conv2d(*a, **options), implementation.conv2d_backward, arrays, expected)


@given(case=transposed_convolutions(symmetric=True))
def test_conv_transpose2d(implementation, torch, differentiate, case):
    rng, options = case.rng(), case.options
    shapes = [case.x_shape, case.weight_shape, (options["groups"] * case.weight_shape[1],)]
    arrays = [values(rng, shape, dtype_for(implementation, case.dtype)) for shape in shapes]
    arrays[2] = arrays[2] if case.bias else None
    positional = [options[name] for name in ("stride", "padding", "output_padding", "groups", "dilation")]

    def oracle(x, weight, bias):
        return torch.nn.functional.conv_transpose2d(x, weight, bias, *positional)

    expected = differentiate(oracle, arrays, lambda shape: values(rng, shape))
    forward, backward = implementation.conv_transpose2d, implementation.conv_transpose2d_backward
    check_op(lambda *a: forward(*a, *positional), backward, arrays, expected)


def test_conv2d_takes_its_options_in_the_order_of_pytorch(implementation, torch):
    rng = np.random.default_rng(0)
    arrays = [values(rng, shape) for shape in [(2, 4, 9, 8), (6, 2, 3, 3), (6,)]]
    expected = torch.nn.functional.conv2d(*map(torch.tensor, arrays), (2, 1), (1, 2), 2, 2)
    check(implementation.conv2d(*arrays, (2, 1), (1, 2), 2, 2)[0], expected.numpy())


def pool_oracle(torch, case, function):
    """Return PyTorch's pooling; padding that it cannot take is laid round the image first."""
    F = torch.nn.functional
    kernel, dilation = both(case.kernel), both(case.options.get("dilation", 1))
    stride = case.options["stride"] or case.kernel
    (top, bottom), (left, right) = as_sides(case.options["padding"], case.x_shape[2:], kernel, stride, dilation)
    ceil_mode = case.options["ceil_mode"]
    symmetric = top == bottom and left == right and top <= kernel[0] // 2 and left <= kernel[1] // 2
    # Behind laid padding PyTorch would let a last window of ceil mode start; ours must start before it.
    assume(symmetric or not ceil_mode)
    options = {"stride": stride, "ceil_mode": ceil_mode, "padding": (top, left) if symmetric else 0}

    def pad(x, value):
        return x if symmetric else F.pad(x, (left, right, top, bottom), value=value)

    def max_pool(x):
        y = F.max_pool2d(pad(x, -math.inf), kernel, dilation=dilation, **options)
        # A dilated window may see padding alone; PyTorch's backward then writes to a place outside the image.
        assume(bool(torch.isfinite(y).all()))
        return y

    def avg_pool(x):
        if case.options["count_include_pad"] or symmetric:
            return F.avg_pool2d(pad(x, 0.0), kernel, count_include_pad=case.options["count_include_pad"], **options)
        share = F.avg_pool2d(pad(torch.ones_like(x), 0.0), kernel, **options)
        return F.avg_pool2d(pad(x, 0.0), kernel, **options) / share

    return {"max": max_pool, "avg": avg_pool}[function]


@given(case=poolings(dilated=True))
def test_max_pool2d(implementation, torch, differentiate, case):
    rng = case.rng()
    x = distinct(rng, case.x_shape, dtype_for(implementation, case.dtype))
    expected = differentiate(pool_oracle(torch, case, "max"), [x], lambda shape: values(rng, shape))
    forward = lambda x: implementation.max_pool2d(x, case.kernel, **case.options)  # noqa: E731
    check_op(forward, implementation.max_pool2d_backward, [x], expected)


@given(case=poolings())
def test_avg_pool2d(implementation, torch, differentiate, case):
    rng = case.rng()
    x = values(rng, case.x_shape, dtype_for(implementation, case.dtype))
    expected = differentiate(pool_oracle(torch, case, "avg"), [x], lambda shape: values(rng, shape))
    forward = lambda x: implementation.avg_pool2d(x, case.kernel, **case.options)  # noqa: E731
    check_op(forward, implementation.avg_pool2d_backward, [x], expected)


def test_max_pool2d_of_ties_and_nan(implementation, torch, differentiate, rng):
    x = np.round(rng.normal(size=(2, 2, 6, 6)))
    expected = differentiate(lambda t: torch.nn.functional.max_pool2d(t, 3, 2, 1), [x], lambda s: values(rng, s))
    check_op(
        lambda x: implementation.max_pool2d(x, 3, stride=2, padding=1),
        implementation.max_pool2d_backward,
        [x],
        expected,
    )
    x[1, 1, 2, 3] = np.nan
    check(
        implementation.max_pool2d(x, 3, stride=2, padding=1)[0],
        torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1).numpy(),
    )


def test_global_avg_pool2d(implementation, torch, differentiate, rng):
    x = values(rng, (2, 3, 4, 5))
    expected = differentiate(lambda t: torch.nn.functional.adaptive_avg_pool2d(t, 1), [x], lambda s: values(rng, s))
    check_op(implementation.global_avg_pool2d, implementation.global_avg_pool2d_backward, [x], expected)


@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(implementation, torch, differentiate, rng, with_bias):
    arrays = [values(rng, (5, 4)), values(rng, (3, 4)), values(rng, (3,)) if with_bias else None]
    expected = differentiate(torch.nn.functional.linear, arrays, lambda s: values(rng, s))
    check_op(implementation.linear, implementation.linear_backward, arrays, expected)


@given(shape=st.sampled_from([(5, 3), (4, 3, 2, 5), (2, 3, 1, 1), (1, 3, 2, 2)]), training=st.booleans(), seed=seeds)
def test_batch_norm(implementation, torch, differentiate, shape, training, seed):
    rng = np.random.default_rng(seed)
    arrays = [values(rng, shape) * 2 + 1, values(rng, (3,)), values(rng, (3,))]
    mean, var = values(rng, (3,)), rng.uniform(0.5, 2.0, 3)
    torch_mean, torch_var = torch.tensor(mean), torch.tensor(var)

    def oracle(x, gamma, beta):
        return torch.nn.functional.batch_norm(x, torch_mean, torch_var, gamma, beta, training, 0.3, 1e-3)

    def forward(x, gamma, beta):
        return implementation.batch_norm(x, gamma, beta, mean, var, training=training, momentum=0.3, eps=1e-3)

    expected = differentiate(oracle, arrays, lambda s: values(rng, s))
    check_op(forward, implementation.batch_norm_backward, arrays, expected)
    check(mean, torch_mean.numpy())
    check(var, torch_var.numpy())


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize(
    ("shape", "last"), [((5, 4), (4,)), ((2, 3, 4, 5), (3, 4, 5)), ((2, 3, 4), (4,)), ((3,), (3,))]
)
def test_layer_norm(implementation, torch, differentiate, rng, given, shape, last):
    arrays = [values(rng, shape) * 2 + 1, *(values(rng, last) if each else None for each in given)]
    oracle = torch.nn.functional.layer_norm
    expected = differentiate(lambda x, w, b: oracle(x, last, w, b, 1e-3), arrays, lambda s: values(rng, s))
    forward = implementation.layer_norm
    check_op(lambda x, w, b: forward(x, last, w, b, 1e-3), implementation.layer_norm_backward, arrays, expected)


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize(("shape", "groups"), [((5, 4), 2), ((2, 6, 4, 5), 3), ((2, 6, 3), 6), ((3, 6, 2, 2), 1)])
def test_group_norm(implementation, torch, differentiate, rng, given, shape, groups):
    arrays = [values(rng, shape) * 2 + 1, *(values(rng, shape[1:2]) if each else None for each in given)]
    oracle = torch.nn.functional.group_norm
    expected = differentiate(lambda x, w, b: oracle(x, groups, w, b, 1e-3), arrays, lambda s: values(rng, s))
    forward = implementation.group_norm
    check_op(lambda x, w, b: forward(x, groups, w, b, 1e-3), implementation.group_norm_backward, arrays, expected)


@given(shape=st.tuples(*[st.integers(1, 7)] * 4), size=st.tuples(*[st.integers(1, 9)] * 2), seed=seeds)
def test_adaptive_avg_pool2d(implementation, torch, differentiate, shape, size, seed):
    rng = np.random.default_rng(seed)
    x = values(rng, shape)
    oracle = torch.nn.functional.adaptive_avg_pool2d
    expected = differentiate(lambda x: oracle(x, size), [x], lambda s: values(rng, s))
    forward = implementation.adaptive_avg_pool2d
    check_op(lambda x: forward(x, size), implementation.adaptive_avg_pool2d_backward, [x], expected)


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4),
    size=st.tuples(*[st.integers(1, 15)] * 2),
    scale=st.one_of(st.none(), st.sampled_from([1.0, 2.0, 3.0, 1.5, 2.5, 4.0])),
    mode=st.sampled_from([("nearest", None), ("bilinear", False), ("bilinear", True)]),
    seed=seeds,
)
def test_upsample(implementation, torch, differentiate, shape, size, scale, mode, seed):
    rng = np.random.default_rng(seed)
    x = values(rng, shape)
    options = {"size": size} if scale is None else {"scale_factor": scale}
    options |= {"mode": mode[0], "align_corners": mode[1]}
    oracle = torch.nn.functional.interpolate
    expected = differentiate(lambda x: oracle(x, **options), [x], lambda s: values(rng, s))
    forward = implementation.upsample
    check_op(lambda x: forward(x, **options), implementation.upsample_backward, [x], expected)


ACTIVATIONS = {
    "relu": (lambda F: F.relu, {}),
    "leaky_relu": (lambda F: F.leaky_relu, {"negative_slope": 0.2}),
    "sigmoid": (lambda F: F.sigmoid, {}),
    "tanh": (lambda F: F.tanh, {}),
    "gelu": (lambda F: F.gelu, {}),
    "silu": (lambda F: F.silu, {}),
    "hardswish": (lambda F: F.hardswish, {}),
    "elu": (lambda F: F.elu, {"alpha": 0.7}),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_activations(implementation, torch, differentiate, rng, name, scale):
    find, options = ACTIVATIONS[name]
    x = values(rng, (3, 4, 5, 2)) * scale
    x[0, 0, 0] = 0.0
    function = find(torch.nn.functional)
    expected = differentiate(lambda t: function(t, **options), [x], lambda s: values(rng, s))
    forward, backward = getattr(implementation, name), getattr(implementation, f"{name}_backward")
    check_op(lambda x: forward(x, **options), backward, [x], expected)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_softmax(implementation, torch, differentiate, rng, name, axis):
    x = values(rng, (3, 4, 5)) * 3
    oracle = getattr(torch.nn.functional, name)
    y_expected, dy, (dx_expected,) = differentiate(lambda t: oracle(t, axis), [x], lambda s: values(rng, s))
    y = getattr(implementation, name)(x, axis)
    check(y, y_expected)
    check(getattr(implementation, f"{name}_backward")(dy, y, axis), dx_expected)


@given(
    images=st.integers(1, 5),
    classes=st.integers(1, 6),
    kind=st.sampled_from(["integers", "one-hot", "probabilities"]),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=seeds,
)
def test_cross_entropy(implementation, torch, differentiate, images, classes, kind, smoothing, reduction, seed):
    rng = np.random.default_rng(seed)
    logits, labels = values(rng, (images, classes)) * 3, rng.integers(0, classes, images)
    if kind == "one-hot":
        labels = np.eye(classes)[labels]
    elif kind == "probabilities":
        labels = rng.dirichlet(np.ones(classes), images)
    options = {"label_smoothing": smoothing, "reduction": reduction}

    def oracle(t):
        return torch.nn.functional.cross_entropy(t, torch.tensor(labels), **options)

    loss_expected, _, (dlogits_expected,) = differentiate(oracle, [logits], np.ones)
    loss, dlogits = implementation.cross_entropy(logits, labels, **options)
    check(loss, loss_expected)
    assert np.max(np.abs(dlogits - dlogits_expected)) < 1e-14  # softmax - t: differences of numbers up to 1


@given(case=convolutions())
def test_im2col_and_col2im(implementation, torch, differentiate, case):
    rng, channels = case.rng(), case.x_shape[1]
    x = values(rng, case.x_shape)
    options = {name: case.options[name] for name in ("stride", "padding", "dilation")}
    stride, dilation = options["stride"], options["dilation"]
    (top, bottom), (left, right) = as_sides(options["padding"], case.x_shape[2:], case.kernel, stride, dilation)

    def oracle(t):
        padded = torch.nn.functional.pad(t, (left, right, top, bottom))
        cols = torch.nn.functional.unfold(padded, case.kernel, dilation=dilation, stride=stride)  # (N, C*KH*KW, P)
        return cols.permute(1, 2, 0).reshape(channels * math.prod(case.kernel), -1)

    cols_expected, dcols, (dx_expected,) = differentiate(oracle, [x], lambda s: values(rng, s))
    check(implementation.im2col(x, case.kernel, **options), cols_expected)
    check(implementation.col2im(dcols, x.shape, case.kernel, **options), dx_expected)


EXTREMES = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1e-38, -1e-45, 90.0, -200.0, 1e20]


def pattern(array):
    """Return where an array is nan, and the sign of what is infinite."""
    array = np.asarray(array)
    return np.isnan(array).tolist(), np.where(np.isinf(array), np.sign(array), 0).tolist()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("slope", [1.0, math.inf, math.nan, 3.4e38])
def test_activations_of_extremes(torch, name, slope):
    """In float32: the same inf and nan, forward and backward."""
    find, options = ACTIVATIONS[name]
    x = np.array(EXTREMES, "float32")[None]
    if name == "hardswish":
        x = x[np.abs(x) != np.float32(3.4e38)][None]  # 6 x is too large for PyTorch, x is not for us
    ours = importlib.import_module("xpcnn.functional")
    tensor = torch.tensor(x, requires_grad=True)
    expected = find(torch.nn.functional)(tensor, **options)
    dy = np.full(x.shape, slope, "float32")
    expected.backward(torch.tensor(dy))
    y, cache = getattr(ours, name)(x, **options)
    assert pattern(y) == pattern(expected.detach().numpy())
    dx = getattr(ours, f"{name}_backward")(dy, cache)
    if name != "gelu" or slope == 1.0:  # whose tail, 1e-300 times inf, is a matter of formula
        assert pattern(dx) == pattern(tensor.grad.numpy())


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_extremes(torch, name):
    rows = [[0.0, a, b] for a in EXTREMES for b in (0.0, -math.inf, math.inf)] + [[-math.inf] * 3]
    x = np.array(rows, "float32")
    ours = importlib.import_module("xpcnn.functional")
    tensor = torch.tensor(x, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(tensor, -1)
    expected.backward(torch.ones_like(expected))
    y = getattr(ours, name)(x)
    assert pattern(y) == pattern(expected.detach().numpy())
    assert pattern(getattr(ours, f"{name}_backward")(np.ones_like(x), y)) == pattern(tensor.grad.numpy())


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_extremes(torch, value, smoothing):
    ours = importlib.import_module("xpcnn.functional")
    x = np.array([[0.0, 1.0, value], [0.5, 1.0, 2.0]], "float32")
    for labels in ([0, 1], [2, 1]):
        loss, dlogits = ours.cross_entropy(x, labels, label_smoothing=smoothing)
        found = []
        for dtype in (torch.float32, torch.float64):
            tensor = torch.tensor(x, requires_grad=True, dtype=dtype)
            expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(labels), label_smoothing=smoothing)
            expected.backward()
            found.append((expected.item(), tensor.grad.numpy()))
        (narrow, _), (exact, gradient) = found
        assert pattern(loss) in (pattern(narrow), pattern(exact))  # PyTorch's own sum may overflow where ours does not
        assert pattern(dlogits) == pattern(gradient)
        if math.isfinite(loss):
            assert float(loss) == pytest.approx(exact, rel=1e-6)


def test_losses_of_nothing(torch):
    ours = importlib.import_module("xpcnn.functional")
    for reduction in ("mean", "sum"):
        loss, dlogits = ours.cross_entropy(np.zeros((0, 3)), [], reduction=reduction)
        empty = torch.zeros(0, dtype=torch.int64)
        expected = torch.nn.functional.cross_entropy(torch.zeros(0, 3), empty, reduction=reduction)
        np.testing.assert_array_equal(loss, expected.numpy())
        assert dlogits.shape == (0, 3)
        loss, _ = ours.mse_loss(np.zeros((0, 3)), np.zeros((0, 3)), reduction=reduction)
        expected = torch.nn.functional.mse_loss(torch.zeros(0, 3), torch.zeros(0, 3), reduction=reduction)
        np.testing.assert_array_equal(loss, expected.numpy())
