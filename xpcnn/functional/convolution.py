"""2-D convolution: columns times weights, and the same two matrices for its gradients.

With X the columns of the image and W the weights as (F, C*KH*KW):

    Y = W X + b        dW = dY X^T        db = sum of dY over columns        dX = W^T dY, then col2im

The image is cut into tiles of output rows: each thread lowers a tile into a buffer that it keeps and multiplies it
while it is in the cache (`tiles.py`), so the whole column matrix never exists. dX has quicker ways than that
(`input_gradient.py`), and large 3x3 convolutions go through `winograd.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.backend.spans import spans
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import winograd
from xpcnn.functional.bias import channel_sums
from xpcnn.functional.input_gradient import input_tasks
from xpcnn.functional.layout import batch_first, batch_last, check_floating, check_like, check_ndim
from xpcnn.functional.precision import cast, cast_all, cast_batch, goes_through_float32, is_narrow
from xpcnn.functional.tiles import Task, Tiles, forward_tasks, weight_factor
from xpcnn.windows import Padding, Size, Windows, integer, windows


class ConvCache(NamedTuple):
    """What `conv2d` keeps for its backward: the batch-last input (C, H, W, N), the weights and the geometry."""

    x: Array
    weight: Array
    has_bias: bool
    over: Windows
    groups: int


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> tuple[Array, ConvCache]:
    """Correlate images with filters: y[n,f,i,j] = b[f] + sum over c,k,l of w[f,c,k,l] x[n,c,i*s+k*d-p,j*s+l*d-p].

    Parameters
    ----------
    x : array (N, C, H, W), floating
    weight : array (F, C/groups, KH, KW), dtype of `x`
    bias : array (F,), dtype of `x`, optional
    stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)), "same" (output = ceil(input / stride)) or "valid"
    groups : int
        Group g of the filters sees group g of the channels only; it divides C and F.

    Returns
    -------
    y : array (N, F, OH, OW), dtype of `x`
    cache
        For `conv2d_backward`.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        Shapes do not fit, types are not floating or differ, arrays lie on two backends.

    References
    ----------
    LeCun et al. 1998, Gradient-based learning applied to document recognition, section II.
    """
    backend = backend_of(x, weight, bias)
    over = _check(x, weight, bias, stride, padding, dilation, groups)
    images, groups = batch_last(backend, x), int(groups)  # (C, H, W, N)
    if goes_through_float32(backend, x):
        arrays = batch_first(cast(backend, images, "float32")), *cast_all(backend, (weight, bias), "float32")
        y, _ = conv2d(*arrays, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return cast_batch(backend, y, x.dtype), ConvCache(images, weight, bias is not None, over, groups)
    y = _forward(backend, images, weight, bias, over, groups)
    return batch_first(y), ConvCache(images, weight, bias is not None, over, groups)


def _forward(
    backend: Backend,
    x: Array,
    weight: Array,
    bias: Array | None,
    over: Windows,
    groups: int,
    factor: Array | None = None,
) -> Array:
    """Return y (F, OH, OW, N) for x (C, H, W, N)."""

    def convolve(backend: Backend, x: Array, weight: Array, bias: Array | None, factor: Array | None) -> Array:
        y = backend.empty((weight.shape[0], *over.out, x.shape[3]), x.dtype)
        tasks = forward_tasks(backend, x, weight, bias, over, groups, y, factor)
        backend.parallel(_run, tasks, _work(weight, over, x.shape[3]))
        return y

    key = "conv2d", over, groups, *_tiling(backend)
    return backend.planned(key, convolve, x, weight, bias, factor)


class FixedConvolution:
    """`conv2d` with weights that never change: they are brought once to the form in which the product takes them.

    Arguments are those of `conv2d`; calling the object with x gives y.
    """

    def __init__(self, weight: Array, bias: Array | None = None, **geometry: Any) -> None:
        self.weight, self.bias = weight, bias
        self.geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | geometry
        self._backend = backend_of(weight)
        self._factors: dict[str, Array] = {}

    def __call__(self, x: Array) -> Array:
        """Return y (N, F, OH, OW) for x (N, C, H, W)."""
        backend = backend_of(x, self.weight)
        over = _check(x, self.weight, self.bias, **self.geometry)
        groups = self.geometry["groups"]
        form, make = weight_factor(self._backend, self.weight, over, groups, x.shape[0])
        if form not in self._factors:  # made outside of a record, which then holds the result alone
            self._factors[form] = make()
        images = batch_last(backend, x)  # (C, H, W, N)
        return batch_first(_forward(backend, images, self.weight, self.bias, over, groups, self._factors[form]))


def conv2d_backward(
    dy: Array, cache: ConvCache, *, input_gradient: bool = True, weight_gradient: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `conv2d`.

    Parameters
    ----------
    dy : array (N, F, OH, OW), dtype of the forward's `x`
    cache
        From `conv2d`.
    input_gradient : bool
        False leaves `dx` out (None), as the first layer of a network may.
    weight_gradient : bool
        False leaves `dweight` and `dbias` out (None), as a frozen layer may.

    Returns
    -------
    dx : array (N, C, H, W) or None
    dweight : array (F, C/groups, KH, KW) or None
    dbias : array (F,), or None where `bias` was

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `dy` does not fit what the forward returned.
    """
    x, weight, has_bias, over, groups = cache
    backend = backend_of(dy, x)
    n = x.shape[3]
    check_like("dy", dy, (n, weight.shape[0], *over.out), x.dtype)
    if goes_through_float32(backend, x):
        kept = cache._replace(x=cast(backend, x, "float32"), weight=cast(backend, weight, "float32"))
        dx, *rest = conv2d_backward(
            cast_batch(backend, dy, "float32"), kept, input_gradient=input_gradient, weight_gradient=weight_gradient
        )
        dweight, dbias = cast_all(backend, rest, x.dtype)
        return None if dx is None else cast_batch(backend, dx, x.dtype), dweight, dbias

    if not (input_gradient or weight_gradient):
        return None, None, None

    def gradients(backend: Backend, dy: Array, x: Array, weight: Array) -> tuple[Array | None, ...]:
        dx = backend.empty(x.shape, x.dtype) if input_gradient else None
        if not weight_gradient:
            backend.parallel(_run, input_tasks(backend, dy, weight, over, groups, dx), _work(weight, over, n))
            return batch_first(dx), None, None
        turned = winograd.gradient_windows(backend, weight, over, groups, n)
        if turned is not None:
            tasks, collect = winograd.gradient_tasks(backend, dy, x, weight, turned, dx)
        else:
            tasks, collect = _weight_tasks(backend, dy, x, weight, over, groups)
            if dx is not None:
                tasks = input_tasks(backend, dy, weight, over, groups, dx) + tasks
        sums: Any = [], lambda: None
        if has_bias:
            sums = _bias_tasks(backend, dy)
        backend.parallel(_run, tasks + sums[0], (1 + input_gradient) * _work(weight, over, n))
        return (None if dx is None else batch_first(dx)), collect(), sums[1]()

    key = "conv2d_backward", over, groups, has_bias, input_gradient, weight_gradient, *_tiling(backend)
    result: tuple[Array | None, Array | None, Array | None] = backend.planned(
        key, gradients, batch_last(backend, dy), x, weight
    )
    return result


def _tiling(backend: Backend) -> tuple[Any, ...]:
    """Return what else than its arguments decides how a convolution is cut up."""
    return backend.column_bytes, backend.slab_bytes, backend.stacks_rows, backend.winograd_channels, winograd.enabled


def _run(task: Task) -> None:
    task()


def _work(weight: Array, over: Windows, n: int) -> float:
    """Return the cost in elementary operations; a product does about eight multiply-adds in the time of one."""
    return float(weight.size) * over.h.out * over.w.out * n / 8


def _check(
    x: Array, weight: Array, bias: Array | None, stride: Size, padding: Padding, dilation: Size, groups: int
) -> Windows:
    check_ndim("x", x, "N, C, H, W")
    check_floating("x", x)
    check_ndim("weight", weight, "F, C/groups, KH, KW")
    if not x.shape[0]:
        raise ShapeError(f"x: expected at least one image, got shape {tuple(x.shape)}")
    c, f = x.shape[1], weight.shape[0]
    if c % integer("groups", groups, 1) or f % groups:
        raise ShapeError(f"groups: expected a divisor of {c} channels and {f} filters, got {groups}")
    if weight.shape[1] * groups != c:
        raise ShapeError(
            f"x: expected {weight.shape[1] * groups} channels for weight {tuple(weight.shape)} and groups={groups}, "
            f"got {c} in shape {tuple(x.shape)}; images are (N, C, H, W)"
        )
    if weight.dtype != x.dtype:
        raise DTypeError(f"weight: expected the dtype of x, {x.dtype}, got {weight.dtype}; convert one of them")
    if bias is not None:
        check_like("bias", bias, (f,), x.dtype)
    return windows(x.shape[2:], weight.shape[2:], stride=stride, padding=padding, dilation=dilation)


# --- dW = dY X^T ------------------------------------------------------------------------------------------------------


def _weight_tasks(
    backend: Backend, dy: Array, x: Array, weight: Array, over: Windows, groups: int
) -> tuple[list[Task], Callable[[], Array]]:
    """Return one task per tile, and what adds the tiles' shares up in their order."""
    tiles = Tiles(backend, x, over, groups)
    steps = list(tiles)
    shares: list[Array] = [None] * len(steps)

    def tile(index: int) -> None:
        rows = steps[index]
        cols = tiles.lower(rows)
        grad = tiles.result(dy, rows)
        if not tiles.stacked:
            cols, grad = cols[:, None], grad[:, None]  # (G, 1, K, R*OW*N), (G, 1, F/G, R*OW*N)
        shares[index] = backend.outer_sum(cols, grad)  # (G, K, F/G)

    def collect() -> Array:
        total = shares[0]
        if is_narrow(total.dtype) and len(shares) > 1:
            total = cast(backend, total, "float32")
        for share in shares[1:]:
            backend.xp.add(total, share, out=total)
        total = tiles.weight_gradient(total)
        return total if total.dtype == weight.dtype else cast(backend, total, weight.dtype)

    return [lambda i=i: tile(i) for i in range(len(steps))], collect  # type: ignore[misc]


# --- db = sum of dY ---------------------------------------------------------------------------------------------------


def _bias_tasks(backend: Backend, dy: Array) -> tuple[list[Task], Callable[[], Array]]:
    """Return a task for each thread, and what gives the sums of dy (F, OH, OW, N) after them.

    Few numbers are one task: whoever comes first has time for it while others wake up.
    """
    threads = backend.get_num_threads()
    if threads == 1:
        return [], lambda: channel_sums(backend, dy)
    count = threads if backend.shares(dy.size) else 1
    parts = [slice(part.start, part.stop) for part in spans(dy.shape[0], count)]
    sums = backend.empty((dy.shape[0],), dy.dtype)

    def task(part: slice) -> None:
        backend.xp.copyto(sums[part], channel_sums(backend, dy[part]))

    return [lambda part=part: task(part) for part in parts], lambda: sums  # type: ignore[misc]
