"""Depthwise convolution, a filter for each channel, as products with banded matrices.

m neighbouring outputs of a row are one product with the k = (m - 1) stride + KW columns of KH rows that they meet:

    Y_c (m, N) = T_c (m, KH*k) X_c (KH*k, N)        T_c = sum over the taps of w_c[tap] P[tap]

P has a one where an output meets a pixel with a tap. Strips of m columns are copied with the padding around them; rows
below each other overlap in memory, so that a strip is one call. An image of a few pixels is one product as a whole.
Most of T is zeros, and still BLAS is faster than two passes over memory for each tap. dX is such a product of strips of
dY, for each phase of rows. dW gathers dY_c X_c^T and sums over what each tap has in P.

Zeros times nan or inf are nan: a pixel that is not finite reaches whatever shares its product. So one output of each
product is looked at, and images or channels in which it is not finite are made anew tap by tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from xpcnn.backend.split import split_evenly
from xpcnn.windows import Axis, Windows

Array = Any
Task = Callable[[], None]

STRIP = 8  # outputs of a row in one product: with fewer more is copied, with more most of T is zeros
SMALL_IMAGE = 1296  # pixels times outputs up to which an image is one product: 6x6 to 6x6
MOST_TAPS = 128  # P grows with their square
BLOCK_BYTES = 1 << 19  # of the strips that are worked on at once: half a core's own cache


def suits(weight: Array, windows: Windows, groups: int) -> bool:
    """Say whether a convolution goes this way: each channel has one filter of its own, and that is no giant."""
    taps = windows.h.kernel * windows.w.kernel
    return groups > 1 and weight.shape[0] == groups and weight.shape[1] == 1 and taps <= MOST_TAPS


@dataclass(frozen=True)
class _Line:
    """Which sources the targets of one axis meet.

    Target period*u + phase meets, with each of its `taps` (tap, offset), source step*u + first + offset; offsets are
    less than `extent`. Forward, targets are outputs and sources pixels; for dX it is the other way round.
    """

    targets: int
    sources: int
    period: int
    step: int
    first: int
    extent: int
    taps: tuple[tuple[tuple[int, int], ...], ...]  # for each phase

    @property
    def units(self) -> int:
        """How many u there are."""
        return -(-self.targets // self.period)


def _outputs(axis: Axis) -> _Line:
    taps = tuple((k, k * axis.dilation) for k in range(axis.kernel))
    return _Line(axis.out, axis.size, 1, axis.stride, -axis.before, axis.extent, (taps,))


def _pixels(axis: Axis) -> _Line:
    meets = []
    for phase in range(axis.stride):
        shifts = [(k, phase + axis.before - k * axis.dilation) for k in range(axis.kernel)]
        meets.append([(k, shift // axis.stride) for k, shift in shifts if shift % axis.stride == 0])
    offsets = [offset for phase in meets for _, offset in phase]
    first = min(offsets)
    taps = tuple(tuple((k, offset - first) for k, offset in phase) for phase in meets)
    return _Line(axis.size, axis.out, axis.stride, 1, first, max(offsets) - first + 1, taps)


class _Strips:
    """Products for strips of columns of the targets, and for each phase of their rows."""

    def __init__(self, backend: Any, rows: _Line, columns: _Line) -> None:
        self.backend, self.rows, self.columns = backend, rows, columns
        self.strips = split_evenly(columns.units, -(-columns.units // STRIP))
        self.phases = range(min(rows.period, rows.targets))

    def block(self, source: Array) -> int:
        """Return how many channels are worked on at once."""
        width = self.columns.step * STRIP + self.columns.extent
        height = self.rows.step * self.rows.units + self.rows.extent
        size: int = height * width * source.shape[3] * source.dtype.itemsize
        return max(1, BLOCK_BYTES // max(1, size))

    def lower(self, source: Array, strip: range) -> Array:
        """Return what the targets of a strip meet in source (C, H, W, N): (C, U, KH*k, N); good until the next."""
        c, _, _, n = source.shape
        rows, columns = self.rows, self.columns
        height, width = rows.step * (rows.units - 1) + rows.extent, self._width(strip)
        down, across = _inside(rows, 0, height), _inside(columns, columns.step * strip.start, width)
        shape = c, height, width, n
        if down == slice(0, height) and across == slice(0, width):
            place = padded = self.backend.scratch("columns", shape, source.dtype)
        else:
            padded = self.backend.bordered(("depthwise", shape, str(down), str(across)), shape, source.dtype)
            place = padded[:, down, across]
        if place.size:
            top, left = rows.first + down.start, columns.step * strip.start + columns.first + across.start
            inside = source[:, top : top + place.shape[1], left : left + place.shape[2]]
            self.backend.xp.copyto(place, inside)
        strides = padded.strides[0], rows.step * padded.strides[1], *padded.strides[2:]
        return self.backend.strided_view(padded, (c, rows.units, rows.extent * width, n), strides)

    def _width(self, strip: range) -> int:
        return self.columns.step * (len(strip) - 1) + self.columns.extent

    def targets(self, target: Array, strip: range, phase: int) -> Array:
        """Return the view (C, U, M, N) of target (C, H, W, N) that a strip's product fills."""
        period = self.columns.period
        return target[:, phase :: self.rows.period, period * strip.start : period * strip.stop]

    def taps(self, strip: range, phase: int, dtype: Any) -> Array:
        """Return P as (KH*KW, KH*k, M)."""
        count = min(self.columns.targets - self.columns.period * strip.start, self.columns.period * len(strip))
        return _taps(self.backend.home, self.rows, self.columns, phase, count, self._width(strip), dtype)


def _inside(line: _Line, start: int, count: int) -> slice:
    """Return which of `count` places from the sources of `start` on are no padding."""
    first = start + line.first
    low = min(count, max(0, -first))
    return slice(low, max(low, min(count, line.sources - first)))


@lru_cache(maxsize=256)
def _taps(backend: Any, rows: _Line, columns: _Line, phase: int, count: int, width: int, dtype: Any) -> Array:
    """Return a one where one of `count` targets meets a source with a tap: (KH*KW, KH*k, count)."""
    kernel = [1 + max(tap for each in line.taps for tap, _ in each) for line in (rows, columns)]
    found = np.zeros((*kernel, rows.extent, width, count), dtype)
    for i, row in rows.taps[phase]:
        for target in range(count):
            u, phase_across = divmod(target, columns.period)
            for j, offset in columns.taps[phase_across]:
                found[i, j, row, columns.step * u + offset, target] = 1
    return backend.constant(found.reshape(kernel[0] * kernel[1], -1, count))


class _Whole:
    """One product for the whole image."""

    phases = range(1)

    def __init__(self, backend: Any, rows: _Line, columns: _Line) -> None:
        self.backend, self.rows, self.columns = backend, rows, columns
        self.strips = [range(1)]

    def block(self, source: Array) -> int:
        """Return how many channels are worked on at once."""
        size: int = source[0].nbytes
        return max(1, BLOCK_BYTES // max(1, size))

    def lower(self, source: Array, strip: range) -> Array:
        """Return source (C, H, W, N) as (C, 1, H*W, N)."""
        return source.reshape(source.shape[0], 1, -1, source.shape[3])

    def targets(self, target: Array, strip: range, phase: int) -> Array:
        """Return target (C, H, W, N) as (C, 1, H*W, N)."""
        return target.reshape(target.shape[0], 1, -1, target.shape[3])

    def taps(self, strip: range, phase: int, dtype: Any) -> Array:
        """Return P as (KH*KW, sources, targets)."""
        return _all_taps(self.backend.home, self.rows, self.columns, dtype)


@lru_cache(maxsize=64)
def _all_taps(backend: Any, rows: _Line, columns: _Line, dtype: Any) -> Array:
    """Return a one where a target of the image meets a source with a tap: (KH*KW, sources, targets)."""
    down, across = _meetings(rows, dtype), _meetings(columns, dtype)  # (KH, H, OH), (KW, W, OW)
    found = down[:, None, :, None, :, None] * across[None, :, None, :, None, :]  # (KH, KW, H, W, OH, OW)
    return backend.constant(found.reshape(len(down) * len(across), rows.sources * columns.sources, -1))


def _meetings(line: _Line, dtype: Any) -> Array:
    found = np.zeros((1 + max(tap for each in line.taps for tap, _ in each), line.sources, line.targets), dtype)
    for target in range(line.targets):
        u, phase = divmod(target, line.period)
        for tap, offset in line.taps[phase]:
            source = line.step * u + line.first + offset
            if 0 <= source < line.sources:
                found[tap, source, target] = 1
    return found


def _plan(backend: Any, windows: Windows, line: Callable[[Axis], _Line]) -> _Strips | _Whole:
    rows, columns = line(windows.h), line(windows.w)
    pairs = rows.targets * columns.targets * rows.sources * columns.sources
    return (_Whole if pairs <= SMALL_IMAGE else _Strips)(backend, rows, columns)


def _blocks(backend: Any, plan: _Strips | _Whole, source: Array) -> list[slice]:
    """Cut the channels, for each thread as many blocks."""
    channels, threads = source.shape[0], backend.get_num_threads()
    count = -(-channels // (plan.block(source) * threads)) * threads
    return [slice(part.start, part.stop) for part in split_evenly(channels, count)]


def forward_tasks(
    backend: Any, x: Array, weight: Array, bias: Array | None, windows: Windows, y: Array
) -> tuple[list[Task], Task]:
    """Return the tasks that fill y (C, OH, OW, N) from x (C, H, W, N), and what is to be done after them."""
    tasks, probes = _product_tasks(backend, x, weight, bias, _plan(backend, windows, _outputs), y)
    return tasks, lambda: backend.call(_mend_outputs, probes, x, weight, bias, y, windows)


def input_tasks(backend: Any, dy: Array, weight: Array, windows: Windows, dx: Array) -> tuple[list[Task], Task]:
    """Return the tasks that fill dx (C, H, W, N) from dy (C, OH, OW, N), and what is to be done after them."""
    tasks, probes = _product_tasks(backend, dy, weight, None, _plan(backend, windows, _pixels), dx)
    return tasks, lambda: backend.call(_mend_input_gradient, probes, dy, weight, dx, windows)


def _product_tasks(
    backend: Any, source: Array, weight: Array, bias: Array | None, plan: _Strips | _Whole, target: Array
) -> tuple[list[Task], Array]:
    """Return the tasks that fill `target` from `source`, and where they leave a probe of each image: (B, S, N)."""
    filters = backend.contiguous(weight).reshape(weight.shape[0], -1)  # (C, KH*KW)
    blocks, n = _blocks(backend, plan, source), source.shape[3]
    probes = backend.empty((len(blocks), len(plan.strips), n), source.dtype)

    def task(index: int) -> None:
        channels = blocks[index]
        for number, strip in enumerate(plan.strips):
            lowered = plan.lower(source[channels], strip)  # (C, U, KH*k, N)
            for phase in plan.phases:
                place = plan.targets(target[channels], strip, phase)  # (C, U, M, N)
                taps = plan.taps(strip, phase, source.dtype)
                matrix = backend.matmul(filters[channels], taps.reshape(taps.shape[0], -1))  # (C, KH*k*M)
                matrix = matrix.reshape(-1, 1, *taps.shape[1:]).swapaxes(-1, -2)  # (C, 1, M, KH*k)
                backend.matmul(matrix, lowered[:, : place.shape[1]], out=place)
                if phase == 0:
                    backend.xp.sum(place[:, :, 0], axis=(0, 1), out=probes[index, number])
        if bias is not None:
            backend.xp.add(target[channels], bias[channels].reshape(-1, 1, 1, 1), out=target[channels])

    return [lambda i=i: _quietly(task, i) for i in range(len(blocks))], probes  # type: ignore[misc]


def weight_tasks(
    backend: Any, dy: Array, x: Array, weight: Array, windows: Windows
) -> tuple[list[Task], Callable[[], Array]]:
    """Return the tasks that sum dW up, and what gives it, (C, 1, KH, KW), after them."""
    plan = _plan(backend, windows, _outputs)
    blocks = _blocks(backend, plan, x)
    dweight = backend.empty((weight.shape[0], windows.h.kernel * windows.w.kernel), x.dtype)

    def task(channels: slice) -> None:
        for number, strip in enumerate(plan.strips):
            lowered = plan.lower(x[channels], strip)  # (C, U, KH*k, N)
            grad = plan.targets(dy[channels], strip, 0)  # (C, U, M, N)
            taps = plan.taps(strip, 0, x.dtype)  # (KH*KW, KH*k, M)
            shape = *grad.shape[:2], *taps.shape[1:]
            products = backend.scratch("parts", shape, x.dtype)
            backend.matmul(lowered, grad.swapaxes(-1, -2), out=products)  # (C, U, KH*k, M)
            total = products[:, 0] if shape[1] == 1 else backend.xp.sum(products, axis=1)  # (C, KH*k, M)
            share = backend.matmul(total.reshape(shape[0], -1), taps.reshape(taps.shape[0], -1).T)  # (C, KH*KW)
            if number:
                backend.xp.add(dweight[channels], share, out=dweight[channels])
            else:
                backend.xp.copyto(dweight[channels], share)

    def collect() -> Array:
        result = dweight.reshape(weight.shape)
        backend.call(_mend_weight_gradient, dy, x, result, windows)
        return result

    return [lambda part=part: _quietly(task, part) for part in blocks], collect  # type: ignore[misc]


def _quietly(task: Callable[[Any], None], argument: Any) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # in each thread of the pool
        task(argument)


# --- what is not finite, tap by tap -----------------------------------------------------------------------------------


def _suspects(probes: Array, weight: Array) -> Array:
    """Return the images of which a probe (B, S, N) is not finite: all where the weights are not."""
    if not np.isfinite(weight).all():
        return np.arange(probes.shape[-1])
    with np.errstate(all="ignore"):
        return np.flatnonzero(~np.isfinite(probes).all(axis=(0, 1)))


def _mend_outputs(probes: Array, x: Array, weight: Array, bias: Array | None, y: Array, windows: Windows) -> None:
    images = _suspects(probes, weight)
    if images.size:
        with np.errstate(all="ignore"):
            result = np.zeros((*y.shape[:3], images.size), y.dtype)
            for (i, j), tap in _padded_taps(x[..., images], windows):
                result += weight[:, 0, i, j, None, None, None] * tap
            y[..., images] = result if bias is None else result + bias[:, None, None, None]


def _mend_input_gradient(probes: Array, dy: Array, weight: Array, dx: Array, windows: Windows) -> None:
    images = _suspects(probes, weight)
    if images.size:
        with np.errstate(all="ignore"):
            result = np.zeros((*dx.shape[:3], images.size), dx.dtype)
            for i, j in windows.taps():
                ro, ri = windows.h.overlap(i, 0, windows.h.out)
                wo, wi = windows.w.overlap(j, 0, windows.w.out)
                result[:, ri, wi] += weight[:, 0, i, j, None, None, None] * dy[:, ro, wo][..., images]
            dx[..., images] = result


def _mend_weight_gradient(dy: Array, x: Array, dweight: Array, windows: Windows) -> None:
    channels = np.flatnonzero(~np.isfinite(dweight).all(axis=(1, 2, 3)))
    if channels.size:
        with np.errstate(all="ignore"):
            for (i, j), tap in _padded_taps(x[channels], windows):
                dweight[channels, 0, i, j] = (dy[channels] * tap).sum(axis=(1, 2, 3))


def _padded_taps(x: Array, windows: Windows) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yield every tap and what it meets in x (C, H, W, N) with zeros around: (C, OH, OW, N)."""
    h, w = windows.h, windows.w
    sizes = [max(axis.before + axis.size, (axis.out - 1) * axis.stride + axis.extent) for axis in (h, w)]
    padded = np.zeros((x.shape[0], *sizes, x.shape[3]), x.dtype)
    padded[:, h.before : h.before + h.size, w.before : w.before + w.size] = x
    for i, j in windows.taps():
        rows, columns = (
            slice(first, first + (axis.out - 1) * axis.stride + 1, axis.stride)
            for axis, first in ((h, i * h.dilation), (w, j * w.dilation))
        )
        yield (i, j), padded[:, rows, columns]
