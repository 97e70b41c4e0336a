"""The same numbers on NumPy and CuPy, eager and captured: gradients, loss curves, and what changes between steps."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import workloads as w
from gpu_device import Device, check, host, relative, stage
from gpu_steps import WARMUP, Ours
from peers import labels, normal

from xpcnn.backend import set_backend

NETS = ("tiny", "lenet5", "deep3", "conv8", "three-layer", "resnet20", "vgg8")
GRADIENTS, CURVES = 1e-5, 1e-3
# The best of three batches: where rounding decides the sign of one activation, ReLU moves the gradient of resnet20 by
# 0.003 of its norm (seen between two tilings on NumPy, batch 32). A mistake would show in all three.
GRADIENT_BATCH, SEEDS = 8, (1, 2, 3)
# Curves at a hundredth of each net's rate. At the full rate training magnifies rounding: NumPy against NumPy with
# another tiling parts by 0.009 (deep3), 0.015 (three-layer) and 0.04 (resnet20) within 100 steps of batch 32.
RATE = 0.01


def batch(workload: w.Workload, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that depend on their labels, so that there is something to learn."""
    assert workload.net
    target = labels(seed, n)
    x = normal(seed, n, *w.NETS[workload.net].image)
    return x + normal(99, 10, *w.NETS[workload.net].image)[target], target


def first_gradients(workload: w.Workload, seed: int) -> list[np.ndarray]:
    ours = Ours(workload, min(workload.batch, GRADIENT_BATCH))
    ours.load(*batch(workload, seed, min(workload.batch, GRADIENT_BATCH)))
    ours.gradients()
    return [host(parameter.grad) for parameter in ours.model.parameters()]


def curve(workload: w.Workload, n: int, steps: int, captured: bool = False) -> np.ndarray:
    """The losses of `steps` steps; the learning rate falls half-way, which a record must not miss."""
    ours = Ours(workload, n)
    ours.optimizer.lr *= RATE
    losses = []
    for i in range(steps):
        ours.load(*batch(workload, i % 16, n))
        if i == steps // 2:
            ours.optimizer.lr = ours.optimizer.lr / 2
        if captured and i == WARMUP:
            ours.capture()
        (ours.captured if captured and i >= WARMUP else ours.eager)()
        losses.append(host(ours.loss)[0])
    return np.asarray(losses)


def run(device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    checks, curves = [], {}
    names = [name for name in NETS if not arguments.only or name in arguments.only]
    for name in names[: device.scaled(len(names), 2)]:
        workload = w.WORKLOADS[name]
        n, steps = device.scaled(min(workload.batch, 32), 8), device.scaled(100, 8)
        set_backend("numpy")
        gradients, expected = [first_gradients(workload, seed) for seed in SEEDS], curve(workload, n, steps)
        set_backend(device.name)
        differences = [relative(first_gradients(workload, seed), gradients[i]) for i, seed in enumerate(SEEDS)]
        checks.append(check(f"{name} gradients", min(differences), GRADIENTS))
        eager, captured = curve(workload, n, steps), curve(workload, n, steps, captured=True)
        checks.append(check(f"{name} losses", float(np.abs(eager - expected).max()), CURVES))
        checks.append(check(f"{name} captured", float(np.abs(captured - eager).max()), CURVES))
        again = curve(workload, n, steps, captured=True)
        checks.append(check(f"{name} repeated bit by bit", float(np.abs(captured - again).max()), 0.0))
        curves[name] = {"numpy": expected.tolist(), "eager": eager.tolist(), "captured": captured.tolist()}
    return {"checks": checks, "curves": curves}


if __name__ == "__main__":
    stage(run, __doc__)
