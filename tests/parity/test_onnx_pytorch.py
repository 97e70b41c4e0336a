"""Networks that PyTorch's exporters write, both of them: read, run, and their gradients beside PyTorch's own."""

import warnings

import numpy as np
import pytest

import xpcnn
from xpcnn import nn

pytest.importorskip("onnx")

pytestmark = pytest.mark.parity


def block(torch, channels, filters, stride):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(filters)
            self.conv2 = torch.nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(filters)
            self.down = torch.nn.Conv2d(channels, filters, 1, stride) if stride > 1 else torch.nn.Identity()

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(y)) + self.down(x))

    return Block()


def residual(torch):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), block(torch, 8, 8, 1), block(torch, 8, 12, 2),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(12, 5),
    )  # fmt: skip


def plain(torch):
    layer = torch.nn
    return layer.Sequential(
        layer.Conv2d(3, 6, (5, 3), padding=(2, 1), groups=3), layer.ELU(), layer.MaxPool2d(3, 2, 1, ceil_mode=True),
        layer.Conv2d(6, 8, 3, dilation=2, padding="same"), layer.Hardswish(), layer.AvgPool2d(2, ceil_mode=True),
        layer.Flatten(), layer.Linear(200, 16), layer.Tanh(), layer.Linear(16, 5), layer.LogSoftmax(1),
    )  # fmt: skip


def mobile(torch):
    class Mobile(torch.nn.Module):
        """Depthwise convolutions, a gate of squeezed channels, a shuffle, a view of sizes that it asks for."""

        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.squeeze, self.excite = torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)
            self.norm, self.head = torch.nn.LayerNorm(32), torch.nn.Linear(32, 5)
            self.pool = torch.nn.AdaptiveAvgPool2d(2)

        def forward(self, x):
            x = torch.nn.functional.relu6(self.stem(x))
            x = torch.nn.functional.gelu(self.depthwise(x))
            x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            a, b = x.chunk(2, 1)
            x = self.pool(torch.cat([b, a], 1))
            return self.head(self.norm(x.view(x.size(0), -1)))

    return Mobile()


def segmentation(torch):
    class Segmentation(torch.nn.Module):
        def __init__(self):
            super().__init__()
            conv, row = torch.nn.Conv2d, torch.nn.Sequential
            self.enter = row(conv(3, 6, 3, padding=1, bias=False), torch.nn.BatchNorm2d(6), torch.nn.ReLU())
            norm = torch.nn.GroupNorm(2, 8)
            self.deep = row(torch.nn.MaxPool2d(2), conv(6, 8, 3, padding=1), norm, torch.nn.SiLU())
            self.up = torch.nn.ConvTranspose2d(8, 6, 2, stride=2)
            self.out = row(conv(12, 6, 3, padding=1), torch.nn.LeakyReLU(0.1), conv(6, 4, 1))
            self.large = torch.nn.Upsample(scale_factor=2, mode="bilinear")
            self.larger = torch.nn.Upsample(scale_factor=2)

        def forward(self, x):
            a = self.enter(x)
            return self.larger(self.large(self.out(torch.cat([a, self.up(self.deep(a))], 1))))

    return Segmentation()


NETWORKS = {"residual": residual, "plain": plain, "mobile": mobile, "segmentation": segmentation}


def write(torch, model, x, path, dynamo, free):
    options = {"dynamo": dynamo, "input_names": ["image"], "output_names": ["y"]}
    if dynamo:
        options |= {"external_data": False, "verbose": False}
    if free:
        sizes = {0: torch.export.Dim("batch")} if dynamo else {0: "batch"}
        options |= {"dynamic_shapes": (sizes,)} if dynamo else {"dynamic_axes": {"image": sizes}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the one exporter is old, and what the other says of itself
        torch.onnx.export(model, (x,), str(path), **options)


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_network(torch, name, dynamo, free, tmp_path):
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    model = NETWORKS[name](torch)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    model.eval()
    write(torch, model, torch.randn(2, 3, 16, 16), tmp_path / "a.onnx", dynamo, free)
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    x = torch.randn(5, 3, 16, 16, requires_grad=True)  # another batch than the file's
    expected = model(x)
    actual = loaded(x.detach().numpy())
    assert np.linalg.norm(actual - expected.detach().numpy()) < 1e-5 * float(expected.detach().norm())
    runtime = pytest.importorskip("onnxruntime")
    xpcnn.onnx.export(loaded, (3, 16, 16), tmp_path / "again.onnx")  # and out again
    (again,) = runtime.InferenceSession(str(tmp_path / "again.onnx")).run(None, {"input": x.detach().numpy()})
    assert np.linalg.norm(actual - again) < 1e-5 * np.linalg.norm(again)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    dx = loaded.backward(dy.numpy())
    assert np.linalg.norm(dx - x.grad.numpy()) < 1e-4 * float(x.grad.norm())
    head = [name for name, _ in model.named_parameters() if name.endswith("weight")][-1]
    ours = next(p for p in reversed(loaded.parameters()) if p.shape == dict(model.named_parameters())[head].shape)
    theirs = dict(model.named_parameters())[head].grad.numpy()
    assert np.linalg.norm(ours.grad - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_the_layers_of_a_plain_network(torch, tmp_path):
    write(torch, plain(torch).eval(), torch.randn(2, 3, 16, 16), tmp_path / "a.onnx", False, True)
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx")
    assert isinstance(loaded, nn.Sequential)
    assert [type(layer).__name__ for layer in loaded][:9] == [
        "Conv2d", "ELU", "MaxPool2d", "Conv2d", "Hardswish", "AvgPool2d", "Flatten", "Linear", "Tanh",
    ]  # fmt: skip


def test_names_are_pytorchs(torch, tmp_path):
    model = segmentation(torch).eval()
    write(torch, model, torch.randn(2, 3, 16, 16), tmp_path / "a.onnx", False, True)
    ours = set(xpcnn.onnx.load(tmp_path / "a.onnx").state_dict())
    assert {"up.weight", "up.bias", "out.0.weight", "out.2.bias", "deep.1.weight"} <= ours & set(model.state_dict())


def test_a_file_with_batch_norm_trains_on_as_pytorch(torch, tmp_path):
    """Exported with batch norm as it is; each step of training gives the same loss."""
    model = residual(torch).eval()
    model[5].p = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(2, 3, 16, 16),), str(tmp_path / "a.onnx"), dynamo=False,
                          training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
                          dynamic_axes={"image": {0: "batch"}}, input_names=["image"])  # fmt: skip
    loaded = xpcnn.onnx.load(tmp_path / "a.onnx").train()
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in loaded.modules()) == 4
    model.train()
    x, labels = torch.randn(8, 3, 16, 16), torch.randint(0, 5, (8,))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    ours, criterion = xpcnn.optim.SGD(loaded.parameters(), 0.05), nn.CrossEntropyLoss()
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mine = criterion(loaded(x.numpy()), labels.numpy())
        loaded.backward(criterion.backward())
        ours.step()
        ours.zero_grad()
        assert float(mine) == pytest.approx(loss.item(), rel=1e-3)
