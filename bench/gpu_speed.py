"""Training steps and convolutions beside PyTorch on one GPU: eager, compiled and as CUDA graphs, with events."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import workloads as w
from gpu_device import Device, array, stage
from gpu_steps import WARMUP, Ours, torch_step
from peers import normal

import xpcnn.functional as F
from xpcnn.backend import get_backend

# (workload, batch, goal beside PyTorch eager, goal beside PyTorch with CUDA graphs): issue of the GPU backend.
STEPS = (
    ("lenet5", 128, 4.0, 1.0), ("deep3", 128, 4.0, 1.0), ("tiny", 2, 4.0, 1.0), ("three-layer", 50, 4.0, 1.0),
    ("lenet5", 1024, 1.5, None), ("resnet20", 128, 1.5, None), ("vgg8", 256, 0.7, None),
)  # fmt: skip
CONVOLUTION_GOAL, PRODUCT_GOAL = 0.6, 0.6
ROUNDS = 7


@contextlib.contextmanager
def tf32(allow: bool, device: Device) -> Any:
    """Set TF32 in both libraries alike."""
    import torch

    if device.rehearse:
        yield
        return
    backend: Any = get_backend()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = backend.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = backend.allow_tf32 = False


def step_row(device: Device, name: str, batch: int, eager_goal: float, graph_goal: float | None) -> dict[str, Any]:
    workload = w.WORKLOADS[name]
    size = device.scaled(batch, min(batch, 4))
    bare = Ours(workload, size)
    for _ in range(WARMUP):
        bare.eager()
    bare.capture()
    calls: dict[str, Callable[[], Any]] = {
        "ours": Ours(workload, size).of_trainer("auto" if device.rehearse else True),
        "ours eager": Ours(workload, size).of_trainer(False),
        "ours bare": bare.captured,  # without what the Trainer adds: the check for nan, the count of right answers
    }
    problems = {}
    for way in ("eager", "eager nhwc", "graph", *(() if device.rehearse else ("compile",))):
        try:
            calls[f"torch {way}"] = torch_step(workload, device, way, size)
        except Exception as error:  # one way of theirs that fails leaves the others
            problems[way] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    seconds = device.medians(calls, device.scaled(ROUNDS, 1), device.scaled(1000, 1) / 4000)
    row = {"name": f"{name} {batch}", "seconds": seconds, "goals": {"eager": eager_goal, "graph": graph_goal}}
    best = min(value for key, value in seconds.items() if key.startswith("torch eager"))
    row["against eager"] = best / seconds["ours"]
    for way in ("graph", "compile"):
        if f"torch {way}" in seconds:
            row[f"against {way}"] = seconds[f"torch {way}"] / seconds["ours"]
    return {**row, "problems": problems}


def conv_row(device: Device, workload: w.Workload) -> dict[str, Any]:
    """Forward and all gradients, and the time of the same multiplications as bare products."""
    import torch

    where = "cpu" if device.rehearse else "cuda"
    if device.rehearse:
        workload = replace(workload, batch=2, image=(workload.image[0], 8, 8))
    spec = workload.conv
    assert spec
    arrays = normal(0, workload.batch, *workload.image), normal(1, spec.outputs, spec.inputs, spec.kernel, spec.kernel)
    bias = normal(2, spec.outputs)
    x = array(np.ascontiguousarray(arrays[0].transpose(1, 2, 3, 0))).transpose(3, 0, 1, 2)
    weight, own_bias = array(arrays[1]), array(bias)
    options = {"stride": spec.stride, "padding": spec.padding}
    shape = F.conv2d(x, weight, own_bias, **options)[0].shape
    dy = normal(9, *shape)
    own_dy = array(np.ascontiguousarray(dy.transpose(1, 2, 3, 0))).transpose(3, 0, 1, 2)
    columns = spec.inputs * spec.kernel**2, int(np.prod(shape)) // spec.outputs
    a, b, c = (array(normal(3, *s)) for s in ((spec.outputs, columns[0]), columns, (spec.outputs, columns[1])))
    backend = get_backend()

    def ours() -> Any:
        return F.conv2d_backward(own_dy, F.conv2d(x, weight, own_bias, **options)[1])

    def products() -> None:
        backend.matmul(a, b, out=c)
        backend.matmul(c, b.T)
        backend.matmul(a.T, c)

    calls: dict[str, Callable[[], Any]] = {"ours": ours, "products": products}
    for name, layout in (("torch nchw", torch.contiguous_format), ("torch nhwc", torch.channels_last)):
        inputs = [torch.from_numpy(part).to(where) for part in (*arrays, bias)]
        inputs[0] = inputs[0].to(memory_format=layout)
        leaves = [part.requires_grad_() for part in inputs]
        gradient = torch.from_numpy(dy).to(where).to(memory_format=layout)

        def theirs(leaves: Any = leaves, gradient: Any = gradient) -> Any:
            y = torch.nn.functional.conv2d(*leaves, spec.stride, spec.padding)
            return torch.autograd.grad(y, leaves, gradient)

        calls[name] = theirs
    seconds = device.medians(calls, device.scaled(ROUNDS, 1), device.scaled(500, 1) / 4000)
    best = min(seconds["torch nchw"], seconds["torch nhwc"])
    return {
        "name": workload.name, "seconds": seconds, "against cuDNN": best / seconds["ours"],
        "share of products": seconds["products"] / seconds["ours"],
        "goals": {"cuDNN": CONVOLUTION_GOAL, "products": PRODUCT_GOAL},
    }  # fmt: skip


def run(device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"not run": "PyTorch is not installed here"}
    if not device.rehearse:
        torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {}
    kinds = [kind for kind in ("steps", "convolutions") if not arguments.only or kind in arguments.only]
    for allow in (False, True):
        if (
            arguments.only
            and {"exact", "tf32"} & set(arguments.only)
            and ("exact", "tf32")[allow] not in arguments.only
        ):
            continue
        with tf32(allow, device):
            found: dict[str, Any] = {}
            if "steps" in kinds:
                found["steps"] = [step_row(device, *row) for row in STEPS[: device.scaled(len(STEPS), 3)]]
            if "convolutions" in kinds:
                rows = [workload for workload in w.WORKLOADS.values() if workload.kind == "conv"]
                found["convolutions"] = [conv_row(device, workload) for workload in rows]
        result["tf32" if allow else "exact"] = found
    return result


if __name__ == "__main__":
    stage(run, __doc__)
