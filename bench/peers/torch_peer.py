"""PyTorch, eager and under torch.compile: channels first or last, plain or fused optimiser, one or more threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import workloads as w
from torch import nn

from peers import Step, batches, labels, normal

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def variants(workload: w.Workload, threads: list[int]) -> list[str]:
    updates = ("plain", "fused") if workload.kind == "train" else ("plain",)
    eager = [f"{a}/{b}/{n}t/eager" for n, a, b in itertools.product(threads, LAYOUTS, updates)]
    if workload.kind not in ("train", "inference"):
        return eager  # one operation: there is nothing to join
    return eager + [f"{a}/{updates[-1]}/{n}t/compiled" for n, a in itertools.product(threads, LAYOUTS)]


class Residual(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x) + self.shortcut(x)


class Grown(nn.Module):
    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.main(x)], 1)


def layer(spec: w.Layer) -> nn.Module:
    if isinstance(spec, w.Conv):
        sizes = spec.inputs, spec.outputs, spec.kernel, spec.stride, spec.padding
        return nn.Conv2d(*sizes, groups=spec.groups, bias=spec.bias)
    if isinstance(spec, w.BatchNorm):
        return nn.BatchNorm2d(spec.channels)
    if isinstance(spec, w.ReLU):
        return nn.ReLU(inplace=True)
    if isinstance(spec, w.MaxPool):
        return nn.MaxPool2d(spec.size, ceil_mode=spec.ceil)
    if isinstance(spec, w.AvgPool):
        return nn.AvgPool2d(spec.size)
    if isinstance(spec, w.Grown):
        return Grown(sequential(spec.main))
    if isinstance(spec, w.GlobalAvgPool):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if isinstance(spec, w.Flatten):
        return nn.Flatten()
    if isinstance(spec, w.Linear):
        return nn.Linear(spec.inputs, spec.outputs)
    if isinstance(spec, w.Dropout):
        return nn.Dropout(spec.share)
    return Residual(sequential(spec.main), sequential(spec.shortcut) if spec.shortcut else nn.Identity())


def sequential(specs: w.Layers) -> nn.Sequential:
    return nn.Sequential(*(layer(spec) for spec in specs))


def optimiser(spec: w.Optimiser, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """`fused=None` leaves PyTorch its default."""
    choice: Any = True if fused else None
    if spec.name == "adam":
        return torch.optim.Adam(model.parameters(), spec.lr, weight_decay=spec.weight_decay, fused=choice)
    if not spec.shrink:
        decay = spec.weight_decay
        return torch.optim.SGD(model.parameters(), spec.lr, spec.momentum, weight_decay=decay, fused=choice)
    norms = {p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if p not in norms], "weight_decay": spec.shrink},
        {"params": [p for p in model.parameters() if p in norms]},
    ]
    return torch.optim.SGD(groups, spec.lr, spec.momentum, fused=choice)


def build(workload: w.Workload, variant: str) -> Step:
    layout, update, threads, way = variant.split("/")
    torch.manual_seed(0)
    torch.set_num_threads(int(threads[:-1]))
    build_kind = {"train": _train, "inference": _inference, "evaluation": _evaluation, "conv": _conv, "pool": _pool}[
        workload.kind
    ]
    step = build_kind(workload, LAYOUTS[layout], update == "fused", torch.compile if way == "compiled" else _as_it_is)
    step.prepare = lambda: torch.set_num_threads(int(threads[:-1]))
    return step


def _as_it_is(function: Any) -> Any:
    return function


def _tensor(layout: torch.memory_format, seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(normal(seed, *shape)).to(memory_format=layout)


def _train(workload: w.Workload, layout: torch.memory_format, fused: bool, compile: Callable[[Any], Any]) -> Step:
    net = w.NETS[workload.net]
    model = sequential(net.layers).to(memory_format=layout).train()
    optimizer = optimiser(workload.optimiser, model, fused)
    data = itertools.cycle(
        [
            (_tensor(layout, seed, workload.batch, *net.image), torch.from_numpy(labels(seed, workload.batch)).long())
            for seed in batches(workload.batch)
        ]
    )
    last: list[torch.Tensor] = []
    compute = compile(lambda x, target: F.cross_entropy(model(x), target))

    def call() -> None:
        x, target = next(data)
        optimizer.zero_grad(set_to_none=True)
        loss = compute(x, target)
        loss.backward()
        optimizer.step()
        last[:] = [loss]

    return Step(call, loss=lambda: float(last[0].detach()), parameters=sum(p.numel() for p in model.parameters()))


def _inference(workload: w.Workload, layout: torch.memory_format, fused: bool, compile: Callable[[Any], Any]) -> Step:
    net = w.NETS[workload.net]
    model = sequential(net.layers).to(memory_format=layout).eval()
    x = _tensor(layout, 0, workload.batch, *net.image)
    forward = compile(model)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return forward(x)

    return Step(call, parameters=sum(p.numel() for p in model.parameters()))


def _evaluation(workload: w.Workload, layout: torch.memory_format, fused: bool, compile: Callable[[Any], Any]) -> Step:
    net = w.NETS[workload.net]
    model = sequential(net.layers).to(memory_format=layout).eval()
    x = _tensor(layout, 0, workload.batch, *net.image)
    return Step(lambda: model(x), parameters=sum(p.numel() for p in model.parameters()))


def _forward_backward(forward: Callable[..., torch.Tensor], layout: torch.memory_format, *inputs: torch.Tensor) -> Step:
    """Forward, then the gradients of all inputs for a random upstream gradient."""
    for tensor in inputs:
        tensor.requires_grad_()
    dy = _tensor(layout, 9, *forward(*inputs).shape)

    def call() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(forward(*inputs), inputs, dy)

    return Step(call)


def _conv(workload: w.Workload, layout: torch.memory_format, fused: bool, compile: Any) -> Step:
    spec = workload.conv
    x = _tensor(layout, 0, workload.batch, *workload.image)
    weight = _tensor(layout, 1, spec.outputs, spec.inputs, spec.kernel, spec.kernel)
    bias = torch.from_numpy(normal(2, spec.outputs))
    return _forward_backward(
        lambda x, weight, bias: F.conv2d(x, weight, bias, spec.stride, spec.padding), layout, x, weight, bias
    )


def _pool(workload: w.Workload, layout: torch.memory_format, fused: bool, compile: Any) -> Step:
    x = _tensor(layout, 0, workload.batch, *workload.image)
    return _forward_backward(lambda x: F.max_pool2d(x, workload.pool), layout, x)
