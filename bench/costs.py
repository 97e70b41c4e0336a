"""Multiply-adds and bytes that a workload cannot do without, from its layers' shapes, and the floor from two rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import workloads as w

from xpcnn.backend.numpy.convolution import winograd

FLOAT = 4  # bytes of a float32
OPTIMISER_PASSES = {"sgd": 3, "momentum": 5, "adam": 7}  # parameter, gradient, states: read, all but gradient written


@dataclass
class Cost:
    """`passes` are the arrays read or written, in bytes: an array that is read twice is there twice.

    `multiply_adds` are those of direct convolutions. Of `least_multiply_adds`, those that the library computes in
    Winograd's way count as Winograd's.
    """

    multiply_adds: int = 0
    least_multiply_adds: int = 0
    passes: list[int] = field(default_factory=list)
    products: list[tuple[int, int, int]] = field(default_factory=list)  # (rows, inner, columns) of the forward products

    def add(self, *elements: int) -> None:
        self.passes += [FLOAT * count for count in elements]


Shape = tuple[int, ...]


def output_shape(spec: w.Layer, shape: Shape) -> Shape:
    """Shape after a layer, without the batch."""
    if isinstance(spec, w.Conv):
        return (spec.outputs, *((size + 2 * spec.padding - spec.kernel) // spec.stride + 1 for size in shape[1:]))
    if isinstance(spec, w.MaxPool):
        return (shape[0], *(-(-size // spec.size) if spec.ceil else size // spec.size for size in shape[1:]))
    if isinstance(spec, w.AvgPool):
        return (shape[0], *(size // spec.size for size in shape[1:]))
    if isinstance(spec, w.Grown):
        before = shape[0]
        for inner in spec.main:
            shape = output_shape(inner, shape)
        return (before + shape[0], *shape[1:])
    if isinstance(spec, w.GlobalAvgPool):
        return shape[:1]
    if isinstance(spec, w.Flatten):
        return (math.prod(shape),)
    if isinstance(spec, w.Linear):
        return (spec.outputs,)
    if isinstance(spec, w.Residual):
        for inner in spec.main:
            shape = output_shape(inner, shape)
    return shape


def walk(layers: w.Layers, shape: Shape) -> Iterator[tuple[w.Layer, Shape, Shape]]:
    """Every layer with the shapes before and after it; a block is given after its parts."""
    for spec in layers:
        if isinstance(spec, w.Residual):
            yield from walk(spec.main, shape)
            yield from walk(spec.shortcut, shape)
        if isinstance(spec, w.Grown):
            yield from walk(spec.main, shape)
        after = output_shape(spec, shape)
        yield spec, shape, after
        shape = after


def parameters(layers: w.Layers) -> int:
    total = 0
    for spec, _, _ in walk(layers, (1, 1024, 1024)):
        if isinstance(spec, w.Conv):
            total += spec.outputs * (spec.inputs // spec.groups * spec.kernel**2 + spec.bias)
        elif isinstance(spec, w.Linear):
            total += spec.outputs * (spec.inputs + 1)
        elif isinstance(spec, w.BatchNorm):
            total += 2 * spec.channels
    return total


def _layer(cost: Cost, spec: w.Layer, before: Shape, after: Shape, batch: int, backward: bool, first: bool) -> None:
    """ReLU, dropout and flatten count as nothing: they can be done in place while the neighbour's numbers are hot."""
    x, y = batch * math.prod(before), batch * math.prod(after)
    if isinstance(spec, (w.Conv, w.Linear)):
        inner = spec.inputs // spec.groups * spec.kernel**2 if isinstance(spec, w.Conv) else spec.inputs
        weight = spec.outputs * inner
        cost.products.append((spec.outputs, inner, y // spec.outputs))
        direct = y * inner * ((2 if first else 3) if backward else 1)
        cost.multiply_adds += direct
        cost.least_multiply_adds += (
            _winograd(spec, after, batch, backward, first)
            if isinstance(spec, w.Conv) and _is_winograd_s(spec, batch)
            else direct
        )
        cost.add(x, y, weight)
        if backward:
            cost.add(y, x, weight, *(() if first else (x,)))
    elif isinstance(spec, w.BatchNorm):
        cost.add(x, y, *((y, x, x) if backward else ()))
    elif isinstance(spec, (w.MaxPool, w.AvgPool, w.GlobalAvgPool, w.Grown)):
        cost.add(x, y, *((y, x) if backward else ()))
    elif isinstance(spec, w.Residual):
        cost.add(y, y, y, *((y, y, y) if backward else ()))


def _is_winograd_s(spec: w.Conv, batch: int) -> bool:
    fewest = min(spec.inputs, spec.outputs) >= winograd.FEWEST_CHANNELS and batch >= winograd.FEWEST_IMAGES
    return fewest and (spec.kernel, spec.stride, spec.groups) == (3, 1, 1)


def _winograd(spec: w.Conv, after: Shape, batch: int, backward: bool, first: bool) -> int:
    """Multiply-adds of F(4x4, 3x3): 36 products of matrices, and the transforms, which are products of small ones.

    B^T d B takes 6*6*4 (a tile's own columns) and 6*6*6 a channel and tile, A^T M A 4*6*6 and 4*6*4, and A x A^T as
    many; (G (x) G) w takes 36*9 a filter. dX and dW share their B^T dY B.
    """
    tile, pair = batch * math.prod(-(-size // winograd.TILE) for size in after[1:]), spec.inputs * spec.outputs
    product, filters = 36 * tile * pair, 36 * 9 * pair
    into, out_of = 360 * tile, 240 * tile
    total = product + filters + into * spec.inputs + out_of * spec.outputs
    if backward:
        total += product + filters + into * spec.outputs + out_of * spec.inputs  # dW
        total += 0 if first else product + filters + out_of * spec.inputs  # dX
    return total


def cost(workload: w.Workload) -> Cost:
    """What one step of the workload costs at least."""
    total = Cost()
    if workload.kind in ("conv", "pool"):
        spec: w.Layer = workload.conv or w.MaxPool(workload.pool)
        _layer(total, spec, workload.image, output_shape(spec, workload.image), workload.batch, True, False)
        return total
    assert workload.net is not None
    net = w.NETS[workload.net]
    train = workload.kind == "train"
    for spec, before, after in walk(net.layers, net.image):
        _layer(total, spec, before, after, workload.batch, train, first=train and not total.products)
    if train and workload.optimiser is not None:
        name = "momentum" if workload.optimiser.momentum else workload.optimiser.name
        total.add(*[parameters(net.layers)] * OPTIMISER_PASSES[name])
    return total


def floor(cost: Cost, gemm_rate: float, copy_rates: dict[int, float]) -> dict[str, float]:
    """Seconds below which these products, or these passes through memory, cannot go: the larger of the two times.

    Parameters
    ----------
    gemm_rate : float
        Operations (two for each multiply-add) per second of NumPy's own matrix product.
    copy_rates : dict
        Bytes moved (read plus written) per second, by the size in bytes of the array that was copied. An array counts
        at the rate of the largest size that is not larger than itself, or of the smallest.
    """
    sizes = sorted(copy_rates)
    products = 2 * cost.least_multiply_adds / gemm_rate
    memory = sum(n / copy_rates[max((s for s in sizes if s <= n), default=sizes[0])] for n in cost.passes)
    return {"products": products, "memory": memory, "floor": max(products, memory)}
