"""Networks by name: the five of the source notebooks, and published ones; each is built to any data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.models.conv4 import conv4
from xpcnn.models.conv8 import conv8
from xpcnn.models.deep3 import deep3
from xpcnn.models.densenet40 import densenet40
from xpcnn.models.lenet5 import lenet5
from xpcnn.models.mobilenet import mobilenet
from xpcnn.models.resnet import resnet20, resnet32, resnet56
from xpcnn.models.three_layer import three_layer
from xpcnn.models.tiny import tiny
from xpcnn.models.unet import unet
from xpcnn.models.vgg8 import vgg8
from xpcnn.models.vgg11 import vgg11
from xpcnn.nn import Sequential

__all__ = [
    "conv4",
    "conv8",
    "create",
    "deep3",
    "densenet40",
    "lenet5",
    "mobilenet",
    "names",
    "resnet20",
    "resnet32",
    "resnet56",
    "three_layer",
    "tiny",
    "unet",
    "vgg8",
    "vgg11",
]

_MODELS: dict[str, Callable[..., Sequential]] = {
    "lenet5": lenet5,
    "deep3": deep3,
    "tiny": tiny,
    "conv8": conv8,
    "three-layer": three_layer,
    "resnet20": resnet20,
    "vgg8": vgg8,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "vgg11": vgg11,
    "mobilenet": mobilenet,
    "densenet40": densenet40,
    "unet": unet,
    "conv4": conv4,
}


def names() -> list[str]:
    """Return the names that `create` takes.

    Examples
    --------
    >>> from xpcnn import models
    >>> "lenet5" in models.names()
    True
    """
    return list(_MODELS)


def create(name: str, **options: Any) -> Sequential:
    """Return a new network on the active backend.

    Parameters
    ----------
    name : str
        One of `names()`.
    **options
        Arguments of the function of that name in this package. All take `num_classes`, `in_channels` and `image_size`,
        an integer or (height, width): those of the data.

    Raises
    ------
    ConfigError
        The name or an option is unknown.
    ShapeError
        The network cannot be built to images of that size.

    Examples
    --------
    >>> from xpcnn import models
    >>> model = models.create("resnet20", num_classes=5)
    >>> model(np.zeros((1, 3, 32, 32), "float32")).shape
    (1, 5)
    """
    if not isinstance(name, str) or name not in _MODELS:
        raise ConfigError(f"name: expected one of {', '.join(_MODELS)}, got {name!r:.60}")
    known = inspect.signature(_MODELS[name]).parameters
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise ConfigError(f"options: {name} takes {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    return _MODELS[name](**options)
