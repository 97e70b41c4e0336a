"""xpcnn on its default threads, through its public interface, with batches laid out as its own loader gives them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import workloads as w

import xpcnn
import xpcnn.functional as F
from peers import Step, batches, labels, normal


def versions() -> dict[str, str]:
    from threadpoolctl import threadpool_info

    blas = next((lib for lib in threadpool_info() if lib["user_api"] == "blas"), {})
    return {
        "xpcnn": getattr(xpcnn, "__version__", "unknown"),
        "numpy": np.__version__,
        "blas": f"{blas.get('internal_api', 'unknown')} {blas.get('version', '')}".strip(),
        "blas_kernel": str(blas.get("architecture", "unknown")),
    }


def variants(workload: w.Workload, threads: list[int]) -> list[str]:
    """Training as the Trainer does it, and as a loop of one's own does, under `xpcnn.compile` and as written.

    Batches come from the Trainer's loader batch-last, and C-ordered into a loop of one's own. Inference by
    `nn.Inference`, batch norm folded, and by the model itself; evaluation by the model outside `no_grad`. Threads are
    left at the library's own default.
    """
    kinds = {
        "train": ["trainer", "compiled", "written out"],
        "inference": ["folded and recorded", "plain"],
        "evaluation": ["compiled", "plain"],
    }
    return kinds.get(workload.kind, ["default"])


def batch_last(array: np.ndarray) -> np.ndarray:
    """The same numbers with the batch as the fastest axis in memory, as they lie inside a net."""
    return np.ascontiguousarray(np.moveaxis(array, 0, -1)).transpose(-1, *range(array.ndim - 1))  # (N, C, H, W)


def build(workload: w.Workload, variant: str) -> Step:
    xpcnn.set_backend("numpy")
    xpcnn.manual_seed(0)
    if workload.kind == "train":
        return _train(workload, variant)
    if workload.kind == "inference":
        return _inference(workload, folded=variant != "plain")
    if workload.kind == "evaluation":
        return _evaluation(workload, variant)
    return {"conv": _conv, "pool": _pool}[workload.kind](workload)


def optimiser(spec: w.Optimiser, model: Any) -> Any:
    if spec.name == "adam":
        return xpcnn.optim.Adam(model.parameters(), spec.lr, weight_decay=spec.weight_decay)
    if not spec.shrink:
        return xpcnn.optim.SGD(model.parameters(), spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    norms = {id(p) for m in model.modules() if isinstance(m, xpcnn.nn.BatchNorm2d) for p in m.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in norms], "shrink": spec.shrink},
        {"params": [p for p in model.parameters() if id(p) in norms]},
    ]
    return xpcnn.optim.SGD(groups, spec.lr, momentum=spec.momentum)


def _train(workload: w.Workload, variant: str) -> Step:
    net = w.NETS[workload.net]
    model = xpcnn.models.create(workload.net)
    model.train()
    criterion = xpcnn.nn.CrossEntropyLoss()
    optimizer = optimiser(workload.optimiser, model)
    layout = batch_last if variant == "trainer" else np.ascontiguousarray
    data = itertools.cycle(
        [
            (layout(normal(seed, workload.batch, *net.image)), labels(seed, workload.batch))
            for seed in batches(workload.batch)
        ]
    )
    last: list[Any] = []

    def step(x: Any, target: Any) -> Any:
        optimizer.zero_grad()
        loss = criterion(model(x), target)
        model.backward(criterion.backward(), input_gradient=False)
        optimizer.step()
        return loss

    size = sum(p.data.size for p in model.parameters())
    if variant != "trainer":
        run = xpcnn.compile(step) if variant == "compiled" else step

        def call() -> None:
            last[:] = [run(*next(data))]

        return Step(call, loss=lambda: float(last[0]), parameters=size)
    trainer = xpcnn.training.Trainer(model, optimizer, criterion)
    history = trainer.history.steps
    return Step(lambda: trainer.train_batch(*next(data)), loss=lambda: history["loss"][-1], parameters=size)


def _inference(workload: w.Workload, folded: bool) -> Step:
    model = xpcnn.models.create(workload.net)
    model.eval()
    infer = xpcnn.nn.Inference(model)
    x = normal(0, workload.batch, *w.NETS[workload.net].image)

    def call() -> Any:
        with xpcnn.no_grad():
            return infer(x) if folded else model(x)

    return Step(call, parameters=sum(p.data.size for p in model.parameters()))


def _evaluation(workload: w.Workload, variant: str) -> Step:
    model = xpcnn.models.create(workload.net)
    model.eval()
    run = xpcnn.compile(model) if variant == "compiled" else model
    x = normal(0, workload.batch, *w.NETS[workload.net].image)
    return Step(lambda: run(x), parameters=sum(p.data.size for p in model.parameters()))


def _conv(workload: w.Workload) -> Step:
    spec = workload.conv
    x = batch_last(normal(0, workload.batch, *workload.image))
    weight = normal(1, spec.outputs, spec.inputs, spec.kernel, spec.kernel)
    bias = normal(2, spec.outputs)
    dy = batch_last(normal(9, *F.conv2d(x, weight, bias, stride=spec.stride, padding=spec.padding)[0].shape))

    def call() -> Any:
        _, cache = F.conv2d(x, weight, bias, stride=spec.stride, padding=spec.padding)
        return F.conv2d_backward(dy, cache)

    return Step(call)


def _pool(workload: w.Workload) -> Step:
    x = batch_last(normal(0, workload.batch, *workload.image))
    dy = batch_last(normal(9, *F.max_pool2d(x, workload.pool)[0].shape))

    def call() -> Any:
        _, cache = F.max_pool2d(x, workload.pool)
        return F.max_pool2d_backward(dy, cache)

    return Step(call)
