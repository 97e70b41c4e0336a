"""Every layer, loss and update of the library, forward and backward, on every backend that answers here.

A call is finished when the device is: each timed function ends with the backend's `synchronize`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peers import labels, normal

import xpcnn
import xpcnn.functional as F
from xpcnn import nn, optim

IMAGES, FEATURES, CLASSES, ROUNDS = (32, 16, 28, 28), (128, 256), 10, 20

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Conv2d 3x3": (lambda: nn.Conv2d(16, 32, 3, padding=1), IMAGES),
    "Conv2d 3x3 stride 2": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), IMAGES),
    "Conv2d 3x3 groups 4": (lambda: nn.Conv2d(16, 32, 3, padding=1, groups=4), IMAGES),
    "Conv2d 3x3 dilation 2": (lambda: nn.Conv2d(16, 32, 3, padding=2, dilation=2), IMAGES),
    "Conv2d 1x1": (lambda: nn.Conv2d(16, 32, 1), IMAGES),
    "Conv2d 5x5": (lambda: nn.Conv2d(16, 32, 5), IMAGES),
    "Linear": (lambda: nn.Linear(256, 128), FEATURES),
    "MaxPool2d 2": (lambda: nn.MaxPool2d(2), IMAGES),
    "MaxPool2d 3 stride 2": (lambda: nn.MaxPool2d(3, stride=2, padding=1), IMAGES),
    "AvgPool2d 2": (lambda: nn.AvgPool2d(2), IMAGES),
    "GlobalAvgPool2d": (nn.GlobalAvgPool2d, IMAGES),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(16), IMAGES),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(256), FEATURES),
    "Dropout": (lambda: nn.Dropout(0.5), IMAGES),
    "ReLU": (nn.ReLU, IMAGES),
    "LeakyReLU": (nn.LeakyReLU, IMAGES),
    "Sigmoid": (nn.Sigmoid, IMAGES),
    "Tanh": (nn.Tanh, IMAGES),
    "GELU": (nn.GELU, IMAGES),
    "ConvTranspose2d 2 stride 2": (lambda: nn.ConvTranspose2d(16, 8, 2, stride=2), IMAGES),
    "LayerNorm": (lambda: nn.LayerNorm(256), FEATURES),
    "LayerNorm of images": (lambda: nn.LayerNorm((16, 28, 28)), IMAGES),
    "GroupNorm": (lambda: nn.GroupNorm(4, 16), IMAGES),
    "SiLU": (nn.SiLU, IMAGES),
    "Hardswish": (nn.Hardswish, IMAGES),
    "ELU": (nn.ELU, IMAGES),
    "Dropout2d": (nn.Dropout2d, IMAGES),
    "AdaptiveAvgPool2d 7": (lambda: nn.AdaptiveAvgPool2d(7), IMAGES),
    "AdaptiveAvgPool2d 5": (lambda: nn.AdaptiveAvgPool2d(5), IMAGES),
    "Upsample 2 nearest": (lambda: nn.Upsample(scale_factor=2), IMAGES),
    "Upsample 2 bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGES),
    "ChannelPad": (lambda: nn.ChannelPad(8, 8), IMAGES),
    "Concat": (lambda: nn.Concat(nn.Identity(), nn.Identity()), IMAGES),
    "Softmax": (lambda: nn.Softmax(-1), FEATURES),
    "Flatten": (nn.Flatten, IMAGES),
}
OPTIMISERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda parameters: optim.SGD(parameters, 0.01),
    "SGD momentum": lambda parameters: optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=1e-4),
    "Adam": lambda parameters: optim.Adam(parameters, 1e-3),
    "AdamW": lambda parameters: optim.AdamW(parameters, 1e-3),
    "RMSprop": lambda parameters: optim.RMSprop(parameters, 1e-3),
    "Adagrad": lambda parameters: optim.Adagrad(parameters, 1e-3),
}


def on(backend: Any, array: np.ndarray) -> Any:
    """The array on the backend, the batch as its fastest axis."""
    moved = backend.asarray(np.ascontiguousarray(np.moveaxis(array, 0, -1)))
    return moved.transpose(array.ndim - 1, *range(array.ndim - 1))


def finished(backend: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        result = function(*arguments)
        backend.synchronize()
        return result

    return call


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_forward(layer: str, backend: Any, timed: Callable[..., Any]) -> None:
    make, shape = LAYERS[layer]
    module, x = make(), on(backend, normal(0, *shape))
    module.train()

    def forward() -> Any:
        with xpcnn.no_grad():
            return module(x)

    assert timed(f"{layer} forward", backend.name, finished(backend, forward), tuple, ROUNDS).shape[0] == shape[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_backward(layer: str, backend: Any, timed: Callable[..., Any]) -> None:
    make, shape = LAYERS[layer]
    module, x = make(), on(backend, normal(0, *shape))
    module.train()
    with xpcnn.no_grad():
        dy = on(backend, normal(1, *module(x).shape))

    def setup() -> tuple[Any, ...]:
        module(x)  # each backward consumes what one forward kept
        backend.synchronize()
        return (dy,)

    assert timed(f"{layer} backward", backend.name, finished(backend, module.backward), setup, ROUNDS).shape == shape


@pytest.mark.parametrize("operation", ["softmax", "log_softmax", "cross_entropy", "im2col", "col2im"])
def test_function(operation: str, backend: Any, timed: Callable[..., Any]) -> None:
    logits = on(backend, normal(0, 128, CLASSES))
    target = backend.asarray(labels(0, 128))
    x = on(backend, normal(0, *IMAGES))
    functions = {
        "softmax": lambda: F.softmax(logits),
        "log_softmax": lambda: F.log_softmax(logits),
        "cross_entropy": lambda: F.cross_entropy(logits, target),
        "im2col": lambda: F.im2col(x, 3, padding=1),
        "col2im": lambda: F.col2im(columns, IMAGES, 3, padding=1),
    }
    columns = F.im2col(x, 3, padding=1) if operation == "col2im" else None
    timed(operation, backend.name, finished(backend, functions[operation]), tuple, ROUNDS)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_update(optimiser: str, backend: Any, timed: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 26 * 26, CLASSES))
    criterion = nn.CrossEntropyLoss()
    criterion(model(on(backend, normal(0, *IMAGES))), backend.asarray(labels(0, IMAGES[0])))
    model.backward(criterion.backward())
    optimizer = OPTIMISERS[optimiser](model.parameters())
    timed(f"update {optimiser}", backend.name, finished(backend, optimizer.step), tuple, ROUNDS)
