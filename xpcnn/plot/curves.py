"""Loss per step, and accuracy of training against validation, side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xpcnn.errors import ConfigError, DataError
from xpcnn.plot.figure import ACCENT, FAINT, INK, WRONG, Canvas, PathLike, check_axes, figure_of, finish

if TYPE_CHECKING:
    from xpcnn.training.history import History

_POINTS = 2000  # that a curve is thinned to: twice the pixels it has
_SMOOTH = 50  # windows of the running mean that fit into the whole training


def history(history: History, path: PathLike | None = None, *, title: str = "", ax: Any = None) -> Any:
    """Draw the loss of every step, and the accuracy of training and validation, where there is one.

    Parameters
    ----------
    history : History
        What `Trainer.fit` returned.
    path : path, optional
        Of a PNG.
    title : str
        Stands above it.
    ax : matplotlib.axes.Axes, or a pair of them, optional
        Where the loss is drawn, and the accuracy; of a single one, the loss alone. Else a figure of its own has both.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        The history is empty, or the file cannot be written.
    ConfigError
        `ax` is no axes, or matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> from xpcnn.training import History
    >>> history = History()
    >>> for loss in (2.0, 1.0, 0.5):
    ...     history.add_step(loss, 0.9, 0.1)
    ...
    >>> figure = plot.history(history)
    >>> type(figure).__name__
    'Figure'
    """
    loss = np.asarray(history.steps["loss"], float)
    if not len(loss):
        raise DataError("history: expected at least one step, got none; train first")
    has_accuracy = bool(np.isfinite(history.steps["accuracy"]).any())
    if ax is not None:
        places = list(ax) if isinstance(ax, (list, tuple, np.ndarray)) else [ax]
        if len(places) not in (1, 2):
            raise ConfigError(f"ax: expected axes, or a pair for loss and accuracy, got {len(places)}")
        for place in places:
            check_axes(place)
        places[0].set_title(title)
        figure = figure_of(places[0])
    else:
        height = 3.85 if title else 3.5
        canvas = Canvas(9.0, height)
        canvas.text(0.7, height - 0.25, title, color=INK, fontsize=11)
        places = [canvas.axes(0.7, 0.55, 3.6 if has_accuracy else 8.05, 2.75)]
        if has_accuracy:
            places.append(canvas.axes(5.15, 0.55, 3.6, 2.75))
        figure = canvas.figure
    _draw_loss(places[0], loss)
    if has_accuracy and len(places) == 2:
        _draw_accuracy(places[1], history)
    return finish(figure, path)


def _draw_loss(axes: Any, loss: np.ndarray) -> None:
    steps = np.arange(1, len(loss) + 1)
    thin = slice(None, None, -(-len(loss) // _POINTS))
    loss = np.where(np.isfinite(loss), loss, np.nan)
    axes.plot(steps[thin], loss[thin], ".", color=FAINT, markersize=2.5, label="each step")
    mean_steps, mean = _running_mean(loss)
    if len(mean) > 1:
        axes.plot(mean_steps, mean, color=ACCENT, linewidth=1.6, label="running mean")
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    positive = loss[np.isfinite(loss) & (loss > 0)]
    if len(positive) and positive.max() > 30 * np.median(positive):
        low, high = max(positive.min(), positive.max() * 1e-5) / 1.3, positive.max() * 1.5
        axes.set_ylim(low, high)  # before the scale, which would look for limits of its own
        axes.set_yscale("log")
        # Plain numbers at the powers of ten: matplotlib's own ticks and powers take half the time of the picture.
        axes.minorticks_off()
        ticks = [10.0**k for k in range(-12, 13) if low <= 10.0**k <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss", color=INK)


def _draw_accuracy(axes: Any, history: History) -> None:
    steps, accuracy = _running_mean(np.asarray(history.steps["accuracy"], float))
    axes.plot(steps, accuracy, color=ACCENT, linewidth=1.6, label="training (running mean)")
    ends, validation = history.epochs["step"], history.epochs["validation_accuracy"]
    measured = [(end, value) for end, value in zip(ends, validation, strict=True) if math.isfinite(value)]
    if measured:
        axes.plot(*zip(*measured, strict=True), "o-", color=WRONG, markersize=5, linewidth=1.2, label="validation")
        axes.annotate(
            f"{measured[-1][1]:.4f}",
            measured[-1],
            textcoords="offset points",
            xytext=(0, 7),
            ha="right",
            color=WRONG,
            fontsize=9,
        )
    # What comes after the first steps must not be squeezed into a line.
    last = [value for _, value in measured] or [*accuracy[-1:]]
    floor = 0.8 if min(last) > 0.95 else 0.5 if min(last) > 0.85 else 0.0
    axes.set_ylim(floor, 1.0 + 0.02 * (1.0 - floor))
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("accuracy", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _running_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and means of windows of a fiftieth of all values, each at its window's end."""
    width = max(1, len(values) // _SMOOTH)
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    ends = np.arange(width, len(values) + 1, max(1, width // 4))
    return ends, (sums[ends] - sums[ends - width]) / width
