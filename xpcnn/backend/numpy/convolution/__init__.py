"""NumPy's own convolution, in the place of the page in `functional/convolution.py`, and which way it takes.

Threads share out tiles of output rows: each lowers a tile into a buffer that it keeps and multiplies it while it is in
the cache (`tiles.py`), so that the whole column matrix never exists. dX has quicker ways than col2im
(`input_gradient.py`), large 3x3 convolutions go through `winograd.py`, and those with a filter for each channel through
`depthwise.py`. All of it comes as plans (`numpy/plans.py`), whose keys hold what else than the arguments the choice
depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpcnn.backend.numpy.convolution import depthwise, tiles, winograd
from xpcnn.backend.numpy.convolution.input_gradient import input_tasks
from xpcnn.backend.numpy.convolution.lowering import Array, fill_columns
from xpcnn.backend.numpy.convolution.tiles import Task
from xpcnn.backend.split import split_evenly
from xpcnn.windows import Windows


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
    if not _takes(x):
        return NotImplemented
    suits = winograd.suits(backend, weight, windows, groups, x.shape[3])
    is_depthwise = depthwise.suits(weight, windows, groups)

    def forward(backend: Any, x: Array, weight: Array, bias: Array | None, factor: Array | None) -> Array:
        y: Array = backend.empty((weight.shape[0], *windows.out, x.shape[3]), x.dtype)
        if suits:
            tasks, finish = winograd.forward_tasks(backend, x, weight, bias, windows, y, factor)
        elif is_depthwise:
            tasks, finish = depthwise.forward_tasks(backend, x, weight, bias, windows, y)
        else:
            tasks, finish = tiles.forward_tasks(backend, x, weight, bias, windows, groups, y, factor), _nothing
        backend.parallel(_run, tasks, _work(weight, windows, x.shape[3]))
        finish()
        return y

    factor = (
        None if packed is None or is_depthwise else _packed(backend.home, weight, windows, groups, x.shape[3], packed)
    )
    key = "conv2d", windows, groups, *_choices(backend)
    return _planned(backend, suits or is_depthwise, key, forward, x, weight, bias, factor)


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
    """Return dx (C, H, W, N) or None, dweight and dbias or None for dy (F, OH, OW, N), in arrays of its own."""
    if not _takes(x):
        return NotImplemented
    suits = winograd.suits(backend, weight, windows, groups, x.shape[3])
    is_depthwise = depthwise.suits(weight, windows, groups)

    def gradients(backend: Any, dy: Array, x: Array, weight: Array) -> tuple[Array | None, Array, Array | None]:
        n = x.shape[3]
        dx = backend.empty(x.shape, x.dtype) if input_gradient else None
        transposed = windows.transposed if suits and windows.gather_pays else None
        finish = _nothing
        if transposed is not None:
            tasks, collect = winograd.gradient_tasks(backend, dy, x, weight, windows, transposed, dx)
        elif is_depthwise:
            tasks, collect = depthwise.weight_tasks(backend, dy, x, weight, windows)
            if dx is not None:
                others, finish = depthwise.input_tasks(backend, dy, weight, windows, dx)
                tasks = others + tasks
        else:
            tasks, collect = tiles.weight_tasks(backend, dy, x, weight, windows, groups)
            if dx is not None:
                tasks = input_tasks(backend, dy, weight, windows, groups, dx) + tasks
        sums: Any = [], lambda: None
        if has_bias:
            sums = _bias_tasks(backend, dy)
        backend.parallel(_run, tasks + sums[0], (1 + input_gradient) * _work(weight, windows, n))
        finish()
        return dx, collect(), sums[1]()

    key = "conv2d_gradients", windows, groups, has_bias, input_gradient, *_choices(backend)
    return _planned(backend, suits or is_depthwise, key, gradients, dy, x, weight)


def conv2d_input_gradient(backend: Any, dy: Array, weight: Array, windows: Windows, groups: int) -> Any:
    """Return dx (C, H, W, N) for dy (F, OH, OW, N): also a transposed convolution."""
    if not _takes(dy):
        return NotImplemented
    suits = winograd.suits(backend, weight, windows, groups, dy.shape[3])
    is_depthwise = depthwise.suits(weight, windows, groups)

    def gradient(backend: Any, dy: Array, weight: Array) -> Array:
        n = dy.shape[3]
        dx: Array = backend.empty((groups * weight.shape[1], windows.h.size, windows.w.size, n), dy.dtype)
        transposed = windows.transposed if suits and windows.gather_pays else None
        if transposed is not None:
            tasks, finish = winograd.forward_tasks(backend, dy, weight, None, transposed, dx, turned=True)
        elif is_depthwise:
            tasks, finish = depthwise.input_tasks(backend, dy, weight, windows, dx)
        else:
            tasks, finish = input_tasks(backend, dy, weight, windows, groups, dx), _nothing
        backend.parallel(_run, tasks, _work(weight, windows, n))
        finish()
        return dx

    key = "conv2d_input_gradient", windows, groups, *_choices(backend)
    return _planned(backend, suits or is_depthwise, key, gradient, dy, weight)


FUSED: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (conv2d_forward, conv2d_gradients, conv2d_input_gradient, fill_columns)
}


def _takes(x: Array) -> bool:
    """Say whether these ways are for this dtype: sums of float16 are added up in float32 on the page alone."""
    return bool(x.dtype.itemsize >= 4)


def _choices(backend: Any) -> tuple[Any, ...]:
    """Return what else than its arguments decides which way a convolution goes and how it is cut."""
    return backend.column_bytes, backend.slab_bytes, backend.winograd


def _planned(backend: Any, quietly: bool, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    if not quietly:
        return backend.planned(key, function, *arguments)
    with winograd.quiet():
        return backend.planned(key, function, *arguments)


def _packed(backend: Any, weight: Array, windows: Windows, groups: int, n: int, packed: dict[str, Array]) -> Array:
    """Return the weights in the form in which the product of `n` images takes them, made where it is new.

    `backend` is one that records nothing: a record then holds the result alone.
    """
    if winograd.suits(backend, weight, windows, groups, n):
        form = "winograd"
    else:
        pixel_bytes = groups * weight.shape[1] * n * weight.dtype.itemsize
        form = "stacked" if tiles.stacks(backend, windows, pixel_bytes) else "plain"
    if form not in packed:
        if form == "winograd":
            packed[form] = winograd.filters(backend, weight)
        else:
            packed[form] = tiles.weight_matrix(backend, weight, groups, form == "stacked")
    return packed[form]


def _run(task: Task) -> None:
    task()


def _nothing() -> None:
    """Do nothing."""


def _work(weight: Array, windows: Windows, n: int) -> float:
    """Return the cost in elementary operations; a product does about eight multiply-adds in the time of one."""
    return float(weight.size) * windows.h.out * windows.w.out * n / 8


def _bias_tasks(backend: Any, dy: Array) -> tuple[list[Task], Callable[[], Array]]:
    """Return a task for each thread, and what gives the sums of dy (F, OH, OW, N) after them.

    Few numbers are one task: whoever comes first has time for it while others wake up.
    """
    rows = dy.reshape(dy.shape[0], -1)  # (F, OH*OW*N)
    threads = backend.get_num_threads()
    if threads == 1:
        return [], lambda: backend.row_sums(rows)
    count = threads if dy.size >= backend.region_worth else 1
    parts = [slice(part.start, part.stop) for part in split_evenly(dy.shape[0], count)]
    sums: Array = backend.empty((dy.shape[0],), dy.dtype)

    def task(part: slice) -> None:
        backend.xp.copyto(sums[part], backend.row_sums(rows[part]))

    return [lambda part=part: task(part) for part in parts], lambda: sums  # type: ignore[misc]
