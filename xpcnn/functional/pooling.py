"""Max, average and global average pooling, tap by tap of the window and channel by channel.

Max-pooling is a knock-out of the window's taps: neighbours meet, the greater goes on, of equals the first. Which of two
was ahead is kept, and backward plays the rounds the other way, each match handing the gradient to its winner. Gradients
of overlapping windows add.

Who won is read from the bits of the maximum, and gradients are handed on as bits, so that a nan wins as it does in the
maximum, and an infinite gradient stays with its winner. Taps lie last to first: of two equal operands, zeros of both
signs too, the processors' maximum gives the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ShapeError
from xpcnn.functional.activation import relu_backward_from, relu_forward
from xpcnn.functional.channelwise import ChainCache, ChannelOp, Shape, run, run_backward
from xpcnn.functional.layout import bits, check_images, flag
from xpcnn.functional.precision import in_float32
from xpcnn.functional.primitive import primitive
from xpcnn.windows import Axis, Padding, Size, Windows, pair, remembers_geometry, windows

SHAPES_KNOWN = 64  # whose windows a pooling remembers
SHORT = 4  # images below which a copy to all taps at once goes through one number after the other


@primitive
def max_pool_forward(backend: Backend, x: Array, over: Windows, out: Array, keep: bool, rectify: bool = False) -> Any:
    """Fill out (C, OH, OW, N) with the maxima over x (C, H, W, N) and return what the backward needs.

    With `rectify` what is below 0 becomes 0.
    """
    ahead = None
    if keep:
        ahead = _fill_and_compare(backend, x, over, out)
    else:
        _fill_maxima(backend, x, over, out)
    if rectify:
        relu_forward(backend, out, out)
    return ahead


def _fill_and_compare(backend: Backend, x: Array, over: Windows, out: Array) -> Array:
    """Play the taps of each window off against each other; return of each match whether its right side won."""
    xp = backend.xp
    taps = _gather(backend, x, over)  # (T, C, OH, OW, N)
    ahead = backend.empty((len(taps) - 1, *out.shape), bool)
    for left, right, matches in _rounds(taps):
        best = out[None] if matches.stop == len(ahead) else left
        xp.maximum(left, right, out=best)
        xp.equal(bits(best), bits(right), out=ahead[matches])
    if len(taps) == 1:
        xp.copyto(out, taps[0])
    elif not over.is_inside:
        xp.logical_and(ahead, _plays(backend.home, over), out=ahead)  # padding never wins, against -inf neither
    return ahead


@primitive
def max_pool_backward_from(
    backend: Backend, dy: Array, ahead: Any, over: Windows, out: Array, y: Array | None = None
) -> None:
    """Fill out (C, H, W, N) with dy (C, OH, OW, N) sent back to the winners; where a rectified y is 0, nothing is."""
    xp = backend.xp
    if y is not None:
        passed = backend.scratch("passed", dy.shape, dy.dtype)
        relu_backward_from(backend, dy, y, passed)
        dy = passed
    taps = backend.scratch("taps", (len(ahead) + 1, *dy.shape), dy.dtype)
    for left, right, matches in reversed(_rounds(bits(taps))):
        gradient = bits(dy)[None] if matches.stop == len(ahead) else left
        # Cast first: a product of two types goes through NumPy's buffers, at a third of the speed.
        xp.copyto(right, ahead[matches].view("int8"))
        xp.multiply(right, gradient, out=right)
        xp.subtract(gradient, right, out=left)
    if len(taps) == 1:
        xp.copyto(taps[0], dy)
    apart = _clear(backend, over, out)
    if apart and over.is_inside and dy.shape[-1] >= SHORT:
        xp.copyto(_windows_of(backend, out, over)[::-1, ::-1], taps.reshape(*over.kernel, *dy.shape))
        return
    for k, (there, pixels) in enumerate(_taps(over), 1):
        target, values = out[:, pixels[0], pixels[1]], taps[-k][:, there[0], there[1]]
        if apart:
            xp.copyto(target, values)
        else:
            xp.add(target, values, out=target)


def _fill_maxima(backend: Backend, x: Array, over: Windows, out: Array) -> None:
    """Compare along the height, where runs are long, and then along the width: KH + KW passes, not KH * KW."""
    rows = backend.scratch("taps", (x.shape[0], over.h.out, *x.shape[2:]), x.dtype)
    _slide(backend, x, over.h, rows)
    _slide(backend, rows.swapaxes(1, 2), over.w, out.swapaxes(1, 2))


def _slide(backend: Backend, x: Array, axis: Axis, out: Array) -> None:
    """Fill out with the maxima of windows along the second axis of x."""
    xp = backend.xp
    (there, pixels), *taps = [axis.overlap(i, 0, axis.out) for i in range(axis.kernel)]
    best = x[:, pixels]
    if best.shape != out.shape or not taps or out[:, taps[0][0]].shape != out.shape:
        xp.copyto(out, -math.inf)
        xp.copyto(out[:, there], best)
        best = out
    for there, pixels in taps:
        place = out[:, there]
        # CuPy copies an operand that is another view of where the result goes.
        xp.maximum(place if best is out else best[:, there], x[:, pixels], out=place)
        best = out


def _gather(backend: Backend, x: Array, over: Windows) -> Array:
    """Return a copy of each tap of the windows over x (C, H, W, N), last to first: (T, C, OH, OW, N).

    Outside of the image is -inf. NumPy copies strided rows at twice the speed at which it compares them.
    """
    xp, shape = backend.xp, (x.shape[0], *over.out, x.shape[3])
    taps = backend.scratch("taps", (over.h.kernel * over.w.kernel, *shape), x.dtype)
    if over.is_inside:
        xp.copyto(taps.reshape(*over.kernel, *shape), _windows_of(backend, x, over)[::-1, ::-1])
        return taps
    for k, (there, pixels) in enumerate(_taps(over), 1):
        place = taps[-k][:, there[0], there[1]]
        if place.shape != shape:
            xp.copyto(taps[-k], -math.inf)
        xp.copyto(place, x[:, pixels[0], pixels[1]])
    return taps


@lru_cache(maxsize=256)
def _plays(backend: Backend, over: Windows) -> Array:
    """Return whether the right side of each match has a tap inside the image: (T - 1, 1, OH, OW, 1)."""
    xp = backend.xp
    inside = backend.zeros((over.h.kernel * over.w.kernel, 1, *over.out, 1), bool)
    for k, (there, _) in enumerate(_taps(over), 1):
        inside[-k][:, there[0], there[1]] = True
    result = backend.empty((len(inside) - 1, *inside.shape[1:]), bool)
    for left, right, matches in _rounds(inside):
        xp.copyto(result[matches], right)
        xp.logical_or(left, right, out=left)
    return backend.constant(result)


def _windows_of(backend: Backend, image: Array, over: Windows) -> Array:
    """Return the taps of windows that lie inside image (C, H, W, N) as a view (KH, KW, C, OH, OW, N)."""
    c, y, z, n = image.strides
    h, w = over.h, over.w
    shape = *over.kernel, image.shape[0], *over.out, image.shape[3]
    return backend.strided_view(image, shape, (h.dilation * y, w.dilation * z, c, h.stride * y, w.stride * z, n))


def _rounds(taps: Array) -> list[tuple[Array, Array, slice]]:
    """Return the rounds of a knock-out of taps (T, ...): left sides, which stay, right sides, and their matches."""
    rounds, played = [], 0
    while len(taps) > 1:
        right = taps[1::2]
        rounds.append((taps[::2][: len(right)], right, slice(played, played + len(right))))
        taps, played = taps[::2], played + len(right)
    return rounds


class _WindowOp(ChannelOp):
    """What pooling over windows shares."""

    passes = 4
    skips = True

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = self.signature = geometry

    def out_shape(self, shape: Shape) -> Shape:
        return shape[0], *self.geometry(shape).out, shape[-1]

    def row_step(self, shape: Shape) -> int:
        h = self.geometry(shape).h  # rows are apart where windows stand side by side and fill the image
        return h.stride if h.extent == h.stride and not h.before and h.out * h.stride == h.size else 0


class MaxPoolOp(_WindowOp):
    """y = maximum over a window; dx goes to the first tap that holds it (Zhou and Chellappa 1988)."""

    stores_float16 = True

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        over = self.geometry(x.shape)
        return over, max_pool_forward(backend, x, over, out, keep)

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        over, ahead = cache
        max_pool_backward_from(backend, dy, ahead, over, out)


class AvgPoolOp(_WindowOp):
    """y = mean over a window; dx shares dy out equally."""

    def __init__(self, geometry: Geometry, count_include_pad: bool = True) -> None:
        super().__init__(geometry)
        self.count_include_pad = flag("count_include_pad", count_include_pad)
        self.signature = geometry, self.count_include_pad

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        over = self.geometry(x.shape)
        backend.xp.copyto(out, 0)
        for there, pixels in _taps(over):
            target = out[:, there[0], there[1]]
            backend.xp.add(target, x[:, pixels[0], pixels[1]], out=target)
        backend.xp.multiply(out, _share(backend.home, over, self.count_include_pad, x.dtype), out=out)
        return over

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        over = cache
        scaled = backend.scratch("left", dy.shape, dy.dtype)
        backend.xp.multiply(dy, _share(backend.home, over, self.count_include_pad, dy.dtype), out=scaled)
        apart = _clear(backend, over, out)
        for there, pixels in _taps(over):
            target, values = out[:, pixels[0], pixels[1]], scaled[:, there[0], there[1]]
            if apart:
                backend.xp.copyto(target, values)
            else:
                backend.xp.add(target, values, out=target)


class GlobalAvgPoolOp(ChannelOp):
    """y = mean over height and width (Lin et al. 2013, arXiv:1312.4400, section 3.2)."""

    stores_float16 = True
    signature = "global average"

    def out_shape(self, shape: Shape) -> Shape:
        check_images("x", (shape[-1], *shape[:-1]))
        return shape[0], 1, 1, shape[3]

    def forward(self, backend: Backend, x: Array, channels: slice, out: Array, keep: bool) -> Any:
        pixels = x.shape[1] * x.shape[2]
        rows = x.reshape(x.shape[0], pixels, x.shape[3])
        total = backend.xp.sum(rows, axis=1, **in_float32(x.dtype))  # (C, N)
        backend.xp.multiply(total, 1.0 / pixels, out=out.reshape(total.shape))

    def backward(self, backend: Backend, dy: Array, cache: Any, channels: slice, out: Array) -> None:
        share = backend.scratch("left", dy.shape, dy.dtype)
        backend.xp.multiply(dy, 1.0 / (out.shape[1] * out.shape[2]), out=share, **in_float32(dy.dtype))
        backend.xp.copyto(out, share)


GLOBAL_AVG_POOL = GlobalAvgPoolOp()


def max_pool2d(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> tuple[Array, ChainCache]:
    """Take the maximum of every window.

    Parameters
    ----------
    x : array (N, C, H, W), floating
    kernel_size, dilation : int or (height, width)
    stride : int or (height, width), optional
        The kernel size by default.
    padding : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"
        Smaller than the (dilated) kernel; padding never wins.
    ceil_mode : bool
        Keep a last window that reaches over the far edge.

    Returns
    -------
    y : array (N, C, OH, OW), dtype of `x`
        nan where a window holds one. Of equal values the first wins the gradient.
    cache
        For `max_pool2d_backward`.

    Raises
    ------
    ShapeError, DTypeError
        Sizes do not fit, or `x` is not floating.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.max_pool2d(x, 2)
    >>> y[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    return run((max_pool_op(kernel_size, stride, padding, dilation, ceil_mode),), x)


def avg_pool2d(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, ChainCache]:
    """Take the mean of every window; arguments and result as for `max_pool2d`.

    `count_include_pad` says whether padding counts as zeros in the mean; pixels beyond the padding, which a window
    meets in `ceil_mode`, never count.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.avg_pool2d(x, 2)
    >>> y[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    return run((avg_pool_op(kernel_size, stride, padding, ceil_mode, count_include_pad),), x)


def global_avg_pool2d(x: Array) -> tuple[Array, ChainCache]:
    """Take the mean of every channel: (N, C, H, W) to (N, C, 1, 1), and the cache.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.global_avg_pool2d(x)
    >>> y.shape, float(y.ravel()[0])
    ((1, 1, 1, 1), 7.5)
    """
    return run((GLOBAL_AVG_POOL,), x)


def max_pool2d_backward(dy: Array, cache: ChainCache) -> Array:
    """Return dx (N, C, H, W) of a pooling.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.max_pool2d(x, 2)
    >>> F.max_pool2d_backward(np.ones_like(y), cache)[0, 0]  # to where the maxima were
    array([[0., 0., 0., 0.],
           [0., 1., 0., 1.],
           [0., 0., 0., 0.],
           [0., 1., 0., 1.]])

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.avg_pool2d(x, 2)
    >>> F.avg_pool2d_backward(np.ones_like(y), cache)[0, 0, 0]
    array([0.25, 0.25, 0.25, 0.25])

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> y, cache = F.global_avg_pool2d(x)
    >>> F.global_avg_pool2d_backward(np.ones_like(y), cache)[0, 0, 0]
    array([0.0625, 0.0625, 0.0625, 0.0625])
    """
    return run_backward(dy, cache)


avg_pool2d_backward = global_avg_pool2d_backward = max_pool2d_backward


@remembers_geometry
def max_pool_op(
    kernel_size: Size, stride: Size | None, padding: Padding = 0, dilation: Size = 1, ceil_mode: bool = False
) -> MaxPoolOp:
    """Return the operation of `max_pool2d`, the same for the same arguments."""
    return MaxPoolOp(geometry(kernel_size, stride, padding, dilation, ceil_mode))


@remembers_geometry
def avg_pool_op(
    kernel_size: Size, stride: Size | None, padding: Padding, ceil_mode: bool, count_include_pad: bool
) -> AvgPoolOp:
    """Return the operation of `avg_pool2d`, the same for the same arguments."""
    return AvgPoolOp(geometry(kernel_size, stride, padding, 1, ceil_mode), count_include_pad)


@dataclass(frozen=True, eq=False)  # told apart by identity: `max_pool_op` gives the same one for the same sizes
class Geometry:
    """What gives the windows over a batch-last shape (C, H, W, N); a plain value, which can be copied and pickled."""

    kernel: tuple[int, int]
    stride: Size
    padding: Padding
    dilation: Size
    ceil_mode: bool
    _known: dict[Shape, Windows] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, shape: Shape) -> Windows:
        """Return the windows."""
        found = self._known.get(shape)
        if found is None:
            if len(self._known) >= SHAPES_KNOWN:
                self._known.clear()
            found = self._known[shape] = self._windows(shape)
        return found

    def _windows(self, shape: Shape) -> Windows:
        check_images("x", (shape[-1], *shape[:-1]))
        result = windows(
            (shape[1], shape[2]),
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )
        for axis in (result.h, result.w):
            if max(axis.before, axis.asked_after) >= axis.extent:
                raise ShapeError(
                    f"padding: expected less than the kernel of {axis.extent} pixels, got {self.padding!r}"
                )
        return result


def geometry(kernel_size: Size, stride: Size | None, padding: Padding, dilation: Size, ceil_mode: bool) -> Geometry:
    """Return what gives the windows of a pooling."""
    kernel = pair("kernel_size", kernel_size, 1)
    return Geometry(kernel, kernel if stride is None else stride, padding, dilation, ceil_mode)


Place = tuple[slice, slice]  # along (height, width)


@lru_cache(maxsize=256)
def _taps(over: Windows) -> Sequence[tuple[Place, Place]]:
    """Return, for each tap, the windows whose pixel it is and those pixels."""
    h = [over.h.overlap(i, 0, over.h.out) for i in range(over.h.kernel)]
    w = [over.w.overlap(j, 0, over.w.out) for j in range(over.w.kernel)]
    return [((ho, wo), (hi, wi)) for ho, hi in h for wo, wi in w]


def _clear(backend: Backend, over: Windows, out: Array) -> bool:
    """Zero what no window will write in `out`; return whether windows keep apart, so that none writes a pixel twice."""
    apart = all(axis.stride >= axis.extent for axis in (over.h, over.w))
    if not (apart and _covers(over.h) and _covers(over.w)):
        backend.xp.copyto(out, 0)
    return apart


def _covers(axis: Axis) -> bool:
    """Whether windows that keep apart meet every pixel."""
    return axis.stride == axis.kernel and axis.out * axis.stride - axis.before >= axis.size


@lru_cache(maxsize=256)
def _share(backend: Backend, over: Windows, count_include_pad: bool, dtype: Any) -> Array:
    """Return 1 / (pixels that count) of every window as (1, OH, OW, 1)."""

    def counts(axis: Axis, padding_after: int) -> list[int]:
        low, high = (-axis.before, axis.size + padding_after) if count_include_pad else (0, axis.size)
        starts = [o * axis.stride - axis.before for o in range(axis.out)]
        return [min(start + axis.kernel, high) - max(start, low) for start in starts]

    h, w = counts(over.h, over.h.asked_after), counts(over.w, over.w.asked_after)
    return backend.constant(backend.asarray([[[[1.0 / max(1, a * b)] for b in w] for a in h]], dtype))
