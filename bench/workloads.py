"""What is measured: the nets as plain descriptions that every peer builds in its own words, and the table of workloads.

Only the standard library: the peers' environments import this file too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise


@dataclass(frozen=True)
class Conv:
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True
    groups: int = 1


@dataclass(frozen=True)
class BatchNorm:
    channels: int


@dataclass(frozen=True)
class ReLU:
    pass


@dataclass(frozen=True)
class MaxPool:
    """A window of `size` with the same stride."""

    size: int
    ceil: bool = False


@dataclass(frozen=True)
class GlobalAvgPool:
    """(N, C, H, W) -> (N, C)."""


@dataclass(frozen=True)
class Flatten:
    pass


@dataclass(frozen=True)
class Linear:
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Dropout:
    share: float


@dataclass(frozen=True)
class Residual:
    """main(x) + shortcut(x); an empty shortcut is x itself."""

    main: Layers
    shortcut: Layers = ()


@dataclass(frozen=True)
class AvgPool:
    """A window of `size` with the same stride."""

    size: int


@dataclass(frozen=True)
class Grown:
    """x and main(x), side by side."""

    main: Layers


Layer = Conv | BatchNorm | ReLU | MaxPool | GlobalAvgPool | Flatten | Linear | Dropout | Residual | AvgPool | Grown
Layers = tuple[Layer, ...]


@dataclass(frozen=True)
class Net:
    image: tuple[int, int, int]  # channels, height, width
    layers: Layers


def _conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> Layers:
    return (Conv(inputs, outputs, 3, stride, 1, bias=False), BatchNorm(outputs), ReLU())


def _residual_block(inputs: int, outputs: int) -> Layers:
    """He et al. 2016: two 3x3 convolutions; where the stage changes, the shortcut is 1x1 with batch norm."""
    stride = 1 if inputs == outputs else 2
    main = (*_conv_bn_relu(inputs, outputs, stride), Conv(outputs, outputs, 3, 1, 1, bias=False), BatchNorm(outputs))
    shortcut = () if stride == 1 else (Conv(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))
    return (Residual(main, shortcut), ReLU())


def _resnet20() -> Layers:
    layers = list(_conv_bn_relu(3, 16))
    widths = [16] * 4 + [32] * 3 + [64] * 3
    for inputs, outputs in pairwise(widths):
        layers += _residual_block(inputs, outputs)
    return (*layers, GlobalAvgPool(), Linear(64, 10))


def _mobilenet() -> Layers:
    layers, inputs = list(_conv_bn_relu(3, 32)), 32
    widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for outputs, stride in widths:
        layers += [Conv(inputs, inputs, 3, stride, 1, bias=False, groups=inputs), BatchNorm(inputs), ReLU()]
        layers += [Conv(inputs, outputs, 1, bias=False), BatchNorm(outputs), ReLU()]
        inputs = outputs
    return (*layers, GlobalAvgPool(), Linear(1024, 10))


def _densenet40() -> Layers:
    layers: list[Layer] = [Conv(3, 16, 3, 1, 1, bias=False)]
    channels = 16
    for block in range(3):
        for _ in range(12):
            layers.append(Grown((BatchNorm(channels), ReLU(), Conv(channels, 12, 3, 1, 1, bias=False))))
            channels += 12
        layers += [BatchNorm(channels), ReLU()]
        if block < 2:
            layers += [Conv(channels, channels, 1, bias=False), AvgPool(2)]
    return (*layers, GlobalAvgPool(), Linear(channels, 10))


def _vgg8() -> Layers:
    layers: list[Layer] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256)):
        layers += [*_conv_bn_relu(inputs, outputs), *_conv_bn_relu(outputs, outputs), MaxPool(2)]
    return (*layers, Flatten(), Linear(256 * 4 * 4, 10))


NETS = {
    "lenet5": Net((1, 32, 32), (
        Conv(1, 6, 5), BatchNorm(6), ReLU(), MaxPool(2),
        Conv(6, 16, 5), BatchNorm(16), ReLU(), MaxPool(2),
        Conv(16, 120, 5), BatchNorm(120), ReLU(), Flatten(),
        Linear(120, 84), ReLU(), Dropout(0.1), Linear(84, 10),
    )),
    "deep3": Net((1, 28, 28), (
        Conv(1, 32, 3, padding=1), ReLU(), MaxPool(2, ceil=True),
        Conv(32, 64, 3, padding=1), ReLU(), MaxPool(2, ceil=True),
        Conv(64, 128, 3, padding=1), ReLU(), MaxPool(2, ceil=True),
        Flatten(), Linear(128 * 4 * 4, 10),
    )),
    "tiny": Net((1, 28, 28), (
        Conv(1, 1, 3), ReLU(), MaxPool(2), Flatten(), Linear(169, 64), ReLU(), Linear(64, 10),
    )),
    "conv8": Net((1, 28, 28), (Conv(1, 8, 3), MaxPool(2), Flatten(), Linear(13 * 13 * 8, 10))),
    "three-layer": Net((3, 32, 32), (
        Conv(3, 32, 7, padding=3), ReLU(), MaxPool(2), Flatten(), Linear(32 * 16 * 16, 200), ReLU(), Linear(200, 10),
    )),
    "resnet20": Net((3, 32, 32), _resnet20()),
    "vgg8": Net((3, 32, 32), _vgg8()),
    "mobilenet": Net((3, 32, 32), _mobilenet()),
    "densenet40": Net((3, 32, 32), _densenet40()),
}  # fmt: skip


@dataclass(frozen=True)
class Optimiser:
    """`shrink` is the LeNet notebook's decay (parameter *= 1 - shrink, not on batch norm). PyTorch and JAX do it as
    weight decay inside their update, which costs them no more than ours costs us."""

    name: str  # "sgd" | "adam"
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    shrink: float = 0.0


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    `goal` is the time of PyTorch at its best over ours that the project aims at, `written_goal` that of eager PyTorch
    over ours as written.
    """

    name: str
    kind: str  # "train" | "inference" | "evaluation" (a forward that a backward may follow) | "conv" | "pool"
    batch: int
    goal: float
    net: str | None = None
    optimiser: Optimiser | None = None
    image: tuple[int, int, int] = (0, 0, 0)  # conv and pool: channels, height, width
    conv: Conv | None = None
    pool: int = 0
    threads: tuple[int, ...] = (2,)  # numbers of threads among which a peer has its choice
    others: dict[str, float] = field(default_factory=dict)  # goals against other peers: their time over ours
    written_goal: float = 1.0


def _train(
    name: str, net: str, batch: int, goal: float, optimiser: Optimiser, threads: tuple[int, ...] = (2,)
) -> Workload:
    return Workload(name, "train", batch, goal, net=net, optimiser=optimiser, threads=threads)


def _conv(name: str, batch: int, image: tuple[int, int, int], conv: Conv, goal: float) -> Workload:
    return Workload(name, "conv", batch, goal, image=image, conv=conv)


_LENET = Optimiser("sgd", lr=0.1, momentum=0.9, shrink=4e-4)
_DEEP3 = Optimiser("sgd", lr=1e-3, momentum=0.9, weight_decay=4e-4)
_MOMENTUM = Optimiser("sgd", lr=0.01, momentum=0.9)

WORKLOADS = {
    workload.name: workload
    for workload in (
        _train("lenet5", "lenet5", 128, 3.0, _LENET),
        _train("deep3", "deep3", 128, 1.8, _DEEP3),
        _train("deep3-32", "deep3", 32, 1.8, _DEEP3),
        _train("tiny", "tiny", 2, 6.0, Optimiser("sgd", lr=0.01), threads=(1, 2)),
        _train("conv8", "conv8", 1, 3.0, Optimiser("sgd", lr=0.005), threads=(1, 2)),
        _train("three-layer", "three-layer", 50, 1.5, Optimiser("adam", lr=1e-3)),
        _train("resnet20", "resnet20", 128, 1.4, _MOMENTUM),
        _train("vgg8", "vgg8", 64, 1.6, _MOMENTUM),
        _train("mobilenet", "mobilenet", 128, 1.2, _MOMENTUM),
        _train("densenet40", "densenet40", 64, 1.2, _MOMENTUM),
        _conv("conv-3x31-s2", 100, (3, 31, 31), Conv(3, 25, 3, stride=2, padding=1), 1.3),
        _conv("conv-64x14", 128, (64, 14, 14), Conv(64, 128, 3, padding=1), 1.3),
        _conv("conv-64x56", 32, (64, 56, 56), Conv(64, 64, 3, padding=1), 1.5),
        _conv("conv-1x1", 32, (256, 14, 14), Conv(256, 512, 1), 1.0),
        Workload("pool-3x32", "pool", 100, 3.0, image=(3, 32, 32), pool=2, threads=(1, 2)),
        Workload("pool-64x28", "pool", 128, 1.5, image=(64, 28, 28), pool=2),
        Workload("infer-1", "inference", 1, 6.0, net="lenet5", threads=(1, 2), others={"onnxruntime": 0.7}),
        Workload("infer-1024", "inference", 1024, 4.0, net="lenet5", others={"onnxruntime": 1.3}, written_goal=1.5),
        Workload("eval-1", "evaluation", 1, 1.0, net="lenet5", threads=(1, 2)),
        Workload("eval-1024", "evaluation", 1024, 1.5, net="lenet5", written_goal=1.5),
    )
}


def select(patterns: list[str]) -> list[Workload]:
    """The workloads that the names or shell patterns ask for, in the table's order; all for no pattern."""
    unknown = [p for p in patterns if not any(fnmatch(name, p) for name in WORKLOADS)]
    if unknown:
        raise SystemExit(f"unknown workload {', '.join(unknown)}; there are: {', '.join(WORKLOADS)}")
    return [w for w in WORKLOADS.values() if not patterns or any(fnmatch(w.name, p) for p in patterns)]
