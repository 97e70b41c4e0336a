"""What a network makes of one picture, as plain values that fit into json: for the page, or for anybody else."""

from __future__ import annotations

import base64
import copy
import threading
import time
from typing import Any

import numpy as np

from xpcnn.backend import Array, backend_of, use_backend
from xpcnn.errors import ConfigError, DataError, XpcnnError
from xpcnn.explain import grad_cam
from xpcnn.nn import Conv2d, Dropout, Flatten, Identity, Module, no_grad
from xpcnn.nn.contexts import trace
from xpcnn.nn.precision import computes_in_float16
from xpcnn.training import Predictor

_SILENT = (Dropout, Flatten, Identity)  # what they give is what they take
_LAYERS = 24  # of the largest networks, so many are shown
_CHANNELS = 32  # of a layer
_SIDE = 64  # pixels of a map; a larger one is shown by means of its blocks
_UNITS = 256  # of a layer without maps


class Inspector:
    """Asks one network about pictures: what it says, what it saw, its feature maps, and where Grad-CAM points.

    Parameters
    ----------
    predictor : Predictor
        Its model as it is now.
    name : str
        What to call it.

    Notes
    -----
    Threads may share it; the network works on one picture at a time.
    """

    def __init__(self, predictor: Predictor, name: str = "model") -> None:
        if not isinstance(predictor, Predictor):
            raise ConfigError(
                f"predictor: expected a Predictor, such as load_model gives, got {type(predictor).__name__}"
            )
        self.predictor, self.name = predictor, name
        backend = predictor.model.backend
        self._twin: Module = copy.deepcopy(predictor.model, {id(backend): backend}).eval().requires_grad_(False)
        if computes_in_float16(self._twin):
            self._twin.float()
        self._paths = {id(module): path for path, module in self._twin.named_modules()}
        self._busy = threading.Lock()

    @property
    def draws(self) -> str | None:
        """How one draws for it: "dark" on light paper for digits, "light" on dark for other grey images, or None."""
        if self.predictor.stored.digits:
            return "dark"
        return "light" if self.predictor.stored.channels == 1 and self.predictor.stored.size else None

    def describe(self) -> dict[str, Any]:
        """Return what there is to say of the network before it has seen anything."""
        classes = self.predictor.classes
        return {
            "name": self.name,
            "network": type(self.predictor.model).__name__,
            "parameters": sum(parameter.data.size for parameter in self.predictor.model.parameters()),
            "backend": self.predictor.model.backend.name,
            "classes": None if classes is None else [str(each) for each in classes],
            "digits": self.predictor.stored.digits,
            "draws": self.draws,
            "image_shape": self.predictor.image_shape,
        }

    def look(self, picture: Any, target: int | None = None) -> dict[str, Any]:
        """Return what the network makes of a picture.

        Parameters
        ----------
        picture : path, PIL image or array
            As a `Predictor` takes it; one.
        target : int, optional
            The number of the class that Grad-CAM explains; the likeliest by default.

        Returns
        -------
        dict
            `label`, `index`, `probability`, `probabilities`; `seen`, the image as the network takes it; `layers`, each
            with its maps; `heat`, Grad-CAM's map, or None with `no_heat`, the reason; `seconds`.

        Raises
        ------
        DataError, ShapeError, DTypeError
            The picture cannot be taken, or there is no such class.
        """
        backend = self.predictor.model.backend
        stored = next(iter(self.predictor.stored.batches(picture, 1)))  # (1, ...)
        started = time.perf_counter()
        with self._busy, use_backend(backend.name), backend.errstate():
            (found,) = self.predictor(stored)
            shares = np.asarray(found.probabilities, np.float64)
            if not np.isfinite(shares).all():
                raise DataError("the network's probabilities are not finite numbers; was its training sound?")
            x = self.predictor.prepare(backend.asarray(stored))
            with no_grad(), trace() as calls:
                y = self._twin(x if x.dtype == self._dtype() else x.astype(self._dtype()))
            explained = int(shares.argmax()) if target is None else target
            heat, reason = self._heat(x, y.shape[1], explained, len(shares), _with_rows(calls))
            return {
                "label": str(found.label),
                "index": int(shares.argmax()),
                "probability": float(shares.max()),
                "probabilities": [round(float(share), 6) for share in shares],
                "seen": _seen(_host(x)[0]),
                "layers": self._layers(calls),
                "heat": heat,
                "no_heat": reason,
                "seconds": time.perf_counter() - started,
            }

    def _dtype(self) -> Any:
        parameters = self._twin.parameters()
        return parameters[0].data.dtype if parameters else "float32"

    def _heat(
        self, x: Array, scores: int, target: int, classes: int, layer: Module | None
    ) -> tuple[dict[str, Any] | None, str | None]:
        """Return Grad-CAM's map of the class, or why there is none."""
        if not 0 <= target < classes:
            raise DataError(f"target: expected a class from 0 to {classes - 1}, got {target}")
        if x.ndim != 4:
            return None, "the network takes no images with rows and columns"
        if scores == 1 and target == 0:
            return None, "of a network with one score, Grad-CAM explains the second class"
        try:
            heat = _host(grad_cam(self._twin, x, 0 if scores == 1 else target, layer=layer))[0]  # (h, w)
        except XpcnnError as error:
            return None, str(error)
        return {"target": target, "empty": not heat.any(), **_maps(heat[None], 0.0)}, None

    def _layers(self, calls: list[tuple[Module, Array, Array]]) -> list[dict[str, Any]]:
        """Return the layers with what each gave, all or a selection, the last one included."""
        leaves = [each for each in calls if not list(each[0].children()) and each[2].ndim in (2, 4)]
        leaves = [each for each in leaves if not isinstance(each[0], _SILENT)]
        if len(leaves) > _LAYERS:
            last = leaves[-1]
            leaves = [each for each in leaves if isinstance(each[0], Conv2d)] or leaves
            leaves = [leaves[i] for i in np.linspace(0, len(leaves) - 1, min(_LAYERS, len(leaves))).round().astype(int)]
            leaves += [last] * (leaves[-1] is not last)
        found = []
        for module, _, y in leaves:
            values = _host(y)[0]  # (C, h, w) or (D,)
            values = values.ravel() if values.shape[1:] == (1, 1) else values
            shown = values[:_CHANNELS] if values.ndim == 3 else values[None, None, :_UNITS]
            about = {
                "path": self._paths.get(id(module), ""),
                "kind": type(module).__name__,
                "shape": tuple(y.shape[1:]),
            }
            found.append({**about, "flat": values.ndim == 1, **_maps(shown)})
        return found


def _with_rows(calls: list[tuple[Module, Array, Array]]) -> Module | None:
    """Return the last convolution that was called once and has more than one pixel: Grad-CAM of one says nothing."""
    modules = [module for module, _, _ in calls]
    found = [module for module, _, y in calls if isinstance(module, Conv2d) and y.ndim == 4 and y.shape[2:] != (1, 1)]
    return next((module for module in reversed(found) if modules.count(module) == 1), None)


def _host(array: Array) -> np.ndarray:
    values = np.asarray(backend_of(array).to_numpy(array), np.float32)
    return np.nan_to_num(values, nan=0.0, posinf=3e38, neginf=-3e38)


def _seen(x: np.ndarray) -> dict[str, Any]:
    """Return an image as the network takes it: in colour where it has three channels, else the mean of them."""
    values = x if x.ndim == 3 and len(x) in (1, 3) else x.mean(axis=0, keepdims=True) if x.ndim == 3 else x[None, None]
    return {"shape": x.shape, **_maps(values, side=4 * _SIDE)}


def _maps(maps: np.ndarray, low: float | None = None, side: int = _SIDE) -> dict[str, Any]:
    """Return maps (C, h, w) as bytes from their lowest value to their highest, channel after channel."""
    factor = -(-max(maps.shape[1:]) // side) if maps.shape[1] > 1 else 1
    if factor > 1:
        maps = np.stack([_blocks(each, factor) for each in maps])
    bottom, top = float(maps.min()) if low is None else low, float(maps.max())
    scaled = (maps - bottom) * (255 / max(top - bottom, 1e-12))
    pixels = scaled.round().clip(0, 255).astype(np.uint8)
    return {
        "count": pixels.shape[0],
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "low": bottom,
        "high": top,
        "pixels": base64.b64encode(pixels.tobytes()).decode("ascii"),
    }


def _blocks(values: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of blocks of factor x factor values; those at the end repeat the last ones."""
    rows, columns = (-(-size // factor) * factor for size in values.shape)
    padded = np.pad(values, [(0, rows - values.shape[0]), (0, columns - values.shape[1])], mode="edge")
    blocks = padded.reshape(rows // factor, factor, columns // factor, factor)  # (rows, factor, columns, factor)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float64), np.float32)
