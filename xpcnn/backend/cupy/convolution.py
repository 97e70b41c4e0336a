"""Convolution without columns in memory, by the kernels of `convolution.cu`, where `implicit_gemm` is switched on.

im2col writes and reads KH*KW times the image; here a block gathers what its tile needs from the image itself. What is
a bare product already, a pointwise convolution or one window over the whole image, stays cuBLAS's, and so do groups.
float16, and float32 with `allow_tf32`, is multiplied on tensor cores.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from xpcnn.backend.base import Array
from xpcnn.backend.cupy.fused import blocks, fits, fits_shape, fused
from xpcnn.windows import Axis, Windows

FILE = "convolution.cu"
TENSOR_CORES = ("-DTENSOR_CORES",)
DEPTH = 8  # inner indices of a slice, as in convolution.cu
BLOCKS_EACH = 2  # blocks that a multiprocessor should have of dW
SHARE_SLICES = 32  # and how many slices a block of it sums up at least
AXIS = np.dtype(
    [
        (name, np.int32)
        for name in [
            "size",
            "windows",
            "stride",
            "taps",
            "step",
            "start",
            "filter_start",
            "filter_step",
            "out_size",
            "out_start",
            "out_stride",
        ]
    ]
)
CONVOLUTION = np.dtype(
    [("h", AXIS), ("w", AXIS)]
    + [(name, np.int32) for name in ["inputs", "outputs", "batch", "kernel_w", "output_step", "input_step"]]
)


class Tile(NamedTuple):
    """The part of a product that a block makes, and the part of that which one of its 256 threads makes."""

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int

    @property
    def defines(self) -> tuple[str, ...]:
        """Return the options with which the kernels are compiled for it."""
        return tuple(f"-D{name.upper()}={value}" for name, value in zip(self._fields, self, strict=True))

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many tiles cover a matrix, (across, down)."""
        return -(-columns // self.columns), -(-rows // self.rows)


# Rows are filters or channels, of which there are few; columns are the pixels of a batch.
TILES = (Tile(128, 128, 8, 8), Tile(64, 128, 4, 8), Tile(32, 128, 4, 4), Tile(16, 256, 4, 4))


@functools.lru_cache(maxsize=1024)
def choose(rows: int, columns: int, multiprocessors: int) -> Tile:
    """Return the tile that should make a (rows, columns) matrix first: a model, which no GPU has confirmed.

    The device does its blocks in waves, one a multiprocessor, each in a time that goes with the tile's multiply-adds
    and with the reads of shared memory that a thread needs for them.
    """

    def cost(tile: Tile) -> float:
        across, down = tile.grid(rows, columns)
        reads = 1 / tile.thread_rows + 1 / tile.thread_columns
        return -(-across * down // multiprocessors) * tile.rows * tile.columns * (1 + reads)

    return min(TILES, key=cost)


# --- forward and dx ---------------------------------------------------------------------------------------------------


def forward_axis(axis: Axis) -> tuple[int, ...]:
    """Return one direction of the forward, as the kernels' struct Axis."""
    return axis.size, axis.out, axis.stride, axis.kernel, axis.dilation, -axis.before, 0, 1, axis.out, 0, 1


def gradient_axes(axis: Axis) -> list[tuple[bool, tuple[int, ...]]]:
    """Return one direction of dx for the pixels of each residue by the stride: whether any tap meets them, struct Axis.

    Pixel residue + i*stride meets tap k where residue + before - k*dilation is a multiple of the stride, and then
    output i + that multiple: a gather over dy with stride 1. No product is made with the zeros between the windows.
    """
    axes: list[tuple[bool, tuple[int, ...]]] = []
    for residue in range(min(axis.stride, axis.size)):
        pixels = -(-(axis.size - residue) // axis.stride)
        taps = [k for k in range(axis.kernel) if (residue + axis.before - k * axis.dilation) % axis.stride == 0]
        first = taps[0] if taps else 0
        every = taps[1] - first if len(taps) > 1 else 1
        start = (residue + axis.before - first * axis.dilation) // axis.stride
        step = -every * axis.dilation // axis.stride
        gather = axis.out, pixels, 1, max(1, len(taps)), step, start
        axes.append((bool(taps), (*gather, first, every, axis.size, residue, axis.stride)))
    return axes


@functools.lru_cache(maxsize=1024)
def forward_shape(weight: tuple[int, ...], windows: Windows, batch: int) -> np.ndarray[Any, Any]:
    """Return the forward with weights (F, C, KH, KW) as the kernels' struct Convolution."""
    f, c, kh, kw = weight
    h, w = forward_axis(windows.h), forward_axis(windows.w)
    return np.array([(h, w, c, f, batch, kw, c * kh * kw, kh * kw)], CONVOLUTION)


@functools.lru_cache(maxsize=1024)
def gradient_shapes(weight: tuple[int, ...], windows: Windows, batch: int) -> list[np.ndarray[Any, Any]]:
    """Return the parts of dx as structs Convolution: every pair of residues by the strides."""
    f, c, kh, kw = weight
    parts = []
    for h_meets, h in gradient_axes(windows.h):
        for w_meets, w in gradient_axes(windows.w):
            inputs = f if h_meets and w_meets else 0  # a sum of nothing: zeros
            parts.append(np.array([(h, w, inputs, c, batch, kw, kh * kw, c * kh * kw)], CONVOLUTION))
    return parts


def takes(backend: Any, windows: Windows, groups: int, *arrays: Array) -> bool:
    """Whether the kernels are switched on, and can do this one."""
    return (
        backend.implicit_gemm
        and groups == 1
        and not (windows.is_pointwise or windows.is_whole)
        and (arrays[0].dtype == np.float32 or (arrays[0].dtype == np.float16 and backend.compute_capability >= (8, 0)))
        and fits(*arrays)
    )


def kernels_for(backend: Any, tile: Tile, dtype: np.dtype[Any]) -> Any:
    """Return the kernels for a tile: on tensor cores for float16, and where float32 may be rounded to TF32."""
    rounds = dtype == np.float16 or backend.allow_tf32
    return backend.kernels.variant(FILE, (*tile.defines, *(TENSOR_CORES if rounds else ())))


def extents(shape: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    """Return the rows, the columns and the inner dimension of a product."""
    found = shape[0]
    h, w = found["h"], found["w"]
    columns, depth = h["windows"] * w["windows"] * found["batch"], found["inputs"] * h["taps"] * w["taps"]
    return int(found["outputs"]), int(columns), int(depth)


def convolve(
    backend: Any, x: Array, weight: Array, bias: Array | None, shape: Any, y: Array, sums: Array | None = None
) -> None:
    """Launch a forward, or a part of dx; fill `sums` (F, 1, 2) with those of `conv2d_sums`."""
    rows, columns, _ = extents(shape)
    tile = choose(rows, columns, backend.multiprocessors)
    across, down = tile.grid(rows, columns)
    kernels = kernels_for(backend, tile, x.dtype)
    moments = None if sums is None else backend.empty((rows, across, 2), np.float64)
    kernels.launch("convolve", x.dtype, (across, down), x, weight, bias, shape, y, moments)
    if sums is not None:
        kernels.launch("merge_moments", x.dtype, (rows,), moments, y, across, columns, sums)


@fused
def conv2d_forward(
    backend: Any,
    x: Array,
    weight: Array,
    bias: Array | None,
    windows: Windows,
    groups: int,
    packed: dict[str, Array] | None = None,
) -> Any:
    """Return y (F, OH, OW, N) for x (C, H, W, N)."""
    result = forward(backend, x, weight, bias, windows, groups)
    return result if result is NotImplemented else result[0]


@fused
def conv2d_sums(backend: Any, x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Any:
    """Return y (F, OH, OW, N) for x (C, H, W, N), and (F, 1, 2) sums of a channel's y - y_0 and of its square."""
    return forward(backend, x, weight, bias, windows, groups, with_sums=True)


def forward(
    backend: Any,
    x: Array,
    weight: Array,
    bias: Array | None,
    windows: Windows,
    groups: int,
    with_sums: bool = False,
) -> Any:
    """Return y and, `with_sums`, what `conv2d_sums` returns."""
    given = [x, weight] if bias is None else [x, weight, bias]
    shape = (weight.shape[0], *windows.out, x.shape[3])
    if not takes(backend, windows, groups, *given) or not fits_shape(shape):
        return NotImplemented
    y = backend.empty(shape, x.dtype)
    sums = backend.empty((shape[0], 1, 2), np.float64) if with_sums else None
    convolve(backend, x, weight, bias, forward_shape(tuple(weight.shape), windows, x.shape[3]), y, sums)
    return y, sums


@fused
def conv2d_input_gradient(backend: Any, dy: Array, weight: Array, windows: Windows, groups: int) -> Any:
    """Return dx (C, H, W, N) for dy (F, OH, OW, N)."""
    shape = (weight.shape[1], windows.h.size, windows.w.size, dy.shape[3])
    if not takes(backend, windows, groups, dy, weight) or not fits_shape(shape):
        return NotImplemented
    dx = backend.empty(shape, dy.dtype)
    for part in gradient_shapes(tuple(weight.shape), windows, dy.shape[3]):
        convolve(backend, dy, weight, None, part, dx)
    return dx


# --- dW ---------------------------------------------------------------------------------------------------------------


@fused
def conv2d_gradients(
    backend: Any,
    dy: Array,
    x: Array,
    weight: Array,
    windows: Windows,
    groups: int,
    has_bias: bool = False,
    input_gradient: bool = True,
    dweight: Array | None = None,
    dbias: Array | None = None,
) -> Any:
    """Return dx (C, H, W, N) or None, dweight and dbias or None for dy (F, OH, OW, N)."""
    if not takes(backend, windows, groups, dy, x, weight, *([] if dweight is None else [dweight])):
        return NotImplemented
    dx = conv2d_input_gradient(backend, dy, weight, windows, groups) if input_gradient else None
    if dx is NotImplemented:
        return NotImplemented
    if dweight is None:
        dweight = backend.empty(weight.shape, weight.dtype)
    shape = forward_shape(tuple(weight.shape), windows, x.shape[3])
    filters, positions = dy.shape[0], dy.size // dy.shape[0]
    tile, shares, share = split(filters, weight.size // filters, positions, backend.multiprocessors)
    across, down = tile.grid(filters, weight.size // filters)
    is_sum = shares == 1 and weight.dtype == np.float32
    parts = dweight if is_sum else backend.empty((shares, *weight.shape), np.float32)
    kernels = kernels_for(backend, tile, x.dtype)
    kernels.launch("weight_gradient", x.dtype, (across * shares, down), dy, x, shape, share, parts)
    if not is_sum:
        kernels.launch("add_shares", x.dtype, blocks(weight.size), parts, shares, weight.size, dweight)
    db = backend.row_sums(dy.reshape(filters, -1), out=dbias) if has_bias else None
    return dx, dweight, db


@functools.lru_cache(maxsize=1024)
def split(filters: int, taps: int, positions: int, multiprocessors: int) -> tuple[Tile, int, int]:
    """Return the tile for dW (F, K), into how many shares to cut its sum over `positions`, and how long each is.

    dW is small: its tiles alone would leave most of the device idle.
    """
    tile = choose(filters, taps, 1)
    across, down = tile.grid(filters, taps)
    slices = -(-positions // DEPTH)
    shares = max(1, min(-(-BLOCKS_EACH * multiprocessors // (across * down)), slices // SHARE_SLICES))
    share = -(-slices // shares)
    return tile, -(-slices // share), share * DEPTH
