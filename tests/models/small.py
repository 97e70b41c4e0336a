"""Every network for tests of whatever takes one: the large ones in a small variant, each with ten logits an image.

On a device they are thin as well: it computes many channels as it does few, where NumPy chooses its ways by them.
"""

import inspect
import sys

import pytest

from xpcnn import models, nn
from xpcnn.backend import get_backend


class _Shapes(dict):
    """Shapes of one image; of a network that is not named, the one that it is built to by default."""

    def __missing__(self, name):
        options = inspect.signature(getattr(models, name)).parameters
        return options["in_channels"].default, *[options["image_size"].default] * 2


SHAPES = _Shapes({
    "lenet5": (1, 32, 32),
    "deep3": (1, 28, 28),
    "tiny": (1, 28, 28),
    "conv8": (1, 28, 28),
    "three-layer": (3, 32, 32),
    "resnet20": (3, 32, 32),
    "vgg8": (3, 32, 32),
    "resnet32": (3, 12, 12),
    "resnet56": (3, 12, 12),
    "vgg11": (3, 32, 32),
    "mobilenet": (3, 32, 32),
    "densenet40": (3, 12, 16),
    "unet": (1, 16, 24),
})  # fmt: skip
OPTIONS = {
    "mobilenet": {"width": 1 / 4},
    "densenet40": {"depth": 10},
    "unet": {"width": 8, "depth": 3, "num_classes": 10},
}
THIN = {  # filters of the stages of networks that have no option for them
    "resnet": (4, 8, 16),
    "vgg8": (8, 16, 32),
    "vgg11": ((8,), (16,), (32, 32), (64, 64), (64, 64)),
}


def thin(name, **options):
    """Return what `models.create` does; on a device its stages have fewer filters."""
    with pytest.MonkeyPatch.context() as patch:
        for module, stages in THIN.items() if get_backend().name != "numpy" else ():
            patch.setattr(sys.modules[f"xpcnn.models.{module}"], "STAGES", stages)
        return models.create(name, **options)


def create(name):
    """Return the network; of a class for each pixel, the mean over the image."""
    net = thin(name, **OPTIONS.get(name, {}))
    return net.extend([nn.GlobalAvgPool2d(), nn.Flatten()]) if name == "unet" else net
