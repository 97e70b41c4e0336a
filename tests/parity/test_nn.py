"""Every layer and loss, and whole networks in training, against PyTorch's."""

import inspect

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import nn, optim

pytestmark = pytest.mark.parity

IMAGES, FEATURES = (3, 4, 7, 6), (5, 4)
LAYERS = [
    ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, IMAGES),
    ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0),
                "dilation": (1, 2), "groups": 2, "bias": False}, IMAGES),
    ("Conv2d", {"in_channels": 4, "out_channels": 2, "kernel_size": 3, "padding": "same"}, IMAGES),
    ("Linear", {"in_features": 4, "out_features": 3}, FEATURES),
    ("Linear", {"in_features": 4, "out_features": 3, "bias": False}, FEATURES),
    ("MaxPool2d", {"kernel_size": 2}, IMAGES),
    ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, IMAGES),
    ("MaxPool2d", {"kernel_size": (3, 2), "stride": 1, "dilation": 2}, IMAGES),
    ("AvgPool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, IMAGES),
    ("AvgPool2d", {"kernel_size": 2, "padding": 1, "count_include_pad": False}, IMAGES),
    ("BatchNorm1d", {"num_features": 4}, FEATURES),
    ("BatchNorm2d", {"num_features": 4, "eps": 1e-3, "momentum": 0.3}, IMAGES),
    ("ReLU", {}, IMAGES),
    ("LeakyReLU", {"negative_slope": 0.2}, IMAGES),
    ("Sigmoid", {}, IMAGES),
    ("Tanh", {}, FEATURES),
    ("GELU", {}, IMAGES),
    ("ConvTranspose2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1,
                         "output_padding": 1, "groups": 2}, IMAGES),
    ("ConvTranspose2d", {"in_channels": 4, "out_channels": 3, "kernel_size": (2, 3), "bias": False,
                         "dilation": (2, 1)}, IMAGES),
    ("LayerNorm", {"normalized_shape": 4}, FEATURES),
    ("LayerNorm", {"normalized_shape": (4, 7, 6), "eps": 1e-3}, IMAGES),
    ("LayerNorm", {"normalized_shape": [6], "bias": False}, IMAGES),
    ("LayerNorm", {"normalized_shape": (7, 6), "elementwise_affine": False}, IMAGES),
    ("GroupNorm", {"num_groups": 2, "num_channels": 4}, IMAGES),
    ("GroupNorm", {"num_groups": 1, "num_channels": 4, "eps": 1e-3}, FEATURES),
    ("GroupNorm", {"num_groups": 4, "num_channels": 4, "affine": False}, IMAGES),
    ("SiLU", {}, IMAGES),
    ("Hardswish", {}, IMAGES),
    ("ELU", {"alpha": 0.7}, IMAGES),
    ("Identity", {}, IMAGES),
    ("AdaptiveAvgPool2d", {"output_size": 1}, IMAGES),
    ("AdaptiveAvgPool2d", {"output_size": (7, 3)}, IMAGES),
    ("AdaptiveAvgPool2d", {"output_size": (4, None)}, IMAGES),
    ("AdaptiveAvgPool2d", {"output_size": 10}, IMAGES),
    ("Upsample", {"scale_factor": 2}, IMAGES),
    ("Upsample", {"size": (3, 11)}, IMAGES),
    ("Upsample", {"scale_factor": 2, "mode": "bilinear"}, IMAGES),
    ("Upsample", {"size": (12, 4), "mode": "bilinear", "align_corners": False}, IMAGES),
    ("Upsample", {"size": (12, 1), "mode": "bilinear", "align_corners": True}, IMAGES),
    ("Softmax", {"dim": 1}, FEATURES),
    ("Flatten", {}, IMAGES),
]  # fmt: skip


def copy_state(torch, ours, theirs):
    """Give PyTorch's module the parameters of ours, in their order."""
    with torch.no_grad():
        for tensor, parameter in zip(theirs.parameters(), ours.parameters(), strict=True):
            tensor.copy_(torch.tensor(parameter.data))


def close(actual, expected, tolerance):
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected), initial=0.0) <= tolerance * max(1.0, np.max(np.abs(expected), initial=0.0))


def make(torch, name, options, dtype):
    typed = {"dtype": dtype} if "dtype" in inspect.signature(getattr(nn, name)).parameters else {}
    ours = getattr(nn, name)(**options, **typed)
    theirs = getattr(torch.nn, name)(**options).to(getattr(torch, dtype))
    copy_state(torch, ours, theirs)
    return ours, theirs


@pytest.mark.parametrize(("name", "options", "shape"), LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_layers(torch, rng, name, options, shape, dtype, tolerance):
    ours, theirs = make(torch, name, options, dtype)
    for training in (True, True, False):  # twice: gradients add up, running statistics move on
        ours.train(training)
        theirs.train(training)
        x = values(rng, shape, dtype)
        tensor = torch.tensor(x, requires_grad=True)
        y, expected = ours(x), theirs(tensor)
        close(y, expected, tolerance)
        dy = values(rng, y.shape, dtype)
        dx = ours.backward(dy)
        expected.backward(torch.tensor(dy))
        close(dx, tensor.grad, tolerance)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(mine.grad, other.grad, tolerance)
        others = [buffer for key, buffer in theirs.named_buffers() if "num_batches" not in key]
        for (_, mine), other in zip(ours.named_buffers(), others, strict=True):
            close(mine, other, tolerance)


@pytest.mark.parametrize(
    "name",
    sorted(
        {name for name, _, _ in LAYERS}
        | {"Dropout", "Dropout2d", "MSELoss", "L1Loss", "BCEWithLogitsLoss", "CrossEntropyLoss"}
    ),
)
def test_positional_arguments_are_pytorchs(torch, name):
    def positional(cls):
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p.name for p in inspect.signature(cls).parameters.values() if p.kind in kinds]

    ours, theirs = positional(getattr(nn, name)), positional(getattr(torch.nn, name))
    assert ours == theirs[: len(ours)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_loss(torch, rng, reduction, smoothing):
    logits, labels = values(rng, (6, 5)), rng.integers(0, 5, 6)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    criterion = nn.CrossEntropyLoss(**options)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.CrossEntropyLoss(**options)(tensor, torch.tensor(labels))
    close(criterion(logits, labels), expected, 1e-13)
    expected.backward()
    close(criterion.backward(), tensor.grad, 1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, -100, 2])
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4, 2), (3, 5, 4)])
def test_cross_entropy_of_weights_and_pixels(torch, rng, reduction, smoothing, weighted, ignored, shape):
    logits, labels = values(rng, shape), rng.integers(0, 5, shape[:1] + shape[2:])
    if ignored is not None:
        labels[::2] = ignored
    weight = rng.uniform(0.2, 2, 5) if weighted else None
    options = {"reduction": reduction, "label_smoothing": smoothing}
    criterion = nn.CrossEntropyLoss(weight=weight, ignore_index=ignored, **options)
    if ignored is not None:
        options["ignore_index"] = ignored
    oracle = torch.nn.CrossEntropyLoss(weight=None if weight is None else torch.tensor(weight), **options)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = oracle(tensor, torch.tensor(labels))
    close(criterion(logits, labels), expected, 1e-13)
    expected.backward()
    close(criterion.backward(), tensor.grad, 1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_probabilities_of_pixels(torch, rng, reduction, smoothing, weighted):
    logits, labels = values(rng, (3, 5, 4, 2)), np.moveaxis(rng.dirichlet(np.ones(5), (3, 4, 2)), -1, 1)
    weight = rng.uniform(0.2, 2, 5) if weighted else None
    options = {"reduction": reduction, "label_smoothing": smoothing}
    criterion = nn.CrossEntropyLoss(weight=weight, **options)
    oracle = torch.nn.CrossEntropyLoss(weight=None if weight is None else torch.tensor(weight), **options)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = oracle(tensor, torch.tensor(labels))
    close(criterion(logits, labels), expected, 1e-13)
    expected.backward()
    close(criterion.backward(), tensor.grad, 1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [None, (4,), (3, 1), ()])
def test_bce_with_logits_loss(torch, rng, reduction, weight):
    x, target = values(rng, (6, 3, 4)) * 5, rng.uniform(0, 1, (6, 3, 4))
    weight = None if weight is None else np.asarray(rng.uniform(0.2, 2, weight))
    criterion = nn.BCEWithLogitsLoss(pos_weight=weight, reduction=reduction)
    given = None if weight is None else torch.tensor(weight)
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=given, reduction=reduction)(tensor, torch.tensor(target))
    close(criterion(x, target), expected, 1e-13)
    expected.backward()
    close(criterion.backward(), tensor.grad, 1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_l1_loss(torch, rng, reduction):
    x, target = values(rng, (6, 5)), values(rng, (6, 5))
    target[0] = x[0]
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.L1Loss(reduction=reduction)(tensor, torch.tensor(target))
    criterion = nn.L1Loss(reduction=reduction)
    close(criterion(x, target), expected, 1e-13)
    expected.backward()
    close(criterion.backward(), tensor.grad, 1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_loss(torch, rng, reduction):
    x, target = values(rng, (6, 5)), values(rng, (6, 5))
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.MSELoss(reduction=reduction)(tensor, torch.tensor(target))
    criterion = nn.MSELoss(reduction=reduction)
    close(criterion(x, target), expected, 1e-13)
    expected.backward()
    close(criterion.backward(), tensor.grad, 1e-13)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (nn.init.he_normal, lambda init, t: init.kaiming_normal_(t, nonlinearity="relu")),
        (nn.init.he_uniform, lambda init, t: init.kaiming_uniform_(t, nonlinearity="relu")),
        (nn.init.xavier_normal, lambda init, t: init.xavier_normal_(t)),
        (nn.init.xavier_uniform, lambda init, t: init.xavier_uniform_(t)),
    ],
)
@pytest.mark.parametrize("shape", [(400, 300), (80, 60, 5, 3)])
def test_initial_values_are_spread_alike(torch, ours, theirs, shape):
    drawn, expected = np.asarray(ours(shape)), theirs(torch.nn.init, torch.empty(shape)).numpy()
    assert np.std(drawn) == pytest.approx(np.std(expected), rel=0.02)
    assert np.max(np.abs(drawn)) == pytest.approx(np.max(np.abs(expected)), rel=0.2)
    assert abs(np.mean(drawn)) < 0.02 * np.std(drawn)


def networks(torch):
    """The same network here and there: everything that a small CNN has, and a residual block."""
    double = {"dtype": "float64"}
    ours = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, **double), nn.BatchNorm2d(6, **double), nn.ReLU(), nn.MaxPool2d(2),
        nn.Residual(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, **double), nn.Tanh())),
        nn.Conv2d(6, 8, 3, stride=2, **double), nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8, 12, **double), nn.BatchNorm1d(12, **double), nn.GELU(), nn.Linear(12, 5, **double),
    )  # fmt: skip

    class Residual(torch.nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body(x) + x

    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        Residual(torch.nn.Sequential(torch.nn.Conv2d(6, 6, 3, padding=1), torch.nn.Tanh())),
        torch.nn.Conv2d(6, 8, 3, stride=2), torch.nn.LeakyReLU(), torch.nn.AvgPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(8, 12), torch.nn.BatchNorm1d(12), torch.nn.GELU(), torch.nn.Linear(12, 5),
    ).double()  # fmt: skip
    copy_state(torch, ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("optimiser", ["SGD", "Adam"])
def test_a_network_trains_along_the_same_path(torch, rng, optimiser):
    ours, theirs = networks(torch)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3} if optimiser == "SGD" else {"lr": 1e-3}
    mine = getattr(optim, optimiser)(ours.parameters(), **settings)
    other = getattr(torch.optim, optimiser)(theirs.parameters(), **settings)
    criterion, oracle = nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()
    for _ in range(15):
        x, labels = values(rng, (8, 1, 12, 12)), rng.integers(0, 5, 8)
        mine.zero_grad()
        loss = criterion(ours(x), labels)
        ours.backward(criterion.backward(), input_gradient=False)
        mine.step()
        other.zero_grad()
        expected = oracle(theirs(torch.tensor(x)), torch.tensor(labels))
        expected.backward()
        other.step()
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-7)
    ours.eval()
    theirs.eval()
    x = values(rng, (8, 1, 12, 12))
    close(ours(x), theirs(torch.tensor(x)), 1e-6)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert [p.shape for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]


def test_inference_folds_as_pytorch_does(torch, rng):
    ours, theirs = networks(torch)
    for mine, other in zip(
        [m for m in ours.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)],
        [m for m in theirs.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)],
        strict=True,
    ):
        shape = mine.weight.shape
        for array, tensor in (
            (mine.running_mean, other.running_mean), (mine.running_var, other.running_var),
            (mine.weight.data, other.weight), (mine.bias.data, other.bias),
        ):  # fmt: skip
            array[...] = rng.uniform(0.3, 2, shape)
            tensor.data.copy_(torch.tensor(array))
    theirs.eval()
    convolve = nn.Inference(ours)._path.steps[0].convolve
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(theirs[0], theirs[1])
    close(convolve.weight, fused.weight, 1e-14)
    infer = nn.Inference(ours)
    for batch in (8, 40, 8):
        x = values(rng, (batch, 1, 12, 12))
        close(infer(x), theirs(torch.tensor(x)), 1e-12)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 5)])
def test_batch_norm_that_averages_all_batches(torch, rng, shape):
    kind = "BatchNorm1d" if len(shape) == 2 else "BatchNorm2d"
    mine, other = (
        getattr(nn, kind)(3, momentum=None, dtype="float64"),
        getattr(torch.nn, kind)(3, momentum=None).double(),
    )
    for _ in range(5):
        x = values(rng, shape) * 3 + 1
        close(mine(x), other(torch.tensor(x)), 1e-12)
    for name, array in other.state_dict().items():
        np.testing.assert_allclose(mine.state_dict()[name], array.numpy(), rtol=1e-12)
    assert mine.state_dict().keys() == other.state_dict().keys()
