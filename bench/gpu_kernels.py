"""Every kernel on the device beside its portable expression: what compute-sanitizer watches, and a first check."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
from gpu_device import Device, array, check, host, relative, stage

import xpcnn.functional as F
from xpcnn import nn, optim
from xpcnn.backend import Backend, get_backend
from xpcnn.random import manual_seed

BOUND = 1e-5  # float32; fused multiply-adds and other orders of summation


def batch_last(*shape: int) -> Any:
    """Random numbers, logically of `shape`, in batch-last memory."""
    memory = np.random.default_rng(sum(shape)).standard_normal((*shape[1:], shape[0])).astype(np.float32)
    return array(memory).transpose(len(shape) - 1, *range(len(shape) - 1))


def plain(*shape: int) -> Any:
    return array(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


@contextlib.contextmanager
def implicit_gemm(enabled: bool, tf32: bool = False) -> Iterator[None]:
    """Let convolutions go without columns inside the block, on tensor cores or not."""
    backend: Any = get_backend()
    before = getattr(backend, "implicit_gemm", False), getattr(backend, "allow_tf32", False)
    backend.implicit_gemm, backend.allow_tf32 = enabled, tf32
    try:
        yield
    finally:
        backend.implicit_gemm, backend.allow_tf32 = before


def whole(array: Any) -> Any:
    """Round to small integers, which TF32 holds: sums of their products are exact."""
    return get_backend().xp.rint(array)


def cases() -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """Each case returns the arrays that it computes, forward and backward."""
    for options in ({}, {"stride": 2}, {"padding": 1, "dilation": 2}, {"stride": 3, "padding": 2, "groups": 2}):
        for implicit in (False, True):

            def convolution(options: dict[str, Any] = options, implicit: bool = implicit) -> list[Any]:
                weight = plain(6, 4 // options.get("groups", 1), 3, 3)
                with implicit_gemm(implicit):
                    y, cache = F.conv2d(batch_last(33, 4, 11, 9), weight, plain(6), **options)
                    return [y, *F.conv2d_backward(batch_last(*y.shape), cache)]

            yield f"conv2d {options}{' without columns' if implicit else ''}", convolution
    if getattr(get_backend(), "compute_capability", (8, 0)) >= (8, 0):
        for dtype in ("float32", "float16"):

            def on_tensor_cores(dtype: str = dtype) -> list[Any]:
                x, weight, bias = (
                    whole(a).astype(dtype) for a in (batch_last(33, 4, 11, 9), plain(70, 4, 3, 3), plain(70))
                )
                with implicit_gemm(True, tf32=True):
                    y, cache = F.conv2d(x, weight, bias)
                    return [y, *F.conv2d_backward(whole(batch_last(*y.shape)).astype(dtype), cache)]

            yield f"conv2d of {dtype} integers on tensor cores", on_tensor_cores
    for size, options in ((2, {}), (3, {"stride": 1}), (3, {"stride": 2, "padding": 1, "ceil_mode": True})):

        def pool(size: int = size, options: dict[str, Any] = options) -> list[Any]:
            y, cache = F.max_pool2d(batch_last(37, 3, 12, 10), size, **options)
            return [y, F.max_pool2d_backward(batch_last(*y.shape), cache)]

        yield f"max_pool2d {size} {options}", pool
    for shape in ((257, 3), (65, 5, 14, 14)):

        def norm(shape: tuple[int, ...] = shape) -> list[Any]:
            c = shape[1]
            mean, var = plain(c), plain(c)
            y, cache = F.batch_norm(batch_last(*shape), plain(c), plain(c), mean, var, training=True)
            return [y, mean, var, *F.batch_norm_backward(batch_last(*shape), cache)]

        yield f"batch_norm {shape}", norm

    def after_convolution() -> list[Any]:
        manual_seed(0)
        with implicit_gemm(True):
            net = nn.Sequential(nn.Conv2d(4, 70, 3, bias=False), nn.BatchNorm2d(70))
            y = net(batch_last(33, 4, 11, 9))
            dx = net.backward(batch_last(*y.shape))
        return [y, dx, *(each.grad for each in net.parameters()), *(each for _, each in net.named_buffers())]

    yield "batch_norm after a conv2d without columns", after_convolution

    def rest() -> list[Any]:
        manual_seed(0)
        y, cache = F.relu(batch_last(130, 7))
        z, mask = F.dropout(y, 0.3, training=True)
        loss, dlogits = F.cross_entropy(z, array(np.arange(130) % 7))
        a, product = F.linear(y, plain(11, 7), plain(11))
        return [y, z, loss, dlogits, a, *F.linear_backward(batch_last(130, 11), product),
                F.relu_backward(F.dropout_backward(batch_last(130, 7), mask), cache)]  # fmt: skip

    yield "relu, dropout, cross_entropy, linear", rest
    for make in (
        lambda p: optim.SGD(p, 0.1),
        lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.01, nesterov=True, shrink=0.01),
        lambda p: optim.Adam(p, 0.1, weight_decay=0.1, amsgrad=True),
        lambda p: optim.AdamW(p, 0.1),
        lambda p: optim.RMSprop(p, 0.1, momentum=0.5, centered=True),
        lambda p: optim.Adagrad(p, 0.1, weight_decay=0.1),
    ):

        def update(make: Callable[[Any], Any] = make) -> list[Any]:
            parameters = [nn.Parameter(plain(5, 3)), nn.Parameter(plain(700))]
            optimizer = make(parameters)
            for _ in range(3):
                for parameter in parameters:
                    parameter.grad[...] = plain(*parameter.data.shape)
                    parameter.grad_is_zero = False
                optimizer.step()
            return [parameter.data for parameter in parameters]

        yield f"update {make([nn.Parameter(plain(3))]).__class__.__name__}", update


def without_kernels(backend: Backend, call: Callable[[], list[Any]]) -> list[np.ndarray]:
    fused, backend.fused = backend.fused, MappingProxyType({})
    try:
        return [host(value) for value in call()]
    finally:
        backend.fused = fused


def run(device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    backend = get_backend()
    if "no-portable" in arguments.only and device.name == "cupy":
        # Every array a block of the device's own: inside a pool's, compute-sanitizer sees no end of an array.
        backend.xp.cuda.set_allocator(None)
    checks = []
    for name, call in cases():
        got = [host(value) for value in call()]
        if "no-portable" not in arguments.only:
            checks.append(check(name, relative(got, without_kernels(backend, call)), BOUND))
    return {"checks": checks, "kernels": sorted(backend.fused)}


if __name__ == "__main__":
    stage(run, __doc__, with_kernels=True)
