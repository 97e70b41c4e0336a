"""The network that a `CNNClassifier` trains: by name, made by a function, or a copy of one that is there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from xpcnn import models
from xpcnn.backend import get_backend
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.nn import Module
from xpcnn.training.evaluation import evaluating

_SIDES = (28, 32)  # pixels: what networks of fixed inputs take; smaller images are put into their middle


def create(
    wanted: Any, image_shape: Sequence[int], num_classes: int, transform: Callable[[Any], Any] | None
) -> tuple[Module, tuple[int, int]]:
    """Return a new network for images and classes, and the (height, width) that it takes.

    Parameters
    ----------
    wanted : str, Module or callable
        As `CNNClassifier` takes it.
    image_shape : (H, W) or (C, H, W)
        Of one image as stored.
    num_classes : int
    transform : callable or None
        The user's own brings images to the network himself: nothing is padded then.

    Raises
    ------
    ConfigError
        There is no such network, what was made is none, or tells apart another number of classes.
    ShapeError
        It takes no images of this size.
    """
    shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
    if isinstance(wanted, str) and wanted not in models.names():
        raise ConfigError(f"model: expected one of {', '.join(models.names())}, a Module or a function, got {wanted!r}")
    if not isinstance(wanted, (str, Module)) and not callable(wanted):
        raise ConfigError(f"model: expected a name, a Module or a function, got {wanted!r:.60}")
    sides = [side for side in _SIDES if transform is None and side >= max(shape[1:])]
    if transform is not None:
        shape = tuple(transform(get_backend().zeros((1, *image_shape), "float32")).shape[1:])
    error: ShapeError | None = None
    if len(shape) != 3:
        raise ShapeError(f"image_transform: expected it to return (N, C, H, W), got (N, {', '.join(map(str, shape))})")
    for height, width in (shape[1:], *((side, side) for side in sides)):
        try:
            taken = shape[0], height, width
            return _checked(_make(wanted, taken, num_classes), taken, num_classes), (height, width)
        except ShapeError as reason:
            error = error or reason
    raise ShapeError(
        f"model: {wanted if isinstance(wanted, str) else 'it'} takes no images of shape {shape}; say image_shape=, "
        f"resize the images, or take another network ({error})"
    ) from error


def _make(wanted: Any, shape: tuple[int, ...], num_classes: int) -> Any:
    backend = get_backend()
    if isinstance(wanted, Module):
        return copy.deepcopy(wanted).to(backend.name)
    function = getattr(models, wanted.replace("-", "_")) if isinstance(wanted, str) else wanted
    offered = {"num_classes": num_classes, "in_channels": shape[0], "image_size": shape[1:], "input_shape": shape}
    known = {name: value for name, value in offered.items() if name in inspect.signature(function).parameters}
    return function(**known) if known else function(shape, num_classes)


def _checked(model: Any, shape: tuple[int, ...], num_classes: int) -> Module:
    if not isinstance(model, Module):
        raise ConfigError(f"model: expected a function that returns an nn.Module, got {type(model).__name__}")
    if not model.parameters():
        raise ConfigError("model: expected a network with parameters, got one without")
    dtype = next(iter(model.parameters())).data.dtype
    with evaluating(model):
        found = tuple(model(model.backend.zeros((1, *shape), dtype)).shape)
    if found != (1, num_classes):
        raise ConfigError(f"model: expected logits of {num_classes} classes, as y has, got an output of shape {found}")
    return model
