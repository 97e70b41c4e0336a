"""Networks by name: the five of the source notebooks, and two larger ones of the benchmarks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.models.conv8 import conv8
from xpcnn.models.deep3 import deep3
from xpcnn.models.lenet5 import lenet5
from xpcnn.models.mobilenet import mobilenet
from xpcnn.models.resnet20 import resnet20
from xpcnn.models.three_layer import three_layer
from xpcnn.models.tiny import tiny
from xpcnn.models.vgg8 import vgg8
from xpcnn.nn import Sequential

__all__ = ["conv8", "create", "deep3", "lenet5", "mobilenet", "names", "resnet20", "three_layer", "tiny", "vgg8"]

_MODELS: dict[str, Callable[..., Sequential]] = {
    "lenet5": lenet5,
    "deep3": deep3,
    "tiny": tiny,
    "conv8": conv8,
    "three-layer": three_layer,
    "resnet20": resnet20,
    "vgg8": vgg8,
    "mobilenet": mobilenet,
}


def names() -> list[str]:
    """Return the names that `create` takes."""
    return list(_MODELS)


def create(name: str, **options: Any) -> Sequential:
    """Return a new network on the active backend.

    Parameters
    ----------
    name : str
        One of `names()`.
    **options
        Arguments of the function of that name in this package.

    Raises
    ------
    ConfigError
        The name or an option is unknown.
    """
    if name not in _MODELS:
        raise ConfigError(f"name: expected one of {', '.join(_MODELS)}, got {name!r}")
    known = inspect.signature(_MODELS[name]).parameters
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise ConfigError(f"options: {name} takes {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    return _MODELS[name](**options)
