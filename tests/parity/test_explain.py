"""Saliency and Grad-CAM, against PyTorch's automatic differentiation."""

import numpy as np
import pytest

import xpcnn
from xpcnn import explain, models, nn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def pair():
    xpcnn.manual_seed(0)
    ours = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(216, 10),
    ).eval()  # fmt: skip
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(8, 6, 3),
        torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 10),
    ).eval()  # fmt: skip
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    return ours, theirs, np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype("float32")


def test_saliency():
    ours, theirs, x = pair()
    there = torch.tensor(x, requires_grad=True)
    theirs(there).max(dim=1).values.sum().backward()
    expected = there.grad.abs().amax(dim=1).numpy()
    np.testing.assert_allclose(explain.saliency(ours, x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 3, 4])
def test_grad_cam(layer):
    ours, theirs, x = pair()
    target = np.arange(5) + 2
    maps = []
    theirs[layer].register_forward_hook(lambda module, args, output: maps.append(output))
    scores = theirs(torch.tensor(x))
    chosen = scores[torch.arange(5), torch.tensor(target)].sum()
    (slope,) = torch.autograd.grad(chosen, maps)
    weights = slope.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * maps[0]).sum(dim=1)).detach().numpy()
    found = explain.grad_cam(ours, x, target, layer=ours[layer])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_of_the_library_s_networks():
    model = models.create("resnet20")
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype("float32")
    assert explain.grad_cam(model, x).shape == (2, 8, 8)
    assert explain.saliency(model, x).shape == (2, 32, 32)
