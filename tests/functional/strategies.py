"""Hypothesis strategies for what an operation may be given: shapes, windows, memory layouts, data types."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

LAYOUTS = ("nchw", "chwn", "strided", "reversed")


def lay_out(backend, array, layout):
    """Return a device array of the values of a host array whose memory lies in an unusual way."""
    xp = backend.xp
    device = backend.asarray(array)
    if layout == "nchw":
        return device
    if layout == "chwn":
        view = xp.empty((*array.shape[1:], array.shape[0]), device.dtype)
        view = view.transpose(array.ndim - 1, *range(array.ndim - 1))
    else:
        buffer = xp.empty(tuple(2 * size + 1 for size in array.shape), device.dtype)
        buffer.fill(np.nan if array.dtype.kind == "f" else 99)  # what lies between must never be read
        step = 2 if layout == "strided" else -2
        view = buffer[tuple(slice(1, None, 2) if step > 0 else slice(2 * size - 1, None, -2) for size in array.shape)]
    view[...] = device
    return view


def pairs(values):
    """Draw (height, width), now and then as one number where both are equal."""
    return st.one_of(st.tuples(values, values), values)


def both(size):
    return (size, size) if isinstance(size, int) else size


@dataclass
class Case:
    """One call of a windowed operation; `options` are its keyword arguments."""

    x_shape: tuple[int, ...]
    kernel: Any
    options: dict[str, Any]
    layout: str
    dtype: str
    seed: int
    weight_shape: tuple[int, ...] = ()
    bias: bool = False

    def rng(self):
        return np.random.default_rng(self.seed)


seeds = st.integers(0, 2**16)
layouts = st.sampled_from(LAYOUTS)
dtypes = st.sampled_from(["float32", "float64"])


@st.composite
def image_sizes(draw, kernel, padding, dilation, most=4):
    """Draw (H, W) on which at least one window fits."""
    sides = [(0, 0), (0, 0)] if isinstance(padding, str) else [both(side) for side in both(padding)]
    sizes = []
    for side, k, d in zip(sides, both(kernel), both(dilation), strict=True):
        extent = d * (k - 1) + 1
        least = 1 if padding == "same" else max(1, extent - sum(side))
        sizes.append(draw(st.integers(least, least + most)))
    return tuple(sizes)


@st.composite
def convolutions(draw):
    """Draw a convolution of any geometry."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(pairs(st.integers(1, 2)))
    ends = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = draw(st.one_of(pairs(st.integers(0, 2)), st.tuples(ends, ends), st.sampled_from(["same", "valid"])))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, filters = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = draw(image_sizes(kernel, padding, dilation))
    return Case(
        x_shape=(draw(st.integers(1, 3)), groups * channels, *size),
        weight_shape=(groups * filters, channels, *kernel),
        kernel=kernel,
        bias=draw(st.booleans()),
        options={"stride": draw(pairs(st.integers(1, 3))), "padding": padding, "dilation": dilation, "groups": groups},
        layout=draw(layouts),
        dtype=draw(dtypes),
        seed=draw(seeds),
    )


@st.composite
def transposed_convolutions(draw, symmetric=False):
    """Draw a transposed convolution of any geometry that leaves a pixel; padding on both sides alike if asked."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation = draw(pairs(st.integers(1, 3))), draw(pairs(st.integers(1, 2)))
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(both(stride), both(dilation), strict=True))
    sides = []
    for n, k, s, d, e in zip(size, kernel, both(stride), both(dilation), extra, strict=True):
        room = (n - 1) * s + d * (k - 1) + e  # one pixel less than the unpadded result
        before = draw(st.integers(0, min(2, room // 2)))
        sides.append((before, before if symmetric else draw(st.integers(0, min(2, room - before)))))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, filters = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(before for before, _ in sides) if symmetric else tuple(sides)
    options = {"stride": stride, "padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation}
    return Case(
        x_shape=(draw(st.integers(1, 3)), groups * channels, *size),
        weight_shape=(groups * channels, filters, *kernel),
        kernel=kernel,
        bias=draw(st.booleans()),
        options=options,
        layout=draw(layouts),
        dtype=draw(dtypes),
        seed=draw(seeds),
    )


@st.composite
def poolings(draw, dilated=False):
    """Draw a pooling of any geometry; its padding is smaller than its (dilated) kernel."""
    kernel = draw(pairs(st.integers(1, 3)))
    dilation = draw(pairs(st.integers(1, 2))) if dilated else 1
    widths = [d * (k - 1) for k, d in zip(both(kernel), both(dilation), strict=True)]  # the most that one side may have
    ends = st.tuples(*(st.tuples(st.integers(0, width), st.integers(0, width)) for width in widths))
    symmetric = st.tuples(*(st.integers(0, width) for width in widths))
    padding = draw(st.one_of(st.just(0), symmetric, ends, st.sampled_from(["same", "valid"])))
    size = draw(image_sizes(kernel, padding, dilation))
    options = {
        "stride": draw(st.one_of(st.none(), pairs(st.integers(1, 3)))),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
    }
    if dilated:
        options["dilation"] = dilation
    else:
        options["count_include_pad"] = draw(st.booleans())
    return Case(
        x_shape=(draw(st.integers(1, 3)), draw(st.integers(1, 3)), *size),
        kernel=kernel,
        options=options,
        layout=draw(layouts),
        dtype=draw(dtypes),
        seed=draw(seeds),
    )


@st.composite
def windows(draw):
    """Draw an im2col of any geometry."""
    case = draw(convolutions())
    del case.options["groups"]
    return case


def values(rng, shape, dtype="float64"):
    """Return standard normal numbers."""
    return rng.normal(size=shape).astype(dtype)


def distinct(rng, shape, dtype="float64"):
    """Return numbers at least 0.1 apart, so that small steps change no maximum."""
    return (rng.permutation(int(np.prod(shape))).reshape(shape) * 0.1 - 1.0).astype(dtype)
