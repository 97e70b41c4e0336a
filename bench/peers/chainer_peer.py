"""Chainer 7.8.1 on NumPy 1.23, the last NumPy it runs on: the nearest relative, define-by-run over NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import workloads as w

from peers import Step, batches, labels, normal


def versions() -> dict[str, str]:
    return {"chainer": chainer.__version__, "numpy": np.__version__}


def variants(workload: w.Workload, threads: list[int]) -> list[str]:
    return ["nchw"]


class Residual(chainer.Chain):
    def __init__(self, main: chainer.Sequential, shortcut: chainer.Sequential) -> None:
        super().__init__()
        with self.init_scope():
            self.main, self.shortcut = main, shortcut

    def forward(self, x: Any) -> Any:
        return self.main(x) + (self.shortcut(x) if len(self.shortcut) else x)


class Grown(chainer.Chain):
    def __init__(self, main: chainer.Sequential) -> None:
        super().__init__()
        with self.init_scope():
            self.main = main

    def forward(self, x: Any) -> Any:
        return F.concat([x, self.main(x)], axis=1)


def layer(spec: w.Layer) -> Callable[[Any], Any]:
    if isinstance(spec, w.Conv):
        he = chainer.initializers.HeNormal()
        sizes = spec.inputs, spec.outputs, spec.kernel, spec.stride, spec.padding
        return L.Convolution2D(*sizes, nobias=not spec.bias, initialW=he, groups=spec.groups)
    if isinstance(spec, w.BatchNorm):
        return L.BatchNormalization(spec.channels)
    if isinstance(spec, w.ReLU):
        return F.relu
    if isinstance(spec, w.MaxPool):
        return lambda x: F.max_pooling_2d(x, spec.size, cover_all=spec.ceil)
    if isinstance(spec, w.AvgPool):
        return lambda x: F.average_pooling_2d(x, spec.size)
    if isinstance(spec, w.Grown):
        return Grown(sequential(spec.main))
    if isinstance(spec, w.GlobalAvgPool):
        return lambda x: F.mean(x, axis=(2, 3))
    if isinstance(spec, w.Flatten):
        return lambda x: F.reshape(x, (x.shape[0], -1))
    if isinstance(spec, w.Linear):
        return L.Linear(spec.inputs, spec.outputs)
    if isinstance(spec, w.Dropout):
        return lambda x: F.dropout(x, spec.share)
    return Residual(sequential(spec.main), sequential(spec.shortcut))


def sequential(specs: w.Layers) -> chainer.Sequential:
    return chainer.Sequential(*(layer(spec) for spec in specs))


def build(workload: w.Workload, variant: str) -> Step:
    return {"train": _train, "inference": _inference, "conv": _conv, "pool": _pool}[workload.kind](workload)


def _train(workload: w.Workload) -> Step:
    net, spec = w.NETS[workload.net], workload.optimiser
    model = sequential(net.layers)
    if spec.name == "adam":
        optimizer = chainer.optimizers.Adam(spec.lr)
    elif spec.momentum:
        optimizer = chainer.optimizers.MomentumSGD(spec.lr, spec.momentum)
    else:
        optimizer = chainer.optimizers.SGD(spec.lr)
    optimizer.setup(model)
    decay = spec.weight_decay or spec.shrink
    if decay:
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(decay))
    data = itertools.cycle(
        [
            (normal(seed, workload.batch, *net.image), labels(seed, workload.batch).astype(np.int32))
            for seed in batches(workload.batch)
        ]
    )
    last: list[Any] = []

    def call() -> None:
        x, target = next(data)
        loss = F.softmax_cross_entropy(model(x), target)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        last[:] = [loss.array]

    return Step(call, loss=lambda: float(last[0]), parameters=model.count_params())


def _inference(workload: w.Workload) -> Step:
    model = sequential(w.NETS[workload.net].layers)
    x = normal(0, workload.batch, *w.NETS[workload.net].image)

    def call() -> Any:
        with chainer.no_backprop_mode(), chainer.using_config("train", False):
            return model(x).array

    return Step(call, parameters=model.count_params())


def _forward_backward(forward: Callable[..., Any], *inputs: Any) -> Step:
    dy = chainer.Variable(normal(9, *forward(*inputs).shape))

    def call() -> Any:
        variables = [chainer.Variable(array) for array in inputs]
        return chainer.grad([forward(*variables)], variables, [dy])

    return Step(call)


def _conv(workload: w.Workload) -> Step:
    spec = workload.conv
    x = normal(0, workload.batch, *workload.image)
    weight = normal(1, spec.outputs, spec.inputs, spec.kernel, spec.kernel)
    return _forward_backward(
        lambda x, weight, bias: F.convolution_2d(x, weight, bias, spec.stride, spec.padding),
        x, weight, normal(2, spec.outputs),
    )  # fmt: skip


def _pool(workload: w.Workload) -> Step:
    x = normal(0, workload.batch, *workload.image)
    return _forward_backward(lambda x: F.max_pooling_2d(x, workload.pool, cover_all=False), x)
