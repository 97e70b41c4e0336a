"""Published networks against twins written with PyTorch's layers: the same names of parameters, the same logits."""

import copy
import importlib

import numpy as np
import pytest

from tests.functional.strategies import values
from xpcnn import manual_seed, models, nn
from xpcnn.training import load_parameters, to_torch_state_dict

pytestmark = pytest.mark.parity


@pytest.fixture
def twins(torch):
    """Give the networks, as users of PyTorch write them."""
    t = torch.nn

    class Residual(t.Module):
        def __init__(self, body, shortcut=None):
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x):
            return self.body(x) + (x if self.shortcut is None else self.shortcut(x))

    class Concat(t.ModuleList):
        def forward(self, x):
            return torch.cat([branch(x) for branch in self], 1)

    def conv(channels, filters, kernel, stride=1, groups=1, bias=False):
        return t.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=bias)

    def head(channels):
        return t.AdaptiveAvgPool2d(1), t.Flatten(), t.Linear(channels, 10)

    class Padded(t.Module):
        def forward(self, x):
            more = x.shape[1] // 2
            return t.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))

    def resnet(blocks, projection=False):
        def block(channels, filters):
            stride = 1 if channels == filters else 2
            body = t.Sequential(
                conv(channels, filters, 3, stride), t.BatchNorm2d(filters), t.ReLU(),
                conv(filters, filters, 3), t.BatchNorm2d(filters),
            )  # fmt: skip
            if stride == 1:
                return Residual(body)
            if not projection:
                return Residual(body, Padded())
            return Residual(body, t.Sequential(conv(channels, filters, 1, 2), t.BatchNorm2d(filters)))

        layers, channels = [conv(3, 16, 3), t.BatchNorm2d(16), t.ReLU()], 16
        for filters in [16] * blocks + [32] * blocks + [64] * blocks:
            layers += [block(channels, filters), t.ReLU()]
            channels = filters
        return t.Sequential(*layers, *head(64))

    def vgg11(batch_norm=False):
        layers, channels = [], 3
        for filters in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
            if filters == "M":
                layers.append(t.MaxPool2d(2))
                continue
            layers += [conv(channels, filters, 3, bias=True), *([t.BatchNorm2d(filters)] if batch_norm else [])]
            layers.append(t.ReLU())
            channels = filters
        return t.Sequential(*layers, t.Flatten(), t.Linear(512, 10))

    def mobilenet():
        layers, channels = [conv(3, 32, 3), t.BatchNorm2d(32), t.ReLU()], 32
        for filters, stride in [
            (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)
        ]:  # fmt: skip
            layers += [conv(channels, channels, 3, stride, groups=channels), t.BatchNorm2d(channels), t.ReLU()]
            layers += [conv(channels, filters, 1), t.BatchNorm2d(filters), t.ReLU()]
            channels = filters
        return t.Sequential(*layers, *head(1024))

    def densenet40():
        layers, channels = [conv(3, 16, 3)], 16
        for block in range(3):
            for _ in range(12):
                grown = t.Sequential(t.BatchNorm2d(channels), t.ReLU(), conv(channels, 12, 3))
                layers.append(Concat([t.Identity(), grown]))
                channels += 12
            layers += [t.BatchNorm2d(channels), t.ReLU()]
            if block < 2:
                layers += [conv(channels, channels, 1), t.AvgPool2d(2)]
        return t.Sequential(*layers, *head(448))

    def unet(width, depth):
        def twice(channels, filters):
            pairs = (channels, filters), (filters, filters)
            return [layer for pair in pairs for layer in (conv(*pair, 3, bias=True), t.ReLU())]

        def level(i, channels):
            filters = width * 2**i
            layers = twice(channels, filters)
            if i < depth:
                up = t.ConvTranspose2d(2 * filters, filters, 2, 2)
                below = t.Sequential(t.MaxPool2d(2), level(i + 1, filters), up)
                layers += [Concat([t.Identity(), below]), *twice(2 * filters, filters)]
            return t.Sequential(*layers)

        return level(0, 1).append(t.Conv2d(width, 2, 1))

    def lenet5():
        def stage(channels, filters, *more):
            return t.Conv2d(channels, filters, 5), t.BatchNorm2d(filters), t.ReLU(), *more

        layers = *stage(1, 6, t.MaxPool2d(2)), *stage(6, 16, t.MaxPool2d(2)), *stage(16, 120)
        return t.Sequential(*layers, t.Flatten(), t.Linear(120, 84), t.ReLU(), t.Dropout(0.5), t.Linear(84, 10))

    return {
        "lenet5": ({"image_size": 32}, lenet5),
        "resnet20": ({}, lambda: resnet(3, projection=True)),
        "resnet32": ({}, lambda: resnet(5)),
        "resnet56": ({}, lambda: resnet(9)),
        "vgg11": ({}, vgg11),
        "vgg11 with batch norm": ({"batch_norm": True}, lambda: vgg11(batch_norm=True)),
        "mobilenet": ({}, mobilenet),
        "densenet40": ({}, densenet40),
        "unet": ({"width": 8, "depth": 3}, lambda: unet(8, 3)),
    }


NETS = [
    "resnet20", "resnet32", "resnet56", "vgg11", "vgg11 with batch norm", "mobilenet", "densenet40", "unet",
]  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_logits_and_gradients(torch, twins, rng, name):
    """With the batch's own statistics, and with what they have left."""
    options, make = twins[name]
    torch.manual_seed(1)
    manual_seed(1)
    twin, net = make().train(), models.create(name.split()[0], **options).train()
    state = twin.state_dict()
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == {
        key: tuple(value.shape) for key, value in state.items() if key in net.state_dict()
    }
    assert sum(p.numel() for p in twin.parameters()) == sum(p.size for p in net.parameters())
    net.load_state_dict({key: state[key].numpy() for key in net.state_dict()})

    x = values(rng, (8, 1 if name == "unet" else 3, 32, 32), "float32")
    with nn.no_grad(), torch.no_grad():
        # By the statistics of eight images small roundings grow: the oracle has none of its own.
        assert_near(net(x), copy.deepcopy(twin).double()(torch.from_numpy(x).double()).numpy(), 1e-5)
        twin(torch.from_numpy(x))
        net.eval()
        twin.eval()
        assert_near(net(x), twin(torch.from_numpy(x)).numpy(), 1e-5)

    # In float32 a rounding that turns a ReLU moves gradients by far more than itself.
    net.train().to(dtype="float64")
    expected = twin.train().double()(torch.from_numpy(x).double())
    dlogits = values(rng, expected.shape, "float64")
    expected.backward(torch.from_numpy(dlogits))
    net(x.astype("float64"))
    net.backward(dlogits)
    for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert_near(parameter.grad, other.grad.numpy(), 1e-9)


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "vgg11", "vgg11 with batch norm", "mobilenet", "densenet40"])
def test_weights_over_and_back(torch, twins, rng, name, tmp_path):
    """By the state itself and by files of PyTorch; back bit for bit."""
    options, make = twins[name]
    save_file = importlib.import_module("safetensors.torch").save_file
    torch.manual_seed(2)
    twin, other = make(), make()
    x = values(rng, (8, *((1, 32, 32) if name == "lenet5" else (3, 32, 32))), "float32")
    with torch.no_grad():
        for _ in range(3):  # so that the statistics are no beginner's
            twin.train()(torch.from_numpy(x))
        expected = twin.eval()(torch.from_numpy(x)).numpy()
    torch.save(twin.state_dict(), tmp_path / "zip.pt")
    torch.save(twin.state_dict(), tmp_path / "pickles.pt", _use_new_zipfile_serialization=False)
    save_file(twin.state_dict(), tmp_path / "safe")

    for way in ("state", "zip.pt", "pickles.pt", "safe"):
        net = models.create(name.split()[0], **options).eval()
        if way == "state":
            assert net.load_state_dict(twin.state_dict()) == ([], [])
        else:
            load_parameters(net, tmp_path / way)
        with nn.no_grad():
            assert_near(net(x), expected, 1e-5)
        state = to_torch_state_dict(net)
        assert repr(other.load_state_dict(state)) == "<All keys matched successfully>"
        for key, value in twin.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                assert torch.equal(other.state_dict()[key].view(torch.int32), value.view(torch.int32)), key
        next(iter(state.values())).zero_()  # a copy
        assert np.any(net.parameters()[0].data)


def assert_near(ours, theirs, tolerance):
    """Hold the largest difference against the largest entry, or 1."""
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) <= tolerance * max(1.0, float(np.max(np.abs(theirs))))
