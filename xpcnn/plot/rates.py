"""Loss over the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpcnn.errors import DataError
from xpcnn.plot.figure import ACCENT, FAINT, INK, WRONG, Canvas, PathLike, check_axes, figure_of, finish

if TYPE_CHECKING:
    from xpcnn.training.lr_finder import LearningRateFinder


def learning_rates(finder: LearningRateFinder, path: PathLike | None = None, *, ax: Any = None) -> Any:
    """Draw the losses of a `LearningRateFinder` over the rate, with the rate that it suggests.

    Parameters
    ----------
    finder : LearningRateFinder
        One that has run.
    path : path, optional
        Of a PNG.
    ax : matplotlib.axes.Axes, optional
        Where it is drawn, in the place of a figure of its own.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        It has not run, or the file cannot be written.
    ConfigError
        `ax` is no axes, or matplotlib is not installed.

    Examples
    --------
    >>> from xpcnn import plot
    >>> from xpcnn import training
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss())
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> finder = training.LearningRateFinder(1e-4, 10, steps=20)
    >>> rate = finder.run(trainer, batches)
    >>> figure = plot.learning_rates(finder)
    >>> type(figure).__name__
    'Figure'
    """
    if not finder.lrs:
        raise DataError("finder: expected one that has run, got no steps; call run(trainer, train) first")
    check_axes(ax)
    axes = ax if ax is not None else Canvas(6.0, 3.5).axes(0.7, 0.55, 5.05, 2.75)
    axes.set_xscale("log")
    axes.plot(finder.lrs, finder.losses, ".", color=FAINT, markersize=3, label="each step")
    axes.plot(finder.lrs, finder.smoothed, color=ACCENT, linewidth=1.6, label="running mean")
    if len(finder.lrs) > 2:
        best = finder.suggestion()
        axes.axvline(best, color=WRONG, linewidth=1.2, label=f"falls fastest: {best:.2g}")
    low, high = min(finder.losses), max(finder.smoothed)  # the last steps may lie far beyond
    axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.legend(frameon=False, fontsize=9)
    return finish(figure_of(axes), path)
