"""A grid of images with what the network says of them: the surest mistakes, and some that it got right."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpcnn.errors import DataError, ShapeError
from xpcnn.plot.figure import (
    INK,
    WRONG,
    Canvas,
    PathLike,
    class_names,
    finish,
    host,
    mosaic,
)

_COLUMNS, _TILE = 8, 1.05  # tiles in a row, and their width in inches
_RIGHT_ROWS, _WRONG_ROWS = 2, 2
_LINE = 0.17  # inches of a line of text above a tile
_HEAD = 0.42  # inches above each of the two halves
_ROUNDING = 1e-2  # of a sum of probabilities in float16


def predictions(
    images: Any,
    labels: Any,
    probabilities: Any,
    path: PathLike | None = None,
    *,
    classes: Any = None,
    ax: Any = None,
) -> Any:
    """Draw digits that the network got wrong (the surest first) and digits that it got right (one of each class).

    Parameters
    ----------
    images : array
        (N, H, W), (N, 1, H, W), (N, 3, H, W) or (N, H, W, 3), in any range.
    labels : (N,) integers, or (N, K) one-hot
        What they show.
    probabilities : (N, K) array
        What the network says: softmax of its logits, each row 0 or more and 1 in sum.
    path : path, optional
        Of a PNG.
    classes : sequence of str, optional
        What the classes are called; their numbers by default.
    ax : matplotlib.axes.Axes, optional
        Into which the whole picture is fitted, in the place of a figure of its own.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ShapeError, DTypeError
        The arrays do not fit each other.
    DataError, ConfigError
        A row is none of probabilities; the file cannot be written; matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> probabilities = np.full((4, 2), 0.5, "float32")
    >>> figure = plot.predictions(np.zeros((4, 28, 28), "uint8"), [0, 1, 0, 1], probabilities)
    >>> type(figure).__name__
    'Figure'
    """
    shares = host("probabilities", probabilities)
    truth = host("labels", labels)
    truth = truth.argmax(axis=1) if truth.ndim == 2 else truth
    pictures = _pictures(host("images", images))
    if shares.ndim != 2 or not len(shares) or not len(shares) == len(truth) == len(pictures):
        raise ShapeError(
            f"probabilities: expected (N, K), with one row for each of the {len(pictures)} images and {len(truth)} "
            f"labels, got {shares.shape}"
        )
    sums = shares.sum(axis=1, dtype=np.float64)
    wrong_rows = ~((shares >= 0).all(axis=1) & (abs(sums - 1) <= _ROUNDING))  # nan is wrong too
    if wrong_rows.any():
        row = int(wrong_rows.argmax())
        raise DataError(
            f"probabilities: expected rows of 0 or more that sum to 1, got values from {shares[row].min():.4g} to "
            f"{shares[row].max():.4g} with the sum {sums[row]:.4g} in row {row}; give functional.softmax(logits)"
        )
    names = class_names(classes, max(shares.shape[1], int(truth.max()) + 1))
    said = shares.argmax(axis=1)
    sure = shares.max(axis=1)
    wrong = np.flatnonzero(said != truth)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][: _WRONG_ROWS * _COLUMNS]
    good = _one_of_each(np.flatnonzero(said == truth), truth)[: _RIGHT_ROWS * _COLUMNS]

    halves = []
    if len(worst):
        halves.append((f"wrong: {len(wrong):,} of {len(truth):,}, the surest first", worst, WRONG, 2))
    if len(good):
        halves.append((f"right: {len(truth) - len(wrong):,} of {len(truth):,}", good, INK, 1))
    sheets = [_sheet(_shown(pictures[chosen]), lines) for _, chosen, _, lines in halves]
    width = _COLUMNS * _TILE + 0.3
    height = sum(_HEAD + tall for _, tall, _, _ in sheets) + 0.12
    canvas = Canvas(width, height, ax)
    top = height
    for (heading, chosen, colour, lines), (sheet, tall, step, head) in zip(halves, sheets, strict=True):
        canvas.text(0.15, top - 0.27, heading, color=colour, fontsize=11)
        top -= _HEAD + tall
        axes = canvas.image(0.15, top, _COLUMNS * _TILE, tall, sheet, cmap="gray", vmin=0.0, vmax=1.0)
        for k, i in enumerate(chosen):
            text = f"{names[said[i]]}  {_percent(sure[i])}" + (f"\nis {names[truth[i]]}" if lines == 2 else "")
            x, y = k % _COLUMNS * step[1], k // _COLUMNS * step[0] + head - 1.5
            axes.text(x, y, text, color=colour, fontsize=8.5, va="bottom", linespacing=1.05)
    return finish(canvas.figure, path)


def _sheet(pictures: np.ndarray, lines: int) -> tuple[np.ndarray, float, tuple[int, int], int]:
    """Return all tiles as one image (axes for each would cost ten times as much), and how they lie in it.

    The other three are its height in inches, the pixels from tile to tile, and those above a tile for its text.
    """
    size, side = pictures.shape[1:3]
    gap = max(2, side // 14)
    per_inch = (_COLUMNS * (side + gap) - gap) / (_COLUMNS * _TILE)
    head = round(per_inch * (_LINE * lines + 0.05))
    tiles = np.ones((len(pictures), size + head, side, *pictures.shape[3:]), np.float32)
    tiles[:, head:] = pictures
    sheet = mosaic(tiles, _COLUMNS, gap, 1.0)
    return sheet, sheet.shape[0] / per_inch, (size + head + gap, side + gap), head


def _percent(share: float) -> str:
    """Return a probability without calling anything certain."""
    return ">99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


def _one_of_each(right: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return indices that go through the classes in turn, as far as there are any."""
    turns = np.zeros(len(right), np.int64)
    for label in np.unique(truth[right]):
        members = truth[right] == label
        turns[members] = np.arange(members.sum())
    return right[np.lexsort((truth[right], turns))]


def _pictures(images: np.ndarray) -> np.ndarray:
    """Return images as (N, H, W) or (N, H, W, 3)."""
    if images.ndim == 4 and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)  # (N, H, W, C)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]  # (N, H, W)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or not images.size:
        raise ShapeError(f"images: expected (N, H, W), (N, 1, H, W), (N, 3, H, W) or (N, H, W, 3), got {images.shape}")
    return images


def _shown(pictures: np.ndarray) -> np.ndarray:
    """Return a few pictures as float32 from 0 to 1: bytes as they are, other numbers from their lowest to highest."""
    if pictures.dtype == np.uint8:
        return pictures.astype(np.float32) / 255
    low, high = float(pictures.min()), float(pictures.max())
    return (pictures.astype(np.float32) - low) / max(high - low, 1e-12)
