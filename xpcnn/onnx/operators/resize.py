"""Resize and Upsample: interpolation along one axis after the other, each a product with a matrix (out, in)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend import Array
from xpcnn.onnx.operators.registry import Call, Results, integers, operator, wrong


class Kernel(NamedTuple):
    """What interpolates along an axis."""

    mode: str
    where: str
    nearest: str
    cubic: float
    exclude: bool
    antialias: bool


@lru_cache(maxsize=256)
def matrix(size: int, out: int, scale: float, roi: tuple[float, float], kernel: Kernel) -> tuple[Any, Any]:
    """Return the weights (out, size) of the pixels, and which outputs lie outside of the image (or None)."""
    width = scale * size
    at = np.arange(out, dtype=np.float64)
    outside = None
    if kernel.where == "align_corners":
        x = at * 0 if width == 1 else at * (size - 1) / (width - 1)
    elif kernel.where == "asymmetric":
        x = at / scale
    elif kernel.where == "tf_crop_and_resize":
        start, end = roi
        step = at * (end - start) * (size - 1) / (width - 1) if width != 1 else (end - start) * (size - 1) / 2 + at * 0
        x = step + start * (size - 1)
        outside = (x < 0) | (x > size - 1)
    elif kernel.where == "pytorch_half_pixel" and width == 1:
        x = at * 0 - 0.5
    elif kernel.where in ("half_pixel", "pytorch_half_pixel"):
        x = (at + 0.5) / scale - 0.5
    elif kernel.where == "half_pixel_symmetric":
        x = size / 2 * (1 - out / width) + (at + 0.5) / scale - 0.5
    else:
        raise wrong(f"coordinate_transformation_mode: got {kernel.where!r}")
    return _weights(x, size, min(scale, 1.0) if kernel.antialias else 1.0, kernel), outside


def _weights(x: Any, size: int, narrow: float, kernel: Kernel) -> Any:
    result = np.zeros((len(x), size))
    if kernel.mode == "nearest":
        if kernel.nearest not in _ROUND:
            raise wrong(f"nearest_mode: got {kernel.nearest!r}")
        places = np.clip(_ROUND[kernel.nearest](x), 0, size - 1).astype(int)
        result[np.arange(len(x)), places] = 1
        return result
    if kernel.mode not in ("linear", "cubic"):
        raise wrong(f"mode: expected nearest, linear or cubic, got {kernel.mode!r}")
    reach = (1 if kernel.mode == "linear" else 2) / narrow
    for row, centre in enumerate(x):
        pixels = np.arange(math.floor(centre - reach), math.ceil(centre + reach) + 1)
        far = np.abs(pixels - centre) * narrow
        weights = np.maximum(0, 1 - far) if kernel.mode == "linear" else _cubic(far, kernel.cubic)
        inside = (pixels >= 0) & (pixels < size)
        if kernel.exclude:
            weights = np.where(inside, weights, 0)
        if kernel.exclude or kernel.antialias:
            weights = weights / weights.sum()
        np.add.at(result[row], np.clip(pixels, 0, size - 1), weights)
    return result


def _cubic(far: Any, a: float) -> Any:
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    rest = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return np.where(far <= 1, near, np.where(far < 2, rest, 0))


_ROUND: dict[str, Any] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


def _word(call: Call, name: str, default: str) -> str:
    value = call.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


@operator("Resize", host=(1, 2, 3))
def _resize(call: Call, x: Array, roi: Any = None, scales: Any = None, sizes: Any = None) -> Results:
    if call.version < 11:
        roi, scales = None, roi
    axes = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    given = [] if scales is None else np.asarray(scales, np.float64).reshape(-1).tolist()
    wanted = [] if sizes is None else integers(sizes)
    if len(given or wanted) != len(axes):
        raise wrong(f"expected scales or sizes for {len(axes)} axes, got {given or wanted}")
    rates, outs = [1.0] * x.ndim, list(x.shape)
    if wanted:
        found = [size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        policy = _word(call, "keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            found = [min(found) if policy == "not_larger" else max(found)] * len(axes)
            wanted = [math.floor(found[0] * x.shape[axis] + 0.5) for axis in axes]
    else:
        found, wanted = given, [math.floor(rate * x.shape[axis]) for rate, axis in zip(given, axes, strict=True)]
    for axis, rate, out in zip(axes, found, wanted, strict=True):
        if not rate > 0 or out < 0:
            raise wrong(f"scales: expected numbers above 0, got {found}")
        rates[axis], outs[axis] = rate, out
    asymmetric = call.version < 11
    kernel = Kernel(
        _word(call, "mode", "nearest"),
        _word(call, "coordinate_transformation_mode", "asymmetric" if asymmetric else "half_pixel"),
        _word(call, "nearest_mode", "floor" if asymmetric else "round_prefer_floor"),
        call.get("cubic_coeff_a", -0.75),
        bool(call.get("exclude_outside", 0)),
        bool(call.get("antialias", 0)),
    )
    bounds = [(0.0, 1.0)] * x.ndim
    if roi is not None and np.size(roi):
        ends = np.asarray(roi, np.float64).reshape(2, -1)
        for i, axis in enumerate(axes):
            bounds[axis] = float(ends[0, i]), float(ends[1, i])
    return interpolate(call, x, outs, rates, bounds, kernel)


def interpolate(
    call: Call, x: Array, outs: list[int], rates: list[float], bounds: list[tuple[float, float]], kernel: Kernel
) -> Results:
    """Return x with axes of other lengths."""
    xp, steps, y = call.xp, [], x
    floating = x.dtype.kind == "f"
    covered = np.zeros((1,) * x.ndim, bool)
    for axis, (out, rate) in enumerate(zip(outs, rates, strict=True)):
        if rate == 1 and out == x.shape[axis] and kernel.where != "tf_crop_and_resize":
            continue
        weights, outside = matrix(x.shape[axis], out, rate, bounds[axis], kernel)
        product = call.array(weights, x) if floating else weights
        y = xp.matmul(y.swapaxes(axis, -1), product.T).swapaxes(axis, -1)
        steps.append((axis, product))
        if outside is not None:
            covered = covered | outside.reshape(*(1,) * axis, -1, *(1,) * (x.ndim - 1 - axis))
    keep = None
    if covered.any():
        keep = call.array(~np.broadcast_to(covered, y.shape), y)
        y = xp.add(xp.multiply(y, keep), xp.multiply(xp.subtract(1, keep), call.get("extrapolation_value", 0.0)))

    def backward(dy: Array) -> tuple[Any, ...]:
        dy = dy if keep is None else xp.multiply(dy, keep)
        for axis, product in reversed(steps):
            dy = xp.matmul(dy.swapaxes(axis, -1), product).swapaxes(axis, -1)
        return dy, None, None, None

    return y.astype(x.dtype), backward


@operator("Upsample", host=(1,))
def _upsample(call: Call, x: Array, scales: Any = None) -> Results:
    rates = np.asarray(call.get("scales", []) if scales is None else scales, np.float64).reshape(-1).tolist()
    if len(rates) != x.ndim or min(rates, default=1) <= 0:
        raise wrong(f"scales: expected {x.ndim} numbers above 0, got {rates}")
    outs = [math.floor(rate * n) for rate, n in zip(rates, x.shape, strict=True)]
    kernel = Kernel(_word(call, "mode", "nearest"), "asymmetric", "floor", -0.75, False, False)
    return interpolate(call, x, outs, rates, [(0.0, 1.0)] * x.ndim, kernel)
