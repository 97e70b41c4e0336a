"""The primitives of `functional/` as CUDA kernels: the same names, arguments and results as the portable ones.

Each returns NotImplemented for what its kernel does not do (a dtype, a layout, a size); `functional/primitive.py`
then takes the portable body.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpcnn.backend.base import Array
from xpcnn.backend.cupy.kernels import BLOCK, COMPUTED, GEOMETRY, INDEX_LIMIT, TYPES

ROWS_LIMIT = 65535  # the second axis of a grid
PARTS_LIMIT = 64  # partial sums of a loss, which one thread adds up

FUSED: dict[str, Callable[..., Any]] = {}


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter `function` in the table under its name."""
    FUSED[function.__name__] = function
    return function


def fits(*stored: Array, computed: Sequence[Array] = ()) -> bool:
    """Whether a kernel can take these: one dtype that there are kernels for, C-contiguous, not too large to count.

    `computed` are of the type that the kernel computes in: float32 where what is `stored` is float16.
    """
    arrays = *stored, *computed
    dtype = arrays[0].dtype
    if dtype.char not in TYPES or any(array.dtype.char != COMPUTED[dtype.char] for array in computed):
        return False
    return all(array.dtype == dtype for array in stored) and all(
        array.flags.c_contiguous and 0 < array.size < INDEX_LIMIT for array in arrays
    )


def fits_shape(shape: Sequence[int]) -> bool:
    """Whether every kernel can count the numbers of an array (C, ..., N), and its rows."""
    return shape[0] <= ROWS_LIMIT and 0 < math.prod(shape) < INDEX_LIMIT


def blocks(size: int) -> tuple[int]:
    """Return the grid that gives each of `size` numbers a thread."""
    return (-(-size // BLOCK),)


@functools.lru_cache(maxsize=1024)
def geometry(shape: tuple[int, ...], over: Any, first_row: int, rows: int) -> np.ndarray[Any, Any]:
    """Return the windows `over` images of `shape` (C, H, W, N) as the kernels' struct Geometry."""
    h, w = over.h, over.w
    values = (*shape, h.kernel, w.kernel, h.stride, w.stride, h.dilation, w.dilation, h.before, w.before)
    return np.array([(*values, first_row, rows, w.out)], GEOMETRY)  # an array of one goes to a kernel by value


# --- columns ----------------------------------------------------------------------------------------------------------


@fused
def fill_columns(backend: Any, x: Array, over: Any, rows: range, cols: Array) -> Any:
    """Fill cols (C, KH, KW, R, OW, N) from x (C, H, W, N)."""
    if not fits(x, cols):
        return NotImplemented
    shape = geometry(tuple(x.shape), over, rows.start, len(rows))
    threads = x.shape[0] * len(rows) * over.w.out * x.shape[3]
    backend.kernels.launch("fill_columns", x.dtype, blocks(threads), x, shape, cols)
    return None


@fused
def add_columns(backend: Any, cols: Array, over: Any, rows: range, dx: Array) -> Any:
    """Add cols (C, KH, KW, R, OW, N) to dx (C, H, W, N)."""
    if not fits(cols, dx):
        return NotImplemented
    shape = geometry(tuple(dx.shape), over, rows.start, len(rows))
    backend.kernels.launch("add_columns", dx.dtype, blocks(dx.size), cols, shape, dx, 1)
    return None


@fused
def collect_columns(backend: Any, cols: Array, over: Any, dx: Array) -> Any:
    """Fill dx (C, H, W, N) with the sums of cols (C, KH, KW, OH, OW, N)."""
    if not fits(cols, dx):
        return NotImplemented
    shape = geometry(tuple(dx.shape), over, 0, over.h.out)
    backend.kernels.launch("add_columns", dx.dtype, blocks(dx.size), cols, shape, dx, 0)
    return None


# --- elementwise, bias, sums of rows ----------------------------------------------------------------------------------


@fused
def add_bias(backend: Any, y: Array, bias: Array) -> Any:
    """Add bias (F,) to y (F, ..., N), whose rows may be part of longer ones."""
    if not fits(bias) or y.dtype != bias.dtype or not 0 < y.size < INDEX_LIMIT or not y[0].flags.c_contiguous:
        return NotImplemented
    pitch = y.strides[0] // y.itemsize
    if y.shape[0] * pitch >= INDEX_LIMIT:
        return NotImplemented
    inner = y.size // y.shape[0]
    backend.kernels.launch("add_bias", y.dtype, blocks(y.size), y, bias, y.shape[0], inner, pitch)
    return None


@fused
def relu_forward(backend: Any, x: Array, out: Array) -> Any:
    """Fill `out` with max(x, 0)."""
    if not fits(x, out):
        return NotImplemented
    backend.kernels.launch("relu_forward", x.dtype, blocks(x.size), x, out, x.size)
    return None


@fused
def relu_backward_from(backend: Any, dy: Array, y: Array, out: Array) -> Any:
    """Fill `out` with dy where y is not 0."""
    if not fits(dy, y, out):
        return NotImplemented
    backend.kernels.launch("relu_backward_from", dy.dtype, blocks(dy.size), dy, y, out, dy.size)
    return None


def segments(backend: Any, rows: int, columns: int) -> int:
    """Return into how many blocks to cut a row, so that all rows fill the device: 8 blocks a multiprocessor."""
    return int(max(1, min(-(-8 * backend.multiprocessors // rows), columns // (4 * BLOCK), BLOCK)))


def row_sums(backend: Any, a: Array, b: Array | None, out: Array | None = None) -> Any:
    """Return the sums of the rows of `a` (rows, n), or of a * b, in `out` (rows,) where given."""
    given = [array for array in (a, b, out) if array is not None]
    if not fits(*given) or a.shape[0] > ROWS_LIMIT:
        return NotImplemented
    rows, columns = a.shape
    cut = segments(backend, rows, columns)
    if out is None:
        out = backend.empty((rows,), a.dtype)
    partial = backend.empty((rows, cut), np.float64) if cut > 1 else None
    backend.kernels.launch("row_sums", a.dtype, (cut, rows), a, b, partial, out, columns)
    if partial is not None:
        backend.kernels.launch("finish_rows", a.dtype, blocks(rows), partial, out, rows, cut)
    return out


# --- max-pooling ------------------------------------------------------------------------------------------------------


@fused
def max_pool_forward(backend: Any, x: Array, over: Any, out: Array, keep: bool, rectify: bool = False) -> Any:
    """Fill out (C, OH, OW, N) with the maxima over x (C, H, W, N), or those above 0; return the winning taps."""
    if not fits(x, out) or math.prod(over.kernel) > 255:
        return NotImplemented
    winner = backend.empty(out.shape, np.uint8) if keep else None
    shape = geometry(tuple(x.shape), over, 0, over.h.out)
    backend.kernels.launch("max_pool_forward", x.dtype, blocks(out.size), x, shape, out, winner, int(rectify))
    return winner


@fused
def max_pool_backward_from(
    backend: Any, dy: Array, winner: Array, over: Any, out: Array, y: Array | None = None
) -> Any:
    """Fill out (C, H, W, N) with dy (C, OH, OW, N) sent back to the winners, where y, if given, is not 0."""
    if winner.dtype != np.uint8:  # the forward was the portable one
        return NotImplemented
    if not fits(dy, out):  # which cannot read what the kernel's forward left
        dy, target = backend.contiguous(dy), backend.empty(out.shape, out.dtype)
    else:
        target = out
    shape = geometry(tuple(out.shape), over, 0, over.h.out)
    backend.kernels.launch("max_pool_backward_from", dy.dtype, blocks(out.size), dy, y, winner, shape, target)
    if target is not out:
        out[...] = target
    return None


# --- batch norm -------------------------------------------------------------------------------------------------------


@fused
def batch_norm_train(
    backend: Any,
    x: Array,
    gamma: Array,
    beta: Array,
    eps: float,
    out: Array,
    running: tuple[Array, Array] | None = None,
    momentum: float = 0.0,
    other: Array | None = None,
    rectify: bool = False,
    sums: Array | None = None,
) -> Any:
    """Fill out (C, n) with the normalised x (C, n); return centre, offset, variance and 1/sqrt(variance + eps).

    `sums` (C, 1, 2) are those of x - x_0 and of its square, where `conv2d_sums` has left them.
    """
    given = [x, out] if other is None else [x, out, other]
    if not fits(*given, computed=(gamma, beta, *(running or ()))) or x.shape[0] > ROWS_LIMIT:
        return NotImplemented
    channels, n = x.shape
    cut = segments(backend, channels, n)
    results = [backend.empty((channels,), gamma.dtype) for _ in range(4)]
    launch = backend.kernels.launch
    if sums is None:
        sums = backend.empty((channels, cut, 2), np.float64)
        launch("batch_norm_sums", x.dtype, (cut, channels), x, sums, n)
    settings = (None, None, 0.0, 0.0) if running is None else (*running, momentum, n / (n - 1))
    arrays = x, gamma, beta, float(eps), sums, n, sums.shape[1], other, int(rectify), out, *results, *settings
    launch("batch_norm_train", x.dtype, (cut, channels), *arrays)
    return tuple(results)


@fused
def batch_norm_train_backward(
    backend: Any,
    dy: Array,
    x: Array,
    centre: Array,
    offset: Array,
    scale: Array,
    gamma: Array,
    out: Array,
    dgamma: Array,
    dbeta: Array,
    y: Array | None = None,
    passed: Array | None = None,
) -> Any:
    """Fill out (C, n) with dx, and dgamma and dbeta (C,)."""
    given = [array for array in (dy, x, out, y, passed) if array is not None]
    if not fits(*given, computed=(centre, offset, scale, gamma, dgamma, dbeta)) or x.shape[0] > ROWS_LIMIT:
        return NotImplemented
    channels, n = x.shape
    cut = segments(backend, channels, n)
    partial = backend.empty((channels, cut, 2), np.float64)
    launch = backend.kernels.launch
    launch("batch_norm_backward_sums", x.dtype, (cut, channels), dy, x, y, centre, offset, passed, partial, n)
    if passed is not None:  # dy as ReLU has left it
        dy, y = passed, None
    arrays = dy, x, y, centre, offset, scale, gamma, partial
    launch("batch_norm_train_backward", x.dtype, (cut, channels), *arrays, n, cut, out, dgamma, dbeta)
    return None


# --- dropout ----------------------------------------------------------------------------------------------------------


@fused
def dropout_forward(backend: Any, x: Array, p: float, key: Array, first: int, out: Array) -> Any:
    """Fill `out` with x / (1 - p) where an element is kept and 0 elsewhere; return the mask of the kept."""
    if not fits(x, out):
        return NotImplemented
    kept = backend.empty(x.shape, np.bool_)
    threshold = np.uint32(min(int(p * 2**32), 2**32 - 1))
    settings = key, np.uint32(first & 0xFFFFFFFF), threshold, 1.0 / (1.0 - p)
    backend.kernels.launch("dropout_forward", x.dtype, blocks(x.size), x, *settings, out, kept, x.size)
    return kept


@fused
def apply_mask(backend: Any, values: Array, kept: Array, p: float, out: Array) -> Any:
    """Fill `out` with values / (1 - p) where `kept`, else 0."""
    if not fits(values, out) or not kept.flags.c_contiguous:
        return NotImplemented
    size = values.size
    backend.kernels.launch("apply_mask", out.dtype, blocks(size), values, kept, 1.0 / (1.0 - p), out, size)
    return None


# --- softmax cross-entropy --------------------------------------------------------------------------------------------


@fused
def softmax_cross_entropy(backend: Any, logits: Array, target: Array, scale: float) -> Any:
    """Return the loss, 0-d, and its gradient (K, N), both times `scale`."""
    if not fits(computed=(logits, target)):
        return NotImplemented
    return _cross_entropy(backend, logits, target, None, (0.0, 0.0), scale)


@fused
def class_cross_entropy(
    backend: Any, logits: Array, labels: Array, label_smoothing: float, scale: float, error: Exception
) -> Any:
    """Return the loss and its gradient for class numbers (N,)."""
    if not fits(computed=(logits,)) or not labels.flags.c_contiguous:
        return NotImplemented
    shares = 1.0 - label_smoothing, label_smoothing / logits.shape[0]
    return _cross_entropy(backend, logits, None, labels, shares, scale, backend.demand_flag(error))


def _cross_entropy(
    backend: Any,
    logits: Array,
    target: Array | None,
    labels: Array | None,
    shares: tuple[float, float],
    scale: float,
    holds: Array | None = None,
) -> tuple[Array, Array]:
    loss, dlogits = backend.empty((), logits.dtype), backend.empty(logits.shape, logits.dtype)
    cut = min(*blocks(logits.shape[1]), PARTS_LIMIT)
    partial = backend.empty((cut,), np.float64) if cut > 1 else None
    arguments = target, *class_bytes(labels), *shares, float(scale), *logits.shape, partial, loss, dlogits, holds
    backend.kernels.launch("softmax_cross_entropy", logits.dtype, (cut,), logits, *arguments)
    if partial is not None:
        backend.kernels.launch("finish_rows", logits.dtype, (1,), partial, loss, 1, cut)
    return loss, dlogits


def class_bytes(labels: Array | None) -> tuple[Array | None, int]:
    """Return class numbers as the kernels take them, whatever their dtype: bytes, and how many make one."""
    return (None, 1) if labels is None else (labels.view(np.uint8), labels.itemsize)
