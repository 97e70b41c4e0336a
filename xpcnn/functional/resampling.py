"""Images brought to another size: adaptive average pooling, and upsampling by repeating or interpolating.

All three are linear along the height and then along the width: output o is the sum over taps k of w[o,k] x[i[o,k]],
and dx[i[o,k]] adds up w[o,k] dy[o]. Outputs whose inputs lie evenly spaced run as one strided slice, with their weights
as an array; when sizes have a common factor these are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.functional.channelwise import ChainCache, ChannelOp, Shape, run, run_backward
from xpcnn.functional.layout import check_images, flag, number
from xpcnn.functional.pooling import GLOBAL_AVG_POOL, avg_pool_op
from xpcnn.windows import integer, pair

Taps = list[tuple[int, int, float]]  # (output, input, weight), the first tap of every output before all second ones


@dataclass(frozen=True)
class Run:
    """Outputs and inputs, evenly spaced, of one tap, and its weights."""

    outputs: slice
    inputs: slice
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Resampling:
    """What gives the taps along an axis of some size; a plain value, equal for equal settings.

    Attributes
    ----------
    mode : str
        "mean" over windows that share the axis out as evenly as pixels allow, "nearest" or "bilinear".
    size, scale : (height, width) or None
        The output size, of which None keeps the input's; else what the input size is multiplied by.
    align_corners : bool
    """

    mode: str
    size: tuple[int | None, int | None] | None = None
    scale: tuple[float, float] | None = None
    align_corners: bool = False

    def out(self, axis: int, size: int) -> int:
        """Return the output size along an axis (0 or 1)."""
        if self.size is not None:
            wanted = self.size[axis]
            return size if wanted is None else wanted
        scale = (self.scale or (1.0, 1.0))[axis]
        result = math.floor(size * scale)
        if result < 1:
            raise ShapeError(f"scale_factor: expected a result of 1 pixel or more, got {size} * {scale}")
        return result

    def taps(self, axis: int, size: int) -> Taps:
        """Return the taps along an axis."""
        out = self.out(axis, size)
        if self.mode == "mean":
            ends = [(o * size // out, -(-(o + 1) * size // out)) for o in range(out)]
            taps = [(o, i, 1.0 / (high - low)) for o, (low, high) in enumerate(ends) for i in range(low, high)]
            return sorted(taps, key=lambda tap: tap[1] - ends[tap[0]][0])
        ratio = self._ratio(axis, size, out)
        if self.mode == "nearest":
            return [(o, min(math.floor(ratio(o)), size - 1), 1.0) for o in range(out)]
        shift = 0.0 if self.align_corners else 0.5
        first, second = [], []
        for o in range(out):
            place = min(max(0.0, ratio(o + shift) - shift), size - 1)
            low, share = math.floor(place), place - math.floor(place)
            first.append((o, low, 1.0 - share))
            second += [(o, low + 1, share)] if share else []
        return first + second

    def _ratio(self, axis: int, size: int, out: int) -> Any:
        """Return what gives the place in the input of a place in the output, rounded once."""
        if self.align_corners:
            return lambda place: place * (size - 1) / (out - 1) if out > 1 else 0.0
        if self.scale is None or out == size:
            return lambda place: place * size / out
        scale = self.scale[axis]
        return lambda place: place / scale

    def period(self, axis: int, size: int) -> int:
        """Return after how many outputs weights and spaces between inputs come again."""
        out = self.out(axis, size)
        if self.align_corners:
            return max(1, (out - 1) // math.gcd(size - 1, out - 1)) if out > 1 else 1
        return out // math.gcd(size, out)


@lru_cache(maxsize=256)
def _runs(how: Resampling, axis: int, size: int) -> Sequence[Run]:
    """Return the taps along an axis as runs; of the first ones every output has one."""
    return list(_find_runs(how.taps(axis, size), how.period(axis, size)))


def _find_runs(taps: Taps, period: int) -> Iterator[Run]:
    groups: dict[tuple[int, int], Taps] = {}
    seen: dict[int, int] = {}
    for tap in taps:
        rank = seen[tap[0]] = seen.get(tap[0], -1) + 1
        groups.setdefault((rank, tap[0] % period), []).append(tap)
    for group in sorted(groups):
        members = groups[group]
        while members:
            step = members[1][1] - members[0][1] if len(members) > 1 else 1
            count = 1
            while count < len(members) and step > 0 and _follows(members[count - 1], members[count], period, step):
                count += 1
            some, members = members[:count], members[count:]
            weights = tuple(weight for _, _, weight in some)
            outputs = slice(some[0][0], some[-1][0] + 1, period)
            yield Run(outputs, slice(some[0][1], some[-1][1] + 1, max(1, step)), weights)


def _follows(tap: tuple[int, int, float], following: tuple[int, int, float], period: int, step: int) -> bool:
    return following[0] - tap[0] == period and following[1] - tap[1] == step


@lru_cache(maxsize=1024)
def _weights(backend: Backend, weights: tuple[float, ...], axis: int, dtype: Any) -> Array | float:
    """Return weights along an axis of (C, H, W, N): one number where all are alike."""
    if max(weights) - min(weights) < 1e-12:
        return weights[0]
    shape = [1, 1, 1, 1]
    shape[axis] = len(weights)
    return backend.constant(backend.asarray(weights, dtype).reshape(shape))


class ResampleOp(ChannelOp):
    """y = the taps of `how` along height and width."""

    passes = 8

    def __init__(self, how: Resampling) -> None:
        self.how = self.signature = how

    def out_shape(self, shape: Shape) -> Shape:
        check_images("x", (shape[-1], *shape[:-1]))
        return shape[0], self.how.out(0, shape[1]), self.how.out(1, shape[2]), shape[3]

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        rows = backend.scratch("rows", (x.shape[0], out.shape[1], *x.shape[2:]), x.dtype)
        self._pass(backend, x, rows, 1, forward=True)
        self._pass(backend, rows, out, 2, forward=True)

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        rows = backend.scratch("rows", (out.shape[0], dy.shape[1], *out.shape[2:]), dy.dtype)
        self._pass(backend, dy, rows, 2, forward=False)
        self._pass(backend, rows, out, 1, forward=False)

    def _pass(self, backend: Backend, source: Array, target: Array, axis: int, *, forward: bool) -> None:
        """Fill `target` from `source` along one axis of (C, H, W, N); backward with what outputs and inputs are."""
        xp, filled = backend.xp, 0
        if not forward:
            xp.copyto(target, 0)
        for part in _runs(self.how, axis - 1, (source if forward else target).shape[axis]):
            read, written = (part.inputs, part.outputs) if forward else (part.outputs, part.inputs)
            values, place = _along(source, axis, read), _along(target, axis, written)
            weights = _weights(backend.home, part.weights, axis, source.dtype)
            if forward and filled < target.shape[axis]:
                xp.multiply(values, weights, out=place)
                filled += len(part.weights)
            elif isinstance(weights, float) and weights == 1.0:
                xp.add(place, values, out=place)
            else:
                product = backend.scratch("product", values.shape, values.dtype)
                xp.add(place, xp.multiply(values, weights, out=product), out=place)


def _along(a: Array, axis: int, part: slice) -> Array:
    return a[:, part] if axis == 1 else a[:, :, part]


OutputSize = int | tuple[int | None, int | None] | None


def adaptive_avg_pool2d(x: Array, output_size: OutputSize) -> tuple[Array, ChainCache]:
    """Take means over windows that share out an image as evenly as pixels allow: y is of a size that is given.

    Row o of H rows and OH outputs is the mean of the rows from floor(o H / OH) to ceil((o + 1) H / OH), the last not
    included; columns alike. Windows overlap where sizes do not divide.

    Parameters
    ----------
    x : array (N, C, H, W), floating
    output_size : int, or (height, width) of which None keeps the size of `x`

    Returns
    -------
    y : array (N, C, OH, OW), dtype of `x`
    cache
        For `adaptive_avg_pool2d_backward`.

    Raises
    ------
    ShapeError, DTypeError
        Sizes do not fit, or `x` is not floating.

    References
    ----------
    He et al. 2014, Spatial pyramid pooling, arXiv:1406.4729, section 2.3.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.adaptive_avg_pool2d(x, (1, 2))
    >>> y[0, 0]
    array([[6.5, 8.5]])
    """
    return run((adaptive_avg_pool_op(check_output_size(output_size)),), x)


@lru_cache(maxsize=256)
def adaptive_avg_pool_op(size: tuple[int | None, int | None]) -> ChannelOp:
    """Return the operation of `adaptive_avg_pool2d`, the same for the same size."""
    return GLOBAL_AVG_POOL if size == (1, 1) else AdaptiveAvgPoolOp(Resampling("mean", size))


class AdaptiveAvgPoolOp(ResampleOp):
    """The mean over windows, as average pooling where they are all alike and keep apart."""

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        alike = self._alike(x.shape, out.shape)
        if alike is None:
            super().forward(backend, x, channels, out, keep)
            return None
        return alike.forward(backend, x, channels, out, keep)

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        alike = self._alike(out.shape, dy.shape)
        if alike is None:
            super().backward(backend, dy, cache, channels, out)
        else:
            alike.backward(backend, dy, cache, channels, out)

    def _alike(self, shape: Shape, out: Shape) -> ChannelOp | None:
        if shape[1] % out[1] or shape[2] % out[2]:
            return None
        return avg_pool_op((shape[1] // out[1], shape[2] // out[2]), None, 0, False, True)


def check_output_size(size: OutputSize) -> tuple[int | None, int | None]:
    """Return an output size as (height, width); raise ShapeError or DTypeError for what is none."""
    both = size if isinstance(size, (tuple, list)) else (size, size)
    if len(both) != 2:
        raise ShapeError(f"output_size: expected an integer or (height, width), got {size!r}")
    height, width = (None if each is None else integer("output_size", each, 1) for each in both)
    return height, width


def upsample(
    x: Array,
    size: int | tuple[int, int] | None = None,
    scale_factor: float | tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> tuple[Array, ChainCache]:
    """Bring images to another size, larger or smaller.

    Output o of OH lies at place (o + 1/2) H / OH - 1/2 of the input, not below 0, or with `align_corners` at
    o (H - 1) / (OH - 1), and is interpolated between the two pixels around it; "nearest" takes pixel floor(o H / OH).
    Where `scale_factor` is given, its inverse stands for H / OH (unless the size stays).

    Parameters
    ----------
    x : array (N, C, H, W), floating
    size : int or (height, width), optional
        The output size.
    scale_factor : float or (height, width), optional
        In its place: OH = floor(H * scale_factor).
    mode : str
        "nearest" or "bilinear".
    align_corners : bool, optional
        Whether the centres of the corner pixels stay where they are, with "bilinear"; False by default.

    Returns
    -------
    y : array (N, C, OH, OW), dtype of `x`
    cache
        For `upsample_backward`.

    Raises
    ------
    ConfigError, ShapeError, DTypeError
        Options or shapes do not fit.

    References
    ----------
    Odena et al. 2016, Deconvolution and checkerboard artifacts, https://distill.pub/2016/deconv-checkerboard.

    Examples
    --------
    >>> y, cache = F.upsample(np.array([[[[1.0, 2.0]]]]), scale_factor=2)
    >>> y[0, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]])
    """
    return run((upsample_op(size, scale_factor, mode, align_corners),), x)


def upsample_op(size: Any, scale_factor: Any, mode: Any, align_corners: Any) -> ResampleOp:
    """Return the operation of `upsample`; raise as that does."""
    if mode not in ("nearest", "bilinear"):
        raise ConfigError(f'mode: expected "nearest" or "bilinear", got {mode!r}')
    if align_corners is not None and mode == "nearest":
        raise ConfigError(f'align_corners: expected None with mode "nearest", got {align_corners!r}')
    if (size is None) == (scale_factor is None):
        raise ConfigError(f"size: expected it or scale_factor, one of the two, got {size!r} and {scale_factor!r}")
    corners = False if align_corners is None else flag("align_corners", align_corners)
    if size is not None:
        return ResampleOp(Resampling(mode, pair("size", size, 1), None, corners))
    both = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
    if len(both) != 2:
        raise ShapeError(f"scale_factor: expected a number or (height, width), got {scale_factor!r}")
    height, width = (number("scale_factor", each, "a number above 0", math.ulp(0.0)) for each in both)
    return ResampleOp(Resampling(mode, None, (height, width), corners))


def adaptive_avg_pool2d_backward(dy: Array, cache: ChainCache) -> Array:
    """Return dx (N, C, H, W) of `adaptive_avg_pool2d` or `upsample`.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.adaptive_avg_pool2d(x, (1, 2))
    >>> F.adaptive_avg_pool2d_backward(np.ones_like(y), cache)[0, 0, 0]
    array([0.125, 0.125, 0.125, 0.125])

    Examples
    --------
    >>> y, cache = F.upsample(np.array([[[[1.0, 2.0]]]]), scale_factor=2)
    >>> F.upsample_backward(np.ones_like(y), cache)[0, 0]
    array([[4., 4.]])
    """
    return run_backward(dy, cache)


upsample_backward = adaptive_avg_pool2d_backward
