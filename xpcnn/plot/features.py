"""What a network has learned to look at: its filters, and what they make of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.backend import backend_of
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.nn import Conv2d, Module, Parameter, no_grad
from xpcnn.nn.contexts import trace
from xpcnn.nn.precision import call
from xpcnn.plot.figure import INK, Canvas, PathLike, finish, host, mosaic

_WIDTH = 8.4  # inches
_MOST = 64  # tiles of one layer; more would be too small to see
_CHANNELS = 16  # of a filter, side by side


def filters(weight: Any, path: PathLike | None = None, *, ax: Any = None) -> Any:
    """Draw the filters of a convolution, grey: 0 is the middle, black and white the largest weight of each filter.

    Parameters
    ----------
    weight : Module, Parameter or array
        A network (its first convolution is drawn), a Conv2d, or weights (F, C, KH, KW). With 3 channels a filter is
        drawn in colour, with another number its channels, 16 at most, stand side by side. As many whole filters are
        drawn as there is room for; the heading says where some are left out.
    path : path, optional
        Of a PNG.
    ax : matplotlib.axes.Axes, optional
        Into which the whole picture is fitted, in the place of a figure of its own.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ShapeError, DTypeError, DataError
        The weights have another shape, or the file cannot be written.
    ConfigError
        The network has no convolution, or matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> figure = plot.filters(nn.Conv2d(3, 8, 5))
    >>> type(figure).__name__
    'Figure'
    """
    if isinstance(weight, Module):
        layers = [layer for layer in weight.modules() if isinstance(layer, Conv2d)]
        if not layers:
            raise ConfigError(f"weight: expected a module with a Conv2d in it, got {type(weight).__name__}")
        weight = layers[0].weight
    if isinstance(weight, Parameter):
        weight = weight.data
    values = host("weight", weight).astype(np.float32)
    if values.ndim != 4 or not values.size:
        raise ShapeError(f"weight: expected (F, C, KH, KW), got {values.shape}")
    count, channels = values.shape[:2]
    largest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * values / np.maximum(largest, 1e-12)
    heading = f"{count} filter{'s' * (count > 1)} of {channels}x{values.shape[2]}x{values.shape[3]}"
    across = 1 if channels == 3 else min(channels, _CHANNELS)  # tiles of one filter
    columns = 8 if across == 1 else across
    shown = min(count, _MOST // across)
    if shown < count:
        heading += f", the first {shown}"
    if channels != 3 and across < channels:
        heading += f", of each the first {across} channels"
    tiles = tiles[:shown]
    if channels == 3:
        tiles = tiles.transpose(0, 2, 3, 1)  # (F, KH, KW, 3)
    else:
        tiles = tiles[:, :across].reshape(-1, *values.shape[2:])  # (F * C, KH, KW)
    return _sheets([(heading, tiles, columns)], path, ax)


def feature_maps(model: Module, image: Any, path: PathLike | None = None, *, ax: Any = None) -> Any:
    """Draw an image and what every pooling layer makes of it (every convolution, where there is no pooling).

    Parameters
    ----------
    model : Module
        A network; it is run in eval mode and left as it was.
    image : array
        (C, H, W) or (1, C, H, W), as the network takes it.
    path : path, optional
        Of a PNG.
    ax : matplotlib.axes.Axes, optional
        Into which the whole picture is fitted, in the place of a figure of its own.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ShapeError, DTypeError, DataError
        The image does not fit the network, or the file cannot be written.
    ConfigError
        The network has neither pooling nor convolution, or matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    >>> figure = plot.feature_maps(model, np.zeros((1, 8, 8), "float32"))
    >>> type(figure).__name__
    'Figure'
    """
    if getattr(image, "ndim", 0) not in (3, 4) or (image.ndim == 4 and image.shape[0] != 1):
        raise ShapeError(f"image: expected (C, H, W) or (1, C, H, W), got {getattr(image, 'shape', type(image))}")
    x = image if image.ndim == 4 else image[None]  # (1, C, H, W)
    backend = model.backend
    x = x if backend.owns(x) else backend.asarray(host("image", x))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with no_grad(), trace() as calls:
            call(model, x)
    finally:
        for module, training in modes:
            module.training = training
    paths = {id(module): name for name, module in model.named_modules()}
    calls = [call for call in calls if not list(call[0].children()) and call[2].ndim == 4]
    chosen = [call for call in calls if "Pool" in type(call[0]).__name__]
    chosen = chosen or [call for call in calls if isinstance(call[0], Conv2d)]
    if not chosen:
        raise ConfigError("model: expected a network with pooling or convolution, got none of them")
    sheets = [("image", _tiles(x), 8)]
    for module, _, y in chosen:
        shape = "x".join(map(str, y.shape[1:]))
        name = f"after layer {paths.get(id(module), '?')}, {type(module).__name__}: {shape}"
        if y.shape[1] > _MOST:
            name += f", the first {_MOST} channels"
        sheets.append((name, _tiles(y), 8 if y.shape[1] <= 24 else 16))
    return _sheets(sheets, path, ax)


def _tiles(y: Any) -> np.ndarray:
    """Return the channels of one image, (C, H, W), each from its lowest to its highest value."""
    values = np.array(backend_of(y).to_numpy(y)[0, :_MOST], np.float32)  # (C, H, W)
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    return np.asarray((values - low) / np.maximum(high - low, 1e-12))


def _sheets(sheets: list[tuple[str, np.ndarray, int]], path: PathLike | None, ax: Any) -> Any:
    """Draw one mosaic below the other, each under its heading."""
    drawn = []
    for heading, tiles, columns in sheets:
        gap = max(1, tiles.shape[2] // 14)
        sheet = mosaic(tiles, columns, gap, 1.0)
        drawn.append((heading, sheet, _WIDTH * sheet.shape[0] / sheet.shape[1]))
    height = sum(0.4 + each for _, _, each in drawn) + 0.15
    width = _WIDTH + 0.3
    canvas = Canvas(width, height, ax)
    top = height
    for heading, sheet, tall in drawn:
        canvas.text(0.15, top - 0.27, heading, color=INK, fontsize=10)
        top -= 0.4 + tall
        canvas.image(0.15, top, _WIDTH, tall, sheet, cmap="gray", vmin=0.0, vmax=1.0)
    return finish(canvas.figure, path)
