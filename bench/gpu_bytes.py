"""Bytes and multiply-adds of a convolution by im2col and by the implicit product, counted: no device is needed.

Bytes are those of whole arrays, each read or written once, for forward, dx and dW of a layer with bias; what tiles read
again comes from a cache, where it fits. Multiply-adds count what a tile computes beyond the edge of the result. Beside
them stands what the statistics of a batch norm after the layer take: a pass over y, or the moments that tiles leave.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xpcnn.backend.cupy import convolution
from xpcnn.windows import windows

MULTIPROCESSORS = 132  # of an H100
FLOAT, MOMENTS = 4, 16  # bytes, of a number and of what a tile leaves for a channel


@dataclass(frozen=True)
class Layer:
    """A convolution of a network, and the batch that it is trained with."""

    name: str
    image: tuple[int, int, int]  # C, H, W
    filters: int
    kernel: int
    batch: int
    stride: int = 1
    padding: int = 0


LAYERS = (
    Layer("lenet5, 6 to 16", (6, 14, 14), 16, 5, 128),
    Layer("resnet20, 16 to 16", (16, 32, 32), 16, 3, 128, padding=1),
    Layer("resnet20, 16 to 32, stride 2", (16, 32, 32), 32, 3, 128, 2, 1),
    Layer("resnet20, 64 to 64", (64, 8, 8), 64, 3, 128, padding=1),
    Layer("vgg8, 128 to 128", (128, 16, 16), 128, 3, 256, padding=1),
)


@dataclass(frozen=True)
class Cost:
    """Bytes of global memory and multiply-adds."""

    bytes: int
    multiply_adds: int
    statistics_bytes: int


def costs(layer: Layer) -> tuple[Cost, Cost]:
    """Return what forward, dx and dW cost together, by im2col and by the implicit product."""
    over = windows(layer.image[1:], layer.kernel, stride=layer.stride, padding=layer.padding)
    taps = layer.image[0] * layer.kernel**2  # K
    positions = prod(over.out) * layer.batch  # P
    x, y, weight = prod(layer.image) * layer.batch, layer.filters * positions, layer.filters * taps
    columns = taps * positions
    forward = (x + columns) + (columns + weight + y) + 2 * y  # fill, product, bias
    dx = (weight + y + columns) + (columns + x)  # product, collect
    dw = (x + columns) + (y + columns + weight) + y  # fill, product, db
    im2col = Cost(FLOAT * (forward + dx + dw), 3 * layer.filters * taps * positions, FLOAT * y)

    shape = (layer.filters, layer.image[0], layer.kernel, layer.kernel)
    products = [convolution.forward_shape(shape, over, layer.batch)]
    products += convolution.gradient_shapes(shape, over, layer.batch)
    work = sum(tiled(*convolution.extents(product)) for product in products)
    tile, shares, share = convolution.split(layer.filters, taps, positions, MULTIPROCESSORS)
    across, down = tile.grid(layer.filters, taps)
    work += across * tile.columns * down * tile.rows * shares * share
    parts = 2 * shares * weight if shares > 1 else 0
    implicit = (x + weight + y) + (y + weight + x) + (y + x + parts + weight) + y
    rows, columns, _ = convolution.extents(products[0])
    tiles, _ = convolution.choose(rows, columns, MULTIPROCESSORS).grid(rows, columns)
    moments = 2 * MOMENTS * tiles * layer.filters  # written and read
    return im2col, Cost(FLOAT * implicit, work, moments)


def tiled(rows: int, columns: int, depth: int) -> int:
    """Return the multiply-adds of a product in whole tiles."""
    tile = convolution.choose(rows, columns, MULTIPROCESSORS)
    across, down = tile.grid(rows, columns)
    return across * tile.columns * down * tile.rows * -(-depth // convolution.DEPTH) * convolution.DEPTH


def table() -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield (
        "| convolution, batch | MB by im2col | implicit | share | MB for statistics | of tiles | 10^9 multiply-adds "
        "| in tiles |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for layer in LAYERS:
        ours, theirs = reversed(costs(layer))
        cells = (
            f"{layer.name}, {layer.batch}", f"{theirs.bytes / 1e6:.0f}", f"{ours.bytes / 1e6:.0f}",
            f"{ours.bytes / theirs.bytes:.2f}", f"{theirs.statistics_bytes / 1e6:.1f}",
            f"{ours.statistics_bytes / 1e6:.1f}",
            f"{theirs.multiply_adds / 1e9:.2f}", f"{ours.multiply_adds / 1e9:.2f}",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
