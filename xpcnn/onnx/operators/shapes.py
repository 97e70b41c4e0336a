"""Operators that move numbers and change none: shapes, slices, joins, borders."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from xpcnn.backend import Array
from xpcnn.functional.layout import batch_first, batch_last
from xpcnn.onnx.operators.registry import Call, Results, integers, operator, unbroadcast, wrong


@operator("Shape")
def _shape(call: Call, x: Array) -> Results:
    return np.asarray(x.shape, np.int64)[call.get("start", 0) : call.get("end")], None


@operator("Size")
def _size(call: Call, x: Array) -> Results:
    return np.asarray(x.size, np.int64), None


@operator("Reshape", host=(1,))
def _reshape(call: Call, x: Array, shape: Any = None) -> Results:
    target = integers(call.get("shape", []) if shape is None else shape)
    if not call.get("allowzero", 0):
        target = [x.shape[i] if n == 0 and i < x.ndim else n for i, n in enumerate(target)]
    # A file of a fixed batch says its size in so many words; the model takes any.
    if call.batch is not None and x.ndim and target and target[0] == call.batch != x.shape[0]:
        target[0] = x.shape[0] if -1 in target[1:] else -1
    return reshaped(call, x, tuple(target))


def reshaped(call: Call, x: Array, target: tuple[int, ...]) -> Results:
    """Return x in another shape; (N, C, H, W) to (N, C*H*W) is a view of memory that lies batch-last."""
    shape = tuple(x.shape)
    if -1 in target:
        rest = math.prod(n for n in target if n != -1)
        if target.count(-1) > 1 or rest <= 0 or x.size % rest:
            raise wrong(f"expected a shape for {shape}, got {list(target)}")
        target = tuple(x.size // rest if n == -1 else n for n in target)
    if min(target, default=0) < 0 or math.prod(target) != x.size:
        raise wrong(f"expected a shape for {shape}, got {list(target)}")
    backend = call.backend
    if backend is not None and x.ndim in (2, 4) and len(target) in (2, 4) and target[0] == shape[0]:
        y = batch_first(batch_last(backend, x).reshape(*target[1:], target[0]))
        return y, lambda dy: (batch_first(batch_last(backend, dy).reshape(*shape[1:], shape[0])),)
    return x.reshape(target), lambda dy: (dy.reshape(shape),)


@operator("Flatten")
def _flatten(call: Call, x: Array) -> Results:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return reshaped(call, x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@operator("Transpose")
def _transpose(call: Call, x: Array) -> Results:
    order = call.get("perm") or list(range(x.ndim))[::-1]
    if sorted(order) != list(range(x.ndim)):
        raise wrong(f"perm: expected an order of {x.ndim} axes, got {order}")
    inverse = [order.index(i) for i in range(x.ndim)]
    return x.transpose(order), lambda dy: (dy.transpose(inverse),)


def _axes(call: Call, axes: Any, ndim: int) -> list[int]:
    found = integers(call.get("axes", []) if axes is None else axes)
    if any(not -ndim <= axis < ndim for axis in found):
        raise wrong(f"axes: expected axes of {ndim}, got {found}")
    return [axis % ndim for axis in found]


@operator("Squeeze", host=(1,))
def _squeeze(call: Call, x: Array, axes: Any = None) -> Results:
    given = axes is not None or call.get("axes") is not None
    chosen = _axes(call, axes, x.ndim) if given else [i for i, n in enumerate(x.shape) if n == 1]
    if any(x.shape[axis] != 1 for axis in chosen):
        raise wrong(f"axes: expected axes of length 1 in {tuple(x.shape)}, got {chosen}")
    shape = tuple(x.shape)
    return x.reshape([n for i, n in enumerate(shape) if i not in chosen]), lambda dy: (dy.reshape(shape),)


@operator("Unsqueeze", host=(1,))
def _unsqueeze(call: Call, x: Array, axes: Any = None) -> Results:
    count = len(integers(call.get("axes", []) if axes is None else axes))
    chosen = _axes(call, axes, x.ndim + count)
    rest, shape = iter(x.shape), tuple(x.shape)
    if len(set(chosen)) != count:
        raise wrong(f"axes: expected axes that differ, got {chosen}")
    target = [1 if i in chosen else next(rest) for i in range(x.ndim + count)]
    return x.reshape(target), lambda dy: (dy.reshape(shape),)


@operator("Concat")
def _concat(call: Call, *arrays: Array) -> Results:
    axis = call.get("axis", 1)
    ends = list(itertools.accumulate(a.shape[axis] for a in arrays))

    def backward(dy: Array) -> tuple[Array, ...]:
        where = [slice(None)] * dy.ndim
        parts = []
        for start, end in itertools.pairwise([0, *ends]):
            where[axis] = slice(start, end)
            parts.append(dy[tuple(where)])
        return tuple(parts)

    return call.xp.concatenate(arrays, axis=axis), backward


@operator("Split", host=(1,))
def _split(call: Call, x: Array, sizes: Any = None) -> Results:
    axis = call.get("axis", 0)
    if not -x.ndim <= axis < x.ndim:
        raise wrong(f"axis: expected one of {x.ndim}, got {axis}")
    given = call.get("split") if sizes is None else sizes
    length = x.shape[axis]
    if given is None:
        count = call.get("num_outputs", call.outputs)
        step = -(-length // max(1, count))
        parts = [max(0, min(step, length - i * step)) for i in range(count)]
    else:
        parts = integers(given)
    if sum(parts) != length or min(parts, default=0) < 0:
        raise wrong(f"split: expected lengths that make {length}, got {parts}")
    where = [slice(None)] * x.ndim
    results = []
    for start, end in itertools.pairwise([0, *itertools.accumulate(parts)]):
        where[axis] = slice(start, end)
        results.append(x[tuple(where)])

    def backward(*dys: Array) -> tuple[Array, ...]:
        whole = [call.zeros(y.shape, y) if dy is None else dy for y, dy in zip(results, dys, strict=True)]
        return (call.xp.concatenate(whole, axis=axis),)

    return tuple(results), backward


@operator("Slice", host=(1, 2, 3, 4))
def _slice(call: Call, x: Array, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Results:
    if starts is None:
        starts, ends, axes = call.get("starts"), call.get("ends"), call.get("axes")
    first, last = integers(starts), integers(ends)
    chosen = list(range(len(first))) if axes is None else integers(axes)
    by = [1] * len(first) if steps is None else integers(steps)
    if not len(first) == len(last) == len(chosen) == len(by) or 0 in by:
        raise wrong("expected as many starts as ends, axes and steps")
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, chosen, by, strict=True):
        if not -x.ndim <= axis < x.ndim:
            raise wrong(f"axes: expected axes of {x.ndim}, got {axis}")
        n = x.shape[axis]
        start, end = (at + n if at < 0 else at for at in (start, end))
        if step > 0:
            where[axis] = slice(min(max(start, 0), n), min(max(end, 0), n), step)
        else:
            start, end = min(max(start, -1), n - 1), min(max(end, -1), n - 1)
            where[axis] = slice(start, None if end < 0 else end, step) if start >= 0 else slice(0, 0)
    place = tuple(where)

    def backward(dy: Array) -> tuple[Any, ...]:
        dx = call.zeros(x.shape, dy)
        dx[place] = dy
        return dx, None, None, None, None

    return x[place], backward


@operator("Gather", host=(1,))
def _gather(call: Call, x: Array, indices: Any) -> Results:
    axis = call.get("axis", 0)
    if not -x.ndim <= axis < x.ndim:
        raise wrong(f"axis: expected one of {x.ndim}, got {axis}")
    axis, indices = axis % x.ndim, np.asarray(indices)
    n = x.shape[axis]
    if indices.size and not (-n <= indices.min() and indices.max() < n):
        raise wrong(f"indices: expected -{n} to {n - 1}, got {indices.min()} to {indices.max()}")
    places = np.where(indices < 0, indices + n, indices)
    where = (slice(None),) * axis
    if places.ndim == 0:
        y = x[(*where, int(places))]
    elif call.backend is None:
        y = np.take(x, places, axis=axis)
    else:
        picked = [x[(*where, slice(i, i + 1))] for i in places.reshape(-1).tolist()]
        y = call.xp.concatenate(picked, axis=axis).reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])

    def backward(dy: Array) -> tuple[Any, ...]:
        dx = call.zeros(x.shape, dy)
        flat = dy.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
        for number, i in enumerate(places.reshape(-1).tolist()):
            target = dx[(*where, i)]
            call.xp.add(target, flat[(*where, number)], out=target)
        return dx, None

    return y, backward


@operator("Expand", host=(1,))
def _expand(call: Call, x: Array, shape: Any) -> Results:
    target = np.broadcast_shapes(tuple(x.shape), tuple(integers(shape)))
    return call.xp.add(x, call.zeros(target, x)), lambda dy: (unbroadcast(call, dy, x.shape), None)


@operator("Tile", host=(1,))
def _tile(call: Call, x: Array, repeats: Any) -> Results:
    counts = integers(repeats)
    if len(counts) != x.ndim or min(counts, default=0) < 0:
        raise wrong(f"repeats: expected {x.ndim} counts, got {counts}")
    split = [n for pair in zip(counts, x.shape, strict=True) for n in pair]

    def backward(dy: Array) -> tuple[Any, ...]:
        return call.xp.sum(dy.reshape(split), axis=tuple(range(0, 2 * x.ndim, 2))), None

    y = x
    for axis, count in enumerate(counts):
        y = call.xp.concatenate([y] * count, axis=axis) if count else y[(*(slice(None),) * axis, slice(0, 0))]
    return y, backward


@operator("ConstantOfShape", host=(0,))
def _constant_of_shape(call: Call, shape: Any) -> Results:
    value = call.get("value")
    value = np.zeros(1, np.float32) if value is None else value
    return np.full(integers(shape), value.reshape(-1)[0], value.dtype), None


@operator("Range", host=(0, 1, 2))
def _range(call: Call, start: Any, limit: Any, delta: Any) -> Results:
    return np.arange(np.asarray(start).item(), np.asarray(limit).item(), np.asarray(delta).item()).astype(
        np.asarray(start).dtype
    ), None


@operator("Pad", host=(1, 2, 3))
def _pad(call: Call, x: Array, pads: Any = None, value: Any = None, axes: Any = None) -> Results:
    given = integers(call.get("pads", call.get("paddings", [])) if pads is None else pads)
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in integers(axes)]
    if len(given) != 2 * len(chosen):
        raise wrong(f"pads: expected {2 * len(chosen)} numbers, got {len(given)}")
    sides = dict(zip(chosen, zip(given[: len(chosen)], given[len(chosen) :], strict=True), strict=True))
    mode = call.get("mode", b"constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    fill = call.get("value", 0.0) if value is None else np.asarray(value).item()
    if mode == "constant":
        return _padded(call, x, [sides.get(i, (0, 0)) for i in range(x.ndim)], fill)
    return _indexed(call, x, {i: _border(mode, n, *sides[i]) for i, n in enumerate(x.shape) if any(sides.get(i, ()))})


def _padded(call: Call, x: Array, sides: list[tuple[int, int]], value: Any) -> Results:
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, sides, strict=True))
    if min(shape, default=0) < 0:
        raise wrong(f"pads: expected to leave something of {tuple(x.shape)}, got {sides}")
    inner = tuple(slice(max(0, before), max(0, before) + n - max(0, -before) - max(0, -after))
                  for n, (before, after) in zip(x.shape, sides, strict=True))  # fmt: skip
    outer = tuple(slice(max(0, -before), n - max(0, -after)) for n, (before, after) in zip(x.shape, sides, strict=True))
    y = call.full(shape, value, x)
    y[inner] = x[outer]

    def backward(dy: Array) -> tuple[Any, ...]:
        dx = call.zeros(x.shape, dy)
        dx[outer] = dy[inner]
        return dx, None, None, None

    return y, backward


def _border(mode: str, n: int, before: int, after: int) -> list[int]:
    """Return which of n pixels stands in each place of a padded line."""
    places = np.arange(-before, n + after)
    if mode == "edge":
        places = np.clip(places, 0, n - 1)
    elif mode == "wrap":
        places = places % n
    elif mode == "reflect":
        period = max(1, 2 * (n - 1))
        places = np.abs((places % period + period) % period)
        places = np.where(places >= n, period - places, places)
    else:
        raise wrong(f"mode: expected constant, edge, reflect or wrap, got {mode!r}")
    return [int(place) for place in places]


def _indexed(call: Call, x: Array, places: dict[int, list[int]]) -> Results:
    steps = []
    y = x
    for axis, chosen in places.items():
        inner = Call({"axis": axis}, call.version, 1, call.backend)
        y, back = _gather(inner, y, np.asarray(chosen, np.int64))
        steps.append(back)

    def backward(dy: Array) -> tuple[Any, ...]:
        for back in reversed(steps):
            dy = back(dy)[0]  # type: ignore[misc]
        return dy, None, None, None

    return y, backward


@operator("DepthToSpace")
def _depth_to_space(call: Call, x: Array) -> Results:
    n, c, h, w = x.shape
    b = call.get("blocksize", 1)
    mode = call.get("mode", b"DCR")
    if mode in (b"CRD", "CRD"):
        shape, order = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    else:
        shape, order = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    return _rearranged(x, shape, order, (n, c // (b * b), h * b, w * b))


@operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Array) -> Results:
    n, c, h, w = x.shape
    b = call.get("blocksize", 1)
    if call.get("mode", b"DCR") in (b"CRD", "CRD"):
        return _rearranged(x, (n, c, h // b, b, w // b, b), (0, 1, 3, 5, 2, 4), (n, c * b * b, h // b, w // b))
    return _rearranged(x, (n, c, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4), (n, c * b * b, h // b, w // b))


def _rearranged(x: Array, split: tuple[int, ...], order: tuple[int, ...], shape: tuple[int, ...]) -> Results:
    inverse = [order.index(i) for i in range(len(order))]
    middle = [split[i] for i in order]
    return x.reshape(split).transpose(order).reshape(shape), lambda dy: (
        dy.reshape(middle).transpose(inverse).reshape(x.shape),
    )
