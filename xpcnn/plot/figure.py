"""Figures of their own, drawn by Agg: pyplot and whatever the user does with it are not touched."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.backend import backend_of
from xpcnn.errors import ConfigError, DTypeError, ShapeError
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
            raise ConfigError("pictures need matplotlib, which is not installed: pip install matplotlib") from None
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

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Return axes at a place given in inches; measured layouts would draw everything twice."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def add_image(figure: Any, left: float, bottom: float, width: float, height: float, image: Any, **options: Any) -> Any:
    """Return axes without ticks or frame that hold an image."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.set_axis_off()
    axes.imshow(image, interpolation="nearest", aspect="auto", **options)
    return axes


def write_png(figure: Any, path: PathLike) -> Path:
    """Write a figure to `path`, whole or not at all, and return the path.

    Raises
    ------
    DataError
        The file cannot be written; what was there before is untouched.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    write_bytes(path, content.getvalue())
    return Path(path)


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
        raise DTypeError(f"{name}: expected numbers, got {values.dtype}")
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
