"""Convolution and pooling as ONNX means them, over images of any number of axes: tap by tap.

Padding may depend on the image (`auto_pad`), so it is found when the image is there. What `nn` has a layer for runs in
that layer (`recognition.py`), and comes here only where it does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpcnn.backend import Array
from xpcnn.onnx.operators.registry import Call, Results, operator, wrong

Place = tuple[Any, ...]


@dataclass(frozen=True)
class Line:
    """The windows along one axis: window o reads pixel o * stride + tap * dilation - before with each tap."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int  # as the file has it, without what ceil_mode adds
    out: int

    @property
    def room(self) -> int:
        """Pixels that windows and image reach over, padding included."""
        return max(self.before + self.size, (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1)

    def counts(self, padding: bool) -> list[int]:
        """Return how many pixels of each window count in a mean: those of the image, or of the padding too."""
        low, high = (-self.before, self.size + self.after) if padding else (0, self.size)
        firsts = [o * self.stride - self.before for o in range(self.out)]
        return [sum(low <= at + k * self.dilation < high for k in range(self.kernel)) for at in firsts]


def auto_pad(call: Call) -> str:
    """Return the attribute as a word."""
    value = call.get("auto_pad", b"NOTSET")
    return value.decode() if isinstance(value, bytes) else str(value)


def lines_of(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> list[Line]:
    """Return the windows of a node over an image, one `Line` for each axis."""
    rank = len(sizes)
    if len(kernel) != rank or min(kernel, default=1) < 1:
        raise wrong(f"kernel_shape: expected {rank} sizes of 1 or more, got {list(kernel)}")
    strides, dilations = _numbers(call, "strides", rank), _numbers(call, "dilations", rank)
    pads = call.get("pads") or [0] * (2 * rank)
    if len(pads) != 2 * rank or min(pads) < 0:
        raise wrong(f"pads: expected {2 * rank} numbers of 0 or more, got {pads}")
    return [_line(call, sizes[i], kernel[i], strides[i], dilations[i], pads[i], pads[i + rank]) for i in range(rank)]


def _numbers(call: Call, name: str, rank: int) -> list[int]:
    found = call.get(name) or [1] * rank
    if len(found) != rank or min(found) < 1:
        raise wrong(f"{name}: expected {rank} numbers of 1 or more, got {found}")
    return list(found)


def _line(call: Call, size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> Line:
    extent = (kernel - 1) * dilation + 1
    mode = auto_pad(call)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        out = -(-size // stride)
        total = max(0, (out - 1) * stride + extent - size)
        before = total // 2 if mode == "SAME_UPPER" else total - total // 2
        return Line(size, kernel, stride, dilation, before, total - before, out)
    if mode == "VALID":
        before = after = 0
    elif mode != "NOTSET":
        raise wrong(f"auto_pad: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER, got {mode!r}")
    room = size + before + after - extent
    if room < 0:
        raise wrong(f"kernel_shape: expected a window of at most the padded {size + before + after}, got {extent}")
    out = room // stride + 1
    if call.get("ceil_mode", 0) and room % stride and out * stride < size + before:
        out += 1
    return Line(size, kernel, stride, dilation, before, after, out)


def _taps(lines: list[Line]) -> Iterator[tuple[tuple[int, ...], Place]]:
    """Yield each tap and the pixels of the padded image that it reads."""
    for tap in itertools.product(*(range(line.kernel) for line in lines)):
        places = [
            slice(k * line.dilation, k * line.dilation + (line.out - 1) * line.stride + 1, line.stride)
            for k, line in zip(tap, lines, strict=True)
        ]
        yield tap, (..., *places)


def _inner(lines: list[Line]) -> Place:
    return (..., *(slice(line.before, line.before + line.size) for line in lines))


def _padded(call: Call, x: Array, lines: list[Line], value: Any) -> Array:
    y = call.full((*x.shape[:2], *(line.room for line in lines)), value, x)
    y[_inner(lines)] = x
    return y


def _unpadded(call: Call, shape: tuple[int, ...], lines: list[Line], like: Array) -> tuple[Array, Array]:
    """Return an array of zeros as large as the padded image, and the view of it that is the image."""
    whole = call.zeros((*shape[:2], *(line.room for line in lines)), like)
    return whole, whole[_inner(lines)]


# --- convolution ------------------------------------------------------------------------------------------------------


def convolve(call: Call, x: Array, w: Array, lines: list[Line], groups: int) -> Array:
    """Return the convolution (N, F, *out) of x (N, C, *sizes) with w (F, C/groups, *kernel)."""
    n, f = x.shape[0], w.shape[0]
    out = [line.out for line in lines]
    image = _padded(call, x, lines, 0)
    parts = w.reshape(groups, f // groups, *w.shape[1:])
    y = call.zeros((n, groups, f // groups, math.prod(out)), x)
    for tap, place in _taps(lines):
        pixels = image[place].reshape(n, groups, w.shape[1], -1)
        y += call.xp.matmul(parts[(..., *tap)], pixels)
    return y.reshape(n, f, *out)


def spread(call: Call, dy: Array, w: Array, lines: list[Line], groups: int) -> Array:
    """Return the convolution's gradient by its input, (N, C, *sizes)."""
    n, f = dy.shape[0], w.shape[0]
    channels = groups * w.shape[1]
    whole, inner = _unpadded(call, (n, channels), lines, dy)
    parts = w.reshape(groups, f // groups, *w.shape[1:])
    values = dy.reshape(n, groups, f // groups, -1)
    for tap, place in _taps(lines):
        target = whole[place]
        pixels = call.xp.matmul(parts[(..., *tap)].swapaxes(-1, -2), values)
        call.xp.add(target, pixels.reshape(target.shape), out=target)
    return inner


def weigh(call: Call, dy: Array, x: Array, w: Array, lines: list[Line], groups: int) -> Array:
    """Return the convolution's gradient by its weights, like w."""
    n, f = dy.shape[0], w.shape[0]
    image = _padded(call, x, lines, 0)
    values = dy.reshape(n, groups, f // groups, -1)
    dw = call.zeros((groups, f // groups, *w.shape[1:]), w)
    for tap, place in _taps(lines):
        pixels = image[place].reshape(n, groups, w.shape[1], -1)
        dw[(..., *tap)] = call.xp.sum(call.xp.matmul(values, pixels.swapaxes(-1, -2)), axis=0)
    return dw.reshape(w.shape)


def _bias(b: Array, rank: int) -> Array:
    return b.reshape(-1, *(1,) * rank)


def _check_weights(call: Call, x: Array, w: Array, channels: int) -> int:
    groups = call.get("group", 1)
    if w.ndim != x.ndim or x.ndim < 3 or groups < 1 or x.shape[1] != channels or w.shape[0] % groups:
        raise wrong(f"expected weights that fit {tuple(x.shape)} in {groups} groups, got {tuple(w.shape)}")
    shape = call.get("kernel_shape")
    if shape is not None and list(shape) != list(w.shape[2:]):
        raise wrong(f"kernel_shape: expected that of the weights, {list(w.shape[2:])}, got {list(shape)}")
    return int(groups)


@operator("Conv")
def _conv(call: Call, x: Array, w: Array, b: Array = None) -> Results:
    groups = _check_weights(call, x, w, w.shape[1] * call.get("group", 1))
    lines = lines_of(call, x.shape[2:], w.shape[2:])
    y = convolve(call, x, w, lines, groups)
    if b is not None:
        y = call.xp.add(y, _bias(b, x.ndim - 2))

    def backward(dy: Array) -> tuple[Any, ...]:
        db = None if b is None else call.xp.sum(dy, axis=(0, *range(2, dy.ndim)))
        return spread(call, dy, w, lines, groups), weigh(call, dy, x, w, lines, groups), db

    return y, backward


@operator("ConvTranspose")
def _conv_transpose(call: Call, x: Array, w: Array, b: Array = None) -> Results:
    groups = _check_weights(call, x, w, w.shape[0])
    lines = transposed_lines(call, x.shape[2:], w.shape[2:])
    y = spread(call, x, w, lines, groups)
    if b is not None:
        y = call.xp.add(y, _bias(b, x.ndim - 2))

    def backward(dy: Array) -> tuple[Any, ...]:
        db = None if b is None else call.xp.sum(dy, axis=(0, *range(2, dy.ndim)))
        return convolve(call, dy, w, lines, groups), weigh(call, x, dy, w, lines, groups), db

    return y, backward


def transposed_lines(call: Call, outs: Sequence[int], kernel: Sequence[int]) -> list[Line]:
    """Return the windows over the image that a transposed convolution makes, of which there are `outs`."""
    rank = len(outs)
    strides, dilations = _numbers(call, "strides", rank), _numbers(call, "dilations", rank)
    extra = call.get("output_padding") or [0] * rank
    pads, sizes = call.get("pads") or [0] * (2 * rank), call.get("output_shape")
    mode = auto_pad(call)
    if len(extra) != rank or len(pads) != 2 * rank or (sizes is not None and len(sizes) < rank):
        raise wrong(f"expected pads and sizes for {rank} axes, got pads {pads}, output_padding {extra}, {sizes}")
    lines = []
    for i in range(rank):
        extent = (kernel[i] - 1) * dilations[i] + 1
        whole = (outs[i] - 1) * strides[i] + extent + extra[i]
        before, after = pads[i], pads[i + rank]
        wanted = None if sizes is None else list(sizes)[-rank:][i]
        if wanted is None and mode.startswith("SAME"):
            wanted = outs[i] * strides[i]
        if wanted is not None:
            total = max(0, whole - wanted)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            after = whole - wanted - before
        elif mode == "VALID":
            before = after = 0
        size = whole - before - after
        if size < 1 or before < 0:
            raise wrong(f"pads: expected less than the unpadded result {whole}, got {before} and {after}")
        lines.append(Line(size, kernel[i], strides[i], dilations[i], before, after, outs[i]))
    return lines


# --- pooling ----------------------------------------------------------------------------------------------------------


@operator("AveragePool")
def _average_pool(call: Call, x: Array) -> Results:
    lines = lines_of(call, x.shape[2:], call.get("kernel_shape") or [])
    counts = np.ones(())
    for line in lines:
        counts = np.multiply.outer(counts, line.counts(bool(call.get("count_include_pad", 0))))
    share = call.array(1.0 / np.maximum(counts, 1), x)
    image = _padded(call, x, lines, 0)
    y = call.zeros((*x.shape[:2], *(line.out for line in lines)), x)
    for _, place in _taps(lines):
        y += image[place]

    def backward(dy: Array) -> tuple[Array]:
        whole, inner = _unpadded(call, x.shape, lines, dy)
        scaled = call.xp.multiply(dy, share)
        for _, place in _taps(lines):
            call.xp.add(whole[place], scaled, out=whole[place])
        return (inner,)

    return call.xp.multiply(y, share), backward


@operator("MaxPool")
def _max_pool(call: Call, x: Array) -> Results:
    xp = call.xp
    lines = lines_of(call, x.shape[2:], call.get("kernel_shape") or [])
    least = -math.inf if x.dtype.kind == "f" else int(np.iinfo(str(x.dtype)).min)
    image = _padded(call, x, lines, least)
    taps = list(_taps(lines))
    y = xp.copy(image[taps[0][1]])
    for _, place in taps[1:]:
        y = xp.maximum(y, image[place])

    def backward(dy: Array, *_: Any) -> tuple[Array]:
        whole, inner = _unpadded(call, x.shape, lines, dy)
        free = xp.ones_like(dy)  # 1 until the first tap that holds the maximum
        for _, place in taps:
            mine = xp.multiply(free, xp.equal(image[place], y).astype(dy.dtype))
            free = xp.subtract(free, mine)
            call.xp.add(whole[place], xp.multiply(dy, mine), out=whole[place])
        return (inner,)

    if call.outputs == 1:
        return y, backward
    return (y, _indices(call, x, y, image, lines, taps)), backward


def _indices(call: Call, x: Array, y: Array, image: Array, lines: list[Line], taps: list[Any]) -> Array:
    """Return where each maximum stands in the whole of x, rows first or, by `storage_order`, columns first."""
    xp = call.xp
    found = xp.full(y.shape, -1, dtype="int64")
    steps = _steps(call, x.shape[2:])
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(lines)) * math.prod(x.shape[2:])
    for tap, place in taps:
        at: Any = planes
        for i, (k, line, step) in enumerate(zip(tap, lines, steps, strict=True)):
            along = np.arange(line.out) * line.stride + k * line.dilation - line.before
            at = at + (along * step).reshape(*(1,) * (2 + i), -1, *(1,) * (len(lines) - 1 - i))
        at = np.broadcast_to(at, y.shape)
        at = at if call.backend is None else call.backend.asarray(np.ascontiguousarray(at))
        found = xp.where(xp.logical_and(xp.less(found, 0), xp.equal(image[place], y)), at, found)
    return found


def _steps(call: Call, sizes: Sequence[int]) -> list[int]:
    rank = len(sizes)
    if call.get("storage_order", 0):
        return [math.prod(sizes[:i]) for i in range(rank)]
    return [math.prod(sizes[i + 1 :]) for i in range(rank)]
