import copy
from functools import partial

import numpy as np
import pytest

from xpcnn import functional as F
from xpcnn import nn, random
from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError
from xpcnn.testing import gradcheck


def softplus(x):
    y = np.log1p(np.exp(x))
    return y, x


def softplus_backward(dy, cache):
    return dy / (1 + np.exp(-cache))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (partial(F.conv2d, stride=(2, 1), padding="same", groups=2), [(2, 4, 5, 6), (2, 2, 3, 2), (2,)]),
        (partial(F.conv2d, dilation=2), [(2, 2, 5, 6), (2, 2, 2, 2), None]),
        (partial(F.max_pool2d, kernel_size=3, stride=2, padding=1), [(2, 2, 6, 5)]),
        (partial(F.avg_pool2d, kernel_size=(2, 3), ceil_mode=True), [(2, 2, 5, 5)]),
        (F.global_avg_pool2d, [(2, 3, 4, 5)]),
        (F.linear, [(3, 4), (5, 4), (5,)]),
        (partial(F.batch_norm, training=True), [(4, 3, 2, 2), (3,), (3,), (3,), (3,)]),
        (partial(F.dropout, p=0.4, training=True), [(6, 5)]),
        (F.relu, [(4, 5)]),
        (F.leaky_relu, [(4, 5)]),
        (F.sigmoid, [(4, 5)]),
        (F.tanh, [(4, 5)]),
        (F.gelu, [(4, 5)]),
        (partial(F.softmax, axis=0), [(4, 5)]),
        (F.log_softmax, [(4, 5)]),
        (partial(F.conv_transpose2d, stride=2, padding=1, output_padding=1), [(2, 3, 3, 4), (3, 2, 3, 3), (2,)]),
        (partial(F.conv_relu_pool, padding=1), [(2, 2, 6, 6), (3, 2, 3, 3), (3,)]),
    ],
)
def test_every_operation_passes(backend, rng, function, shapes):
    inputs = [None if shape is None else np.abs(rng.normal(size=shape)) + 0.1 for shape in shapes]
    inputs[0] = rng.normal(size=shapes[0])
    report = gradcheck(function, [value if value is None else backend.asarray(value) for value in inputs])
    assert report, str(report)
    assert sum(row.kinks for row in report.rows) <= 2


def test_im2col_passes_with_a_backward_that_is_given(backend, rng):
    x = rng.normal(size=(2, 3, 5, 4))
    report = gradcheck(
        lambda x: F.im2col(x, (2, 3), stride=2, padding=1),
        x,
        backward=lambda dy, y: F.col2im(dy, x.shape, (2, 3), stride=2, padding=1),
    )
    assert report, str(report)


@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), np.array([0, 3, 1])),
        (nn.CrossEntropyLoss(reduction="sum"), np.eye(4)[[2, 0, 1]].astype(int)),
        (nn.MSELoss(), np.arange(12.0).reshape(3, 4)),
    ],
)
def test_losses_pass(backend, rng, criterion, target):
    report = gradcheck(criterion, (rng.normal(size=(3, 4)), target))
    assert report, str(report)


def test_functions_of_the_users_own_find_their_backward_by_name(rng):
    report = gradcheck(softplus, rng.normal(size=(3, 4)))
    assert report, str(report)
    assert [row.name for row in report.rows] == ["x"]


def model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def test_a_whole_model_passes_and_nothing_of_it_changes(backend, rng):
    net = model()
    x = rng.normal(size=(2, 3, 6, 6)).astype("float32")
    state = {name: backend.to_numpy(array).copy() for name, array in net.state_dict().items()}
    buffers = {name: backend.to_numpy(array).copy() for name, array in net.named_buffers()}
    objects = [parameter.data for parameter in net.parameters()]
    drawn = random.get_state()
    report = gradcheck(net, x)
    assert report, str(report)
    assert [row.name for row in report.rows] == ["input x", *dict(net.named_parameters())]
    for name, array in net.state_dict().items():
        assert array.dtype == np.float32
        assert np.array_equal(backend.to_numpy(array), state[name])
    for name, array in net.named_buffers():
        assert np.array_equal(backend.to_numpy(array), buffers[name])
    for parameter, data in zip(net.parameters(), objects, strict=True):
        assert parameter.data is data
        assert not backend.to_numpy(parameter.grad).any()
    assert random.get_state() == drawn
    with pytest.raises(RuntimeError, match="expected a forward"):
        net.backward(backend.asarray(np.zeros((2, 5), "float32")))  # nothing was left behind either
    assert gradcheck(net.eval(), x)


class Scale(nn.Module):
    """y = gain * x^2, written as a user would, with one mistake to choose."""

    def __init__(self, mistake=""):
        super().__init__()
        self.gain = nn.Parameter(self.backend.asarray(np.full(1, 1.5, "float32")))
        self.mistake = mistake

    def forward(self, x):
        self.keep(x)
        return self.gain.data * x * x

    def backward(self, dy):
        x = self.take()
        gradient = (dy * x * x).sum().reshape(1)
        if self.mistake == "assigns":
            self.gain.grad = gradient
        elif self.mistake != "no parameter":
            self.gain.accumulate(gradient * (1.001 if self.mistake == "factor" else 1.0))
        if self.mistake == "no input":
            return None
        if self.mistake == "ignores dy":
            return 2.0 * self.gain.data * x
        if self.mistake == "transposed":
            return (2.0 * self.gain.data * x * dy).T
        if self.mistake == "one entry":
            dx = 2.0 * self.gain.data * x * dy
            dx[0, 1] = dx[0, 1] * 1.01
            return dx
        if self.mistake == "nan":
            return 2.0 * self.gain.data * x * dy * float("nan")
        return 2.0 * self.gain.data * x * dy


def test_a_layer_of_the_users_own_passes(backend, rng):
    report = gradcheck(nn.Sequential(Scale(), Scale()), rng.normal(size=(3, 4)))
    assert report, str(report)


@pytest.mark.parametrize(
    ("mistake", "row", "remark"),
    [
        ("assigns", "gain", "a second backward must add"),
        ("no parameter", "gain", ""),
        ("factor", "gain", ""),
        ("no input", "input x", "no gradient"),
        ("ignores dy", "input x", ""),
        ("transposed", "input x", r"shape \(4, 3\)"),
        ("one entry", "input x", ""),
        ("nan", "input x", "not finite"),
    ],
)
def test_mistakes_are_found(backend, rng, mistake, row, remark):
    report = gradcheck(Scale(mistake), rng.normal(size=(3, 4)))
    assert not report
    wrong = [each for each in report.rows if not each.ok]
    assert [each.name for each in wrong] == [row]
    assert remark.replace("\\", "") in wrong[0].remark
    assert "WRONG" in str(report)
    assert "at least one gradient is wrong" in str(report)


def test_a_wrong_backward_of_a_function_is_found(backend, rng):
    x = rng.normal(size=(3, 4))
    assert not gradcheck(F.tanh, x, backward=lambda dy, cache: dy)
    assert not gradcheck(F.sigmoid, x, backward=lambda dy, cache: F.sigmoid_backward(dy * 0 + 1.0, cache))


def test_kinks_are_counted_and_not_judged(backend, rng):
    x = rng.normal(size=(3, 4))
    x[0, 0] = 0.0
    x[2, 1] = 3e-6  # the step crosses 0
    report = gradcheck(F.relu, x)
    assert report, str(report)
    assert report.rows[0].kinks == 2
    assert not gradcheck(F.relu, np.zeros((2, 2)))  # nothing but kinks proves nothing
    assert gradcheck(partial(F.max_pool2d, kernel_size=2), np.round(rng.normal(size=(2, 2, 6, 6))))


def test_at_a_kink_only_a_slope_of_one_side_or_between_is_right(rng):
    x = rng.normal(size=(3, 4))
    x[0, 0] = 0.0
    for slope, right in ((0.0, True), (1.0, True), (0.3, True), (1.5, False), (-0.5, False)):
        report = gradcheck(
            F.relu, x, backward=lambda dy, cache, s=slope: dy * np.where(x > 0, 1.0, np.where(x < 0, 0, s))
        )
        assert bool(report) is right, slope
        assert report.rows[0].kinks == int(right)
    # The slope in the middle is what the difference gives: right, and no kink that one would have to look at.
    report = gradcheck(F.relu, x, backward=lambda dy, cache: dy * np.where(x > 0, 1.0, np.where(x < 0, 0, 0.5)))
    assert report.rows[0].kinks == 0


def test_large_arrays_are_sampled_from_a_seed(backend, rng):
    x = rng.normal(size=(20, 30))
    report = gradcheck(F.tanh, x, max_entries=7)
    assert report.rows[0].entries == 7
    assert gradcheck(F.tanh, x, max_entries=None).rows[0].entries == 600
    assert str(gradcheck(F.tanh, x, max_entries=7, seed=3)) == str(gradcheck(F.tanh, x, max_entries=7, seed=3))


def test_inputs_are_left_as_they_are(backend, rng):
    x = rng.normal(size=(3, 4)).astype("float32")
    before = x.copy()
    running = [np.zeros(4), np.ones(4)]
    gradcheck(partial(F.batch_norm, training=True), (x, np.ones(4), np.zeros(4), *running))
    assert np.array_equal(x, before)
    assert not running[0].any()


def test_what_backward_leaves_out_is_named(rng):
    report = gradcheck(partial(F.batch_norm, training=True), (rng.normal(size=(5, 3)), *(np.ones(3) for _ in range(4))))
    assert report.unchecked == ["running_mean", "running_var"]
    assert "backward returns nothing for running_mean, running_var" in str(report)


def test_it_follows_the_backend_of_its_arrays(backend, rng):
    x = backend.asarray(rng.normal(size=(3, 4)))
    net = nn.Sequential(nn.Linear(4, 2))
    with use_backend("numpy"):
        assert gradcheck(F.tanh, x)
        assert gradcheck(net, x)
        assert gradcheck(net, rng.normal(size=(3, 4)))  # a host array goes to the model's backend


def test_a_model_can_be_checked_in_the_middle_of_training(backend, rng):
    net = nn.Sequential(nn.Linear(4, 2))
    x = backend.asarray(rng.normal(size=(3, 4)).astype("float32"))
    net.backward(net(x))
    gradient = backend.to_numpy(net.parameters()[0].grad).copy()
    twin = copy.deepcopy(net)
    assert gradcheck(net, x)
    assert np.array_equal(backend.to_numpy(net.parameters()[0].grad), gradient)
    assert gradcheck(twin, x)


def test_it_refuses_what_it_cannot_check():
    with pytest.raises(ConfigError, match=r"target: found no <lambda>_backward in .*; pass backward="):
        gradcheck(lambda x: x, np.ones(3))
    with pytest.raises(ConfigError, match="target: expected a module, a loss object or a function, got int"):
        gradcheck(3, np.ones(3))
    with pytest.raises(ConfigError, match="inputs: expected at least one floating array or parameter"):
        gradcheck(F.relu, np.ones(3, int))
    with pytest.raises(ConfigError, match="eps, tolerance: expected numbers above 0"):
        gradcheck(F.relu, np.ones((1, 1)), eps=0.0)
    with pytest.raises(ConfigError, match="max_entries: expected 1 or more"):
        gradcheck(F.relu, np.ones((1, 1)), max_entries=0)
