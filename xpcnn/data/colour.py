"""`ColorJitter`: brightness, contrast, saturation and hue of each image changed in its own way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.data.stage import Stage, check_channels, span, unit_floats
from xpcnn.errors import ConfigError

GREY = (0.299, 0.587, 0.114)  # of red, green and blue in the brightness: ITU-R BT.601
# Turning colours about grey by an angle is K + cos J + sin S of red, green and blue: W3C, "Filter Effects", hueRotate.
_K = ((0.213, 0.715, 0.072),) * 3
_J = ((0.787, -0.715, -0.072), (-0.213, 0.285, -0.072), (-0.213, -0.715, 0.928))
_S = ((-0.213, -0.715, 0.928), (0.143, 0.140, -0.283), (-0.787, 0.715, 0.072))


@dataclass(frozen=True)
class ColorJitter(Stage):
    """Change brightness, contrast, saturation and hue of each image, by amounts drawn for it; gives float32 in [0, 1].

    Parameters
    ----------
    brightness, contrast, saturation : float or (low, high)
        The factor is drawn from (1 - value, 1 + value), not below 0, or from the interval given; 1 changes nothing.
    hue : float or (low, high)
        The turn of the colours as a share of the circle, drawn from (-hue, hue); 0 changes nothing, 0.5 is opposite.

    Notes
    -----
    In this order: x b; then c x + (1 - c) m, where m is the image's mean grey; then s x + (1 - s) grey(x); then a turn
    about the grey axis. All four are one matrix for each image, whose result is cut to [0, 1] once. Comes before
    `Normalize`. Grey images have no saturation and no hue.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> y = data.ColorJitter(brightness=0.2, hue=0.1)(images)
    >>> y.shape, str(y.dtype)
    ((4, 3, 32, 32), 'float32')
    """

    brightness: Any = 0.0
    contrast: Any = 0.0
    saturation: Any = 0.0
    hue: Any = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            value, middle = getattr(self, name), float(name != "hue")
            if isinstance(value, int | float) and not isinstance(value, bool):
                if not value >= 0:
                    raise ConfigError(f"{name}: expected 0 or more, or (low, high), got {value!r}")
                value = (max(middle - value, 0.0) if middle else -value, middle + value)
            object.__setattr__(self, name, span(name, value, 0 if middle else -0.5))
        if self.hue[1] > 0.5:
            raise ConfigError(f"hue: expected shares from -0.5 to 0.5, got {self.hue}")

    def draw(self, rng: Any, count: int, image: tuple[int, ...]) -> tuple[Any, ...]:
        """Return brightness, contrast, saturation and hue of each image, float32 (N,)."""
        spans = (self.brightness, self.contrast, self.saturation, self.hue)
        return tuple(rng.uniform(*each, count).astype("float32") for each in spans)

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        xp = backend.xp
        count, channels, height, width = (int(n) for n in x.shape)
        check_channels(self, channels, (1, 3))
        x = unit_floats(backend, x).reshape(count, channels, height * width)
        bright, contrast, saturation, hue = (backend.asarray(each).reshape(-1, 1, 1) for each in draws)
        mean = xp.mean(x, axis=2, keepdims=True)  # (N, C, 1)
        if channels == 3:
            grey = backend.asarray(GREY, "float32").reshape(1, 1, 3)
            mean = xp.matmul(grey, mean)  # (N, 1, 1)
            eye = xp.eye(3, dtype="float32")
            matrix = saturation * eye + (1 - saturation) * grey  # (N, 3, 3)
            if self.hue != (0.0, 0.0):
                fixed, even, odd = (backend.asarray(each, "float32") for each in (_K, _J, _S))
                angle = hue * (2 * math.pi)
                matrix = xp.matmul(fixed + xp.cos(angle) * even + xp.sin(angle) * odd, matrix)
            out = xp.matmul(matrix * (bright * contrast), x)  # (N, 3, H*W)
        else:
            out = x * (bright * contrast)
        xp.add(out, (1 - contrast) * (bright * mean), out=out)
        return xp.clip(out, 0.0, 1.0, out=out).reshape(count, channels, height, width)
