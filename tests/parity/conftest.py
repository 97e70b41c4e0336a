"""PyTorch as the oracle. It is imported here alone, by the fixture, so that the other sessions do without it."""

import importlib

import numpy as np
import pytest


@pytest.fixture(scope="session")
def torch():
    module = importlib.import_module("torch")
    module.set_num_threads(1)
    module.manual_seed(0)
    return module


@pytest.fixture
def differentiate(torch):
    """Give a function that returns PyTorch's output, and its gradients for an upstream gradient dy, in float64."""

    def run(function, arrays, make_dy):
        tensors = [None if a is None else torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in arrays]
        y = function(*tensors)
        dy = make_dy(tuple(y.shape))
        y.backward(torch.tensor(dy))
        gradients = [None if t is None else np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in tensors]
        return y.detach().numpy(), dy, gradients

    return run


@pytest.fixture(params=["reference", "functional"])
def implementation(request):
    """Run the test on the loops and on the real thing."""
    return importlib.import_module({"reference": "xpcnn.functional.reference"}.get(request.param, "xpcnn.functional"))
