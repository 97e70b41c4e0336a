"""One training step of a workload, ours (eager or captured) and PyTorch's (eager, compiled, or as a CUDA graph)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import workloads as w
from gpu_device import Device, array
from peers import labels, normal
from peers.xpcnn_peer import optimiser

import xpcnn
from xpcnn import models, nn
from xpcnn.backend import get_backend
from xpcnn.training.step import Step
from xpcnn.training.trainer import READ_EVERY

WARMUP = 3  # steps before a recording, so that every kernel is compiled and loaded


class Ours:
    """A model, its loss and its optimiser on the active backend, over batches of fixed shape."""

    def __init__(self, workload: w.Workload, batch: int | None = None) -> None:
        assert workload.net
        assert workload.optimiser
        xpcnn.manual_seed(0)
        self.backend = get_backend()
        self.model = models.create(workload.net)
        self.model.train()
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = optimiser(workload.optimiser, self.model)
        n = batch or workload.batch
        memory = np.ascontiguousarray(normal(0, n, *w.NETS[workload.net].image).transpose(1, 2, 3, 0))
        self.memory = array(memory)  # (C, H, W, N), as the library's loader gives it
        self.x = self.memory.transpose(3, 0, 1, 2)
        self.labels = array(labels(0, n).astype(np.int64))
        self.loss = self.backend.zeros((1,), "float32")
        self.replay: Callable[[], None] | None = None

    def load(self, x: np.ndarray, target: np.ndarray) -> None:
        """Write a batch (N, C, H, W) to the arrays that every step reads."""
        self.memory[...] = array(np.ascontiguousarray(x.transpose(1, 2, 3, 0)))
        self.labels[...] = array(target.astype(np.int64))

    def gradients(self) -> None:
        self.optimizer.zero_grad()
        self.loss[...] = self.criterion(self.model(self.x), self.labels)
        self.model.backward(self.criterion.backward(), input_gradient=False)

    def eager(self) -> None:
        self.gradients()
        self.optimizer.step()

    def captured(self) -> None:
        """Replay the step."""
        assert self.replay
        self.replay()

    def of_trainer(self, compiled: bool | str) -> Callable[[], None]:
        """Return the step as `Trainer` runs it, with its checks, counts and a look at the results every 50 steps."""
        step = Step(self.model, self.criterion, self.optimizer, self.backend, compile=compiled, read_every=READ_EVERY)
        done = 0

        def call() -> None:
            nonlocal done
            step.run(self.x, self.labels)
            done += 1
            if step.immediate or done % READ_EVERY == 0:
                step.read()

        for _ in range(WARMUP + 2):
            call()
        return call

    def capture(self) -> None:
        """Let the step be recorded, which it is after a few calls more."""

        def step() -> None:
            self.gradients()
            self.optimizer.step()

        self.replay = xpcnn.compile(step)


def torch_step(workload: w.Workload, device: Device, way: str, batch: int | None = None) -> Callable[[], Any]:
    """Return PyTorch's step: way is "eager", "eager nhwc", "compile" or "graph"."""
    import torch
    import torch.nn.functional as F
    from peers import torch_peer

    assert workload.net
    assert workload.optimiser
    where = "cpu" if device.rehearse else "cuda"
    layout = torch.channels_last if "nhwc" in way else torch.contiguous_format
    torch.manual_seed(0)
    net = w.NETS[workload.net]
    model = torch_peer.sequential(net.layers).to(where, memory_format=layout).train()
    optimizer = torch_peer.optimiser(workload.optimiser, model, fused=where == "cuda")
    for group in optimizer.param_groups:
        if "capturable" in group:  # Adam counts its steps on the device, so that a graph can hold it
            group["capturable"] = where == "cuda"
    n = batch or workload.batch
    x = torch.from_numpy(normal(0, n, *net.image)).to(where, memory_format=layout)
    target = torch.from_numpy(labels(0, n)).to(where).long()

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    if way == "compile":
        forward = torch.compile(lambda x, target: F.cross_entropy(model(x), target), mode="max-autotune-no-cudagraphs")

        def compiled() -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = forward(x, target)
            loss.backward()
            optimizer.step()
            return loss

        compiled()
        return compiled
    if way == "graph" and where == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
        return graph.replay
    return step
