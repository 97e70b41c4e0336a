"""Figures of their own, drawn by Agg: pyplot and whatever the user does with it are not touched."""

from __future__ import annotations

import functools
import io
import os
import sys
import threading
from typing import Any

import numpy as np

from xpcnn.backend import backend_of
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.extras import install_line
from xpcnn.training.files import write_bytes

DPI = 100  # pixels per inch: small files, drawn in a twentieth of a second each
INK, ACCENT, WRONG, FAINT = "#1f2933", "#2563a8", "#c2410c", "#9fb3c8"

PathLike = str | os.PathLike[str]


_loading = threading.Lock()


def load_matplotlib() -> None:
    """Import what draws; Agg draws whatever MPLBACKEND names, such as a notebook's that is not installed here.

    Raises
    ------
    ConfigError
        matplotlib is not installed, or does not start.
    """
    with _loading:
        try:
            _import_agg()
        except ImportError:
            raise ConfigError(f"pictures need matplotlib, which is not installed: {install_line('cli')}") from None
        except Exception as error:  # such as a setting of the user's that it refuses
            raise ConfigError(
                f"pictures need matplotlib, which does not start: {(str(error) or repr(error)).splitlines()[0]:.120}"
            ) from error


def _import_agg() -> None:
    named = os.environ.get("MPLBACKEND")
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError:
        raise
    except Exception:
        if named is None or "matplotlib" in sys.modules:
            raise
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[name]  # half imported: parts of it know of no whole
        del os.environ["MPLBACKEND"]
        try:
            import matplotlib.backends.backend_agg
            import matplotlib.figure  # noqa: F401
        finally:
            os.environ["MPLBACKEND"] = named


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    # Notebooks then show it where pyplot, which would see to that, was never imported.
    figure._repr_png_ = functools.partial(png, figure)
    return figure


def check_axes(ax: Any) -> None:
    """Raise ConfigError unless `ax` is None or axes of matplotlib."""
    if ax is not None and not (hasattr(ax, "inset_axes") and hasattr(ax, "figure")):
        raise ConfigError(f"ax: expected axes of matplotlib, got {type(ax).__name__}")


def figure_of(ax: Any) -> Any:
    """Return the whole figure that axes belong to, those of a sub-figure too."""
    figure = ax.figure
    while figure.figure is not None and figure.figure is not figure:
        figure = figure.figure
    return figure


class Canvas:
    """Where a picture of so many inches goes: a figure of its own, or axes of the user's, into which it is fitted.

    Raises
    ------
    ConfigError
        `ax` is no axes, or matplotlib is not installed.
    """

    def __init__(self, width: float, height: float, ax: Any = None) -> None:
        check_axes(ax)
        self.width, self.height, self.ax = width, height, ax
        if ax is None:
            self.figure = new_figure(width, height)
            return
        self.figure = figure_of(ax)
        ax.set_axis_off()
        room = ax.get_window_extent()  # pixels; the picture keeps its proportions
        scale = min(room.width / width, room.height / height)
        self._across, self._up = scale * width / room.width, scale * height / room.height

    def _place(self, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
        shares = left / self.width, bottom / self.height, width / self.width, height / self.height
        if self.ax is None:
            return shares
        x, y = (1 - self._across) / 2, (1 - self._up) / 2
        return (
            x + shares[0] * self._across, y + shares[1] * self._up, shares[2] * self._across, shares[3] * self._up,
        )  # fmt: skip

    def axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        """Return axes at a place given in inches; measured layouts would draw everything twice."""
        place = self._place(left, bottom, width, height)
        return style(self.figure.add_axes(place) if self.ax is None else self.ax.inset_axes(place))

    def image(self, left: float, bottom: float, width: float, height: float, image: Any, **options: Any) -> Any:
        """Return axes without ticks or frame that hold an image."""
        axes = self.axes(left, bottom, width, height)
        axes.set_axis_off()
        axes.imshow(image, interpolation="nearest", aspect="auto", **options)
        return axes

    def text(self, left: float, bottom: float, text: str, **options: Any) -> None:
        """Write at a place given in inches."""
        x, y, _, _ = self._place(left, bottom, 0.0, 0.0)
        if self.ax is None:
            self.figure.text(x, y, text, **options)
        else:
            self.ax.text(x, y, text, transform=self.ax.transAxes, **options)


def style(axes: Any) -> Any:
    """Return axes in the colours of all these pictures."""
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def finish(figure: Any, path: PathLike | None) -> Any:
    """Return a figure, written to `path` as a PNG if there is one: whole or not at all.

    Raises
    ------
    DataError
        The file cannot be written; what was there before is untouched.
    """
    if path is not None:
        write_bytes(path, png(figure))
    return figure


def png(figure: Any) -> bytes:
    """Return a figure as a PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    return content.getvalue()


def host(name: str, array: Any) -> np.ndarray:
    """Return numbers of any backend, or a list of them, as a host array.

    Raises
    ------
    DTypeError
        They are no numbers.
    """
    if not isinstance(array, np.ndarray | list | tuple):
        array = backend_of(array).to_numpy(array)
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        advice = "; names of classes become numbers by classes.index(name)" if values.dtype.kind == "U" else ""
        raise DTypeError(f"{name}: expected numbers, got {values.dtype}{advice}")
    return values


def class_names(classes: Any, count: int) -> list[str]:
    """Return what the classes are called: their numbers by default.

    Raises
    ------
    ShapeError
        There are fewer names than classes.
    """
    names = [str(i) for i in range(count)] if classes is None else [str(name) for name in classes]
    if len(names) < count:
        raise ShapeError(f"classes: expected {count} names or more, got {len(names)}")
    return names


def mosaic(tiles: np.ndarray, columns: int, gap: int, fill: float) -> np.ndarray:
    """Return tiles (N, H, W) or (N, H, W, 3) side by side in one image, row by row, with gaps between them."""
    count, height, width = tiles.shape[:3]
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:]), fill, tiles.dtype)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet
