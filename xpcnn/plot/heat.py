"""Images beside what a network's answer comes from: `explain`'s maps laid over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn import explain
from xpcnn.backend import backend_of
from xpcnn.errors import ShapeError
from xpcnn.nn import Module
from xpcnn.plot.figure import INK, Canvas, PathLike, finish, host, mosaic

_MOST = 8  # images side by side
_TILE = 1.3  # inches of a tile
_SHARE = 0.6  # of the heat in the mixture


def saliency(model: Module, images: Any, path: PathLike | None = None, *, target: Any = None, ax: Any = None) -> Any:
    """Draw images and, below each, how much its pixels move the class's score (`explain.saliency`).

    Parameters
    ----------
    model : Module
        Gives scores (N, K).
    images : (N, C, H, W) or (C, H, W) array
        As the model takes them, C of 1 or 3; the first 8 are drawn.
    path : path, optional
        Of a PNG.
    target : int, or (N,) integers, optional
        The class; by default the one with the highest score, of each image.
    ax : matplotlib.axes.Axes, optional
        Into which the whole picture is fitted, in the place of a figure of its own.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ShapeError, DTypeError, DataError
        As `explain.saliency`; the file cannot be written.
    ConfigError
        `ax` is no axes, or matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    >>> images = np.random.default_rng(0).random((2, 1, 8, 8), "float32")
    >>> figure = plot.saliency(model, images)
    >>> type(figure).__name__
    'Figure'
    """
    images, target = _first(images, target)
    heat = explain.saliency(model, images, target)
    return _draw(images, heat, "what moves the score, saliency", path, ax)


def grad_cam(
    model: Module,
    images: Any,
    path: PathLike | None = None,
    *,
    target: Any = None,
    layer: Module | str | None = None,
    ax: Any = None,
) -> Any:
    """Draw images and, below each, where a layer sees what speaks for the class (`explain.grad_cam`).

    Parameters
    ----------
    model : Module
        Gives scores (N, K).
    images : (N, C, H, W) or (C, H, W) array
        As the model takes them, C of 1 or 3; the first 8 are drawn.
    path : path, optional
        Of a PNG.
    target : int, or (N,) integers, optional
        The class; by default the one with the highest score, of each image.
    layer : Module or str, optional
        The layer or its path; by default the last `Conv2d`.
    ax : matplotlib.axes.Axes, optional
        Into which the whole picture is fitted, in the place of a figure of its own.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ShapeError, DTypeError, DataError
        As `explain.grad_cam`; the file cannot be written.
    ConfigError
        There is no such layer, `ax` is no axes, or matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    >>> images = np.random.default_rng(0).random((2, 1, 8, 8), "float32")
    >>> figure = plot.grad_cam(model, images)
    >>> type(figure).__name__
    'Figure'
    """
    images, target = _first(images, target)
    heat = explain.grad_cam(model, images, target, layer=layer)
    return _draw(images, heat, "what speaks for the class, Grad-CAM", path, ax)


def _first(images: Any, target: Any) -> tuple[Any, Any]:
    """Return as many images as are drawn, with their classes."""
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) not in (3, 4) or shape[-3] not in (1, 3):
        raise ShapeError(f"images: expected (N, C, H, W) or (C, H, W) with C of 1 or 3, got {shape}")
    if len(shape) == 3:
        images = images[None]  # (1, C, H, W)
    if hasattr(target, "__getitem__") and getattr(target, "ndim", None) != 0:
        target = target[:_MOST]
    return images[:_MOST], target


def _draw(images: Any, heat: Any, heading: str, path: PathLike | None, ax: Any) -> Any:
    pictures = host("images", images).astype(np.float32).transpose(0, 2, 3, 1)  # (N, H, W, C)
    low, high = pictures.min(axis=(1, 2, 3), keepdims=True), pictures.max(axis=(1, 2, 3), keepdims=True)
    pictures = np.broadcast_to((pictures - low) / np.maximum(high - low, 1e-12), (*pictures.shape[:3], 3))
    heat = np.asarray(backend_of(heat).to_numpy(heat), np.float32)  # (N, h, w)
    heat = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)
    count, height, width = pictures.shape[:3]
    gap, columns = max(1, width // 14), count
    canvas = Canvas(columns * _TILE + 0.3, 2 * _TILE * height / width + 0.6, ax)
    from matplotlib import colormaps  # after the canvas, which says what is missing

    large = np.stack([_enlarged(each, height, width) for each in heat])
    mixed = (1 - _SHARE) * pictures.mean(axis=3, keepdims=True) + _SHARE * colormaps["inferno"](large)[..., :3]
    sheet = mosaic(np.concatenate([pictures, mixed]).astype(np.float32), columns, gap, 1.0)
    canvas.text(0.15, canvas.height - 0.27, heading, color=INK, fontsize=10)
    wide = columns * _TILE
    tall = min(canvas.height - 0.5, wide * sheet.shape[0] / sheet.shape[1])
    canvas.image(0.15, 0.1, wide, tall, sheet, vmin=0.0, vmax=1.0)
    return finish(canvas.figure, path)


def _enlarged(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a map (h, w) as (height, width), in straight lines between the middles of its cells."""
    rows = (np.arange(height) + 0.5) * heat.shape[0] / height - 0.5
    columns = (np.arange(width) + 0.5) * heat.shape[1] / width - 0.5
    across = np.stack([np.interp(columns, np.arange(heat.shape[1]), row) for row in heat])  # (h, width)
    return np.stack([np.interp(rows, np.arange(heat.shape[0]), column) for column in across.T], axis=1)
