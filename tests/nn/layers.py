"""One of everything in `nn`: how to make it, and an input that it takes."""

import numpy as np

from tests.functional.strategies import distinct
from xpcnn import nn
from xpcnn.nn.caches import GONE

IMAGES, FEATURES = (3, 4, 6, 5), (5, 4)

LAYERS = {
    "Conv2d": (lambda: nn.Conv2d(4, 5, 3), IMAGES),
    "Conv2d without bias": (lambda: nn.Conv2d(4, 2, (2, 3), bias=False), IMAGES),
    "Conv2d padded": (lambda: nn.Conv2d(4, 3, 3, stride=(2, 1), padding=((1, 0), (2, 1))), IMAGES),
    "Conv2d same": (lambda: nn.Conv2d(4, 3, (3, 2), stride=2, padding="same"), IMAGES),
    "Conv2d dilated": (lambda: nn.Conv2d(4, 3, 2, dilation=(2, 3)), IMAGES),
    "Conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), IMAGES),
    "Conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGES),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 3), IMAGES),
    "ConvTranspose2d strided": (
        lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 3), padding=1, output_padding=(1, 0), groups=2, bias=False),
        IMAGES,
    ),
    "ConvTranspose2d dilated": (lambda: nn.ConvTranspose2d(4, 2, 2, dilation=(1, 2)), IMAGES),
    "Linear": (lambda: nn.Linear(4, 3), FEATURES),
    "Linear without bias": (lambda: nn.Linear(4, 3, bias=False), FEATURES),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), IMAGES),
    "MaxPool2d overlapping": (lambda: nn.MaxPool2d(3, stride=1, padding=1), IMAGES),
    "MaxPool2d ceil": (lambda: nn.MaxPool2d((2, 3), stride=2, ceil_mode=True), IMAGES),
    "MaxPool2d dilated": (lambda: nn.MaxPool2d(2, stride=1, dilation=2), IMAGES),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), IMAGES),
    "AvgPool2d overlapping": (lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), IMAGES),
    "AvgPool2d of pixels": (lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), IMAGES),
    "GlobalAvgPool2d": (nn.GlobalAvgPool2d, IMAGES),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), FEATURES),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGES),
    "BatchNorm1d in evaluation": (lambda: nn.BatchNorm1d(4).eval(), FEATURES),
    "BatchNorm2d in evaluation": (lambda: nn.BatchNorm2d(4).eval(), IMAGES),
    "LayerNorm": (lambda: nn.LayerNorm(4), FEATURES),
    "LayerNorm of images": (lambda: nn.LayerNorm((4, 6, 5)), IMAGES),
    "LayerNorm of rows": (lambda: nn.LayerNorm(5, bias=False), IMAGES),
    "LayerNorm alone": (lambda: nn.LayerNorm((6, 5), elementwise_affine=False), IMAGES),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGES),
    "GroupNorm of features": (lambda: nn.GroupNorm(1, 4), FEATURES),
    "GroupNorm of instances": (lambda: nn.GroupNorm(4, 4, affine=False), IMAGES),
    "Dropout": (lambda: nn.Dropout(0.4), IMAGES),
    "Dropout of features": (lambda: nn.Dropout(0.4), FEATURES),
    "Dropout in evaluation": (lambda: nn.Dropout(0.4).eval(), IMAGES),
    "ReLU": (nn.ReLU, IMAGES),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), IMAGES),
    "Sigmoid": (nn.Sigmoid, IMAGES),
    "Tanh": (nn.Tanh, FEATURES),
    "GELU": (nn.GELU, IMAGES),
    "SiLU": (nn.SiLU, IMAGES),
    "Hardswish": (nn.Hardswish, IMAGES),
    "ELU": (lambda: nn.ELU(0.7), IMAGES),
    "Dropout2d": (lambda: nn.Dropout2d(0.4), IMAGES),
    "Dropout2d in evaluation": (lambda: nn.Dropout2d(0.4).eval(), IMAGES),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((4, 3)), IMAGES),
    "AdaptiveAvgPool2d of parts": (lambda: nn.AdaptiveAvgPool2d((3, None)), IMAGES),
    "AdaptiveAvgPool2d to one": (lambda: nn.AdaptiveAvgPool2d(1), IMAGES),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), IMAGES),
    "Upsample bilinear": (lambda: nn.Upsample((9, 4), mode="bilinear"), IMAGES),
    "Upsample between corners": (
        lambda: nn.Upsample(scale_factor=(1.5, 3), mode="bilinear", align_corners=True),
        IMAGES,
    ),
    "Identity": (nn.Identity, IMAGES),
    "Concat": (lambda: nn.Concat(nn.Conv2d(4, 3, 3, padding=1), nn.Identity(), nn.Tanh()), IMAGES),
    "ChannelPad": (lambda: nn.ChannelPad(1, 2), IMAGES),
    "Concat of one": (lambda: nn.Concat(nn.ReLU(), dim=2), IMAGES),
    "Concat of features": (lambda: nn.Concat(nn.Linear(4, 3), nn.Linear(4, 2)), FEATURES),
    "Softmax": (nn.Softmax, FEATURES),
    "Softmax over channels": (lambda: nn.Softmax(1), IMAGES),
    "Flatten": (nn.Flatten, IMAGES),
    "Flatten features": (nn.Flatten, FEATURES),
    "Residual": (lambda: nn.Residual(nn.Conv2d(4, 4, 3, padding=1)), IMAGES),
    "Residual with shortcut": (
        lambda: nn.Residual(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(4, 6, 1, stride=2)),
        IMAGES,
    ),
    "Sequential": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        ),
        IMAGES,
    ),
    "Sequential of a chain": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.GELU()), IMAGES),
    "Sequential of nothing": (nn.Sequential, IMAGES),
}


def kept_by(model):
    """Return how many caches wait for a backward in a model."""
    return sum(entry.cache is not GONE for module in model.modules() for entry in module._kept)


def make(name, rng, dtype="float64"):
    """Return a new layer on the active backend and an input for it on the host."""
    layer, shape = LAYERS[name]
    return layer(), distinct(rng, shape, dtype)


def in_float64(module):
    """Turn every parameter and floating buffer of a new module into float64."""
    for parameter in module.parameters():
        type(parameter).__init__(parameter, parameter.data.astype(np.float64), parameter.name)
    for each in module.modules():
        for name in each._buffers:
            array = getattr(each, name)
            if array.dtype.kind == "f":
                setattr(each, name, array.astype(np.float64))
    return module
