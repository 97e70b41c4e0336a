"""JAX on the CPU, the whole step in one jitted function whose state is donated: channels first or last."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import workloads as w
from jax import lax

from peers import Step, batches, labels, normal

MOMENTUM, EPS = 0.1, 1e-5  # of batch norm


def versions() -> dict[str, str]:
    return {"jax": jax.__version__, "numpy": np.__version__}


def variants(workload: w.Workload, threads: list[int]) -> list[str]:
    return ["nhwc", "nchw"]


Tree = Any
Apply = Callable[[Tree, Tree, Any, Any], tuple[Any, Tree]]  # (parameters, statistics, x, key) -> (y, new statistics)


class Builder:
    """Turns a description into (parameters, statistics, apply) for one layout and mode."""

    def __init__(self, layout: str, training: bool) -> None:
        self.layout, self.training = layout, training
        self.random = np.random.RandomState(0)
        self.axes = (0, 2, 3) if layout == "nchw" else (0, 1, 2)

    def draw(self, *shape: int, fan_in: int) -> Any:
        return jnp.asarray(self.random.standard_normal(shape).astype(np.float32) * np.float32((2 / fan_in) ** 0.5))

    def window(self, size: int) -> tuple[int, ...]:
        return (1, 1, size, size) if self.layout == "nchw" else (1, size, size, 1)

    def max_pool(self, x: Any, size: int, ceil: bool) -> Any:
        window = self.window(size)
        pads = [(0, -n % k if ceil else 0) for n, k in zip(x.shape, window, strict=True)]
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, pads)

    def channels(self, vector: Any) -> Any:
        return vector.reshape(1, -1, 1, 1) if self.layout == "nchw" else vector

    def conv(self, x: Any, weight: Any, spec: w.Conv) -> Any:
        kernel = "OIHW" if self.layout == "nchw" else "HWIO"
        numbers = (self.layout.upper(), kernel, self.layout.upper())
        pads = [(spec.padding, spec.padding)] * 2
        return lax.conv_general_dilated(
            x, weight, (spec.stride,) * 2, pads, dimension_numbers=numbers, feature_group_count=spec.groups
        )

    def conv_weight(self, spec: w.Conv) -> Any:
        k, inputs = spec.kernel, spec.inputs // spec.groups
        shape = (spec.outputs, inputs, k, k) if self.layout == "nchw" else (k, k, inputs, spec.outputs)
        return self.draw(*shape, fan_in=inputs * k * k)

    def layer(self, spec: w.Layer) -> tuple[Tree, Tree, Apply]:
        if isinstance(spec, w.Conv):
            parameters = {"weight": self.conv_weight(spec)}
            if spec.bias:
                parameters["bias"] = jnp.zeros(spec.outputs)

            def conv(p: Tree, s: Tree, x: Any, key: Any) -> tuple[Any, Tree]:
                y = self.conv(x, p["weight"], spec)
                return (y + self.channels(p["bias"]) if spec.bias else y), s

            return parameters, (), conv
        if isinstance(spec, w.BatchNorm):
            ones, zeros = jnp.ones(spec.channels), jnp.zeros(spec.channels)
            return {"gamma": ones, "beta": zeros}, {"mean": zeros, "var": ones + 0}, self.batch_norm
        if isinstance(spec, w.ReLU):
            return (), (), lambda p, s, x, key: (jax.nn.relu(x), s)
        if isinstance(spec, w.MaxPool):
            return (), (), lambda p, s, x, key: (self.max_pool(x, spec.size, spec.ceil), s)
        if isinstance(spec, w.AvgPool):
            window, mean = self.window(spec.size), 1 / spec.size**2
            return (), (), lambda p, s, x, key: (lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") * mean, s)
        if isinstance(spec, w.Grown):
            main_p, main_s, main = self.net(spec.main)

            def grown(p: Tree, s: Tree, x: Any, key: Any) -> tuple[Any, Tree]:
                y, new = main(p, s, x, key)
                return jnp.concatenate([x, y], 1 if self.layout == "nchw" else 3), new

            return main_p, main_s, grown
        if isinstance(spec, w.GlobalAvgPool):
            return (), (), lambda p, s, x, key: (x.mean(self.axes[1:]), s)
        if isinstance(spec, w.Flatten):
            return (), (), lambda p, s, x, key: (x.reshape(x.shape[0], -1), s)
        if isinstance(spec, w.Linear):
            parameters = {
                "weight": self.draw(spec.inputs, spec.outputs, fan_in=spec.inputs),
                "bias": jnp.zeros(spec.outputs),
            }
            return parameters, (), lambda p, s, x, key: (x @ p["weight"] + p["bias"], s)
        if isinstance(spec, w.Dropout):

            def dropout(p: Tree, s: Tree, x: Any, key: Any) -> tuple[Any, Tree]:
                if not self.training:
                    return x, s
                kept = jax.random.bernoulli(key, 1 - spec.share, x.shape)
                return jnp.where(kept, x / (1 - spec.share), 0), s

            return (), (), dropout
        return self.residual(spec)

    def batch_norm(self, p: Tree, s: Tree, x: Any, key: Any) -> tuple[Any, Tree]:
        if self.training:
            mean, var = x.mean(self.axes), x.var(self.axes)
            unbiased = var * (x.size / mean.size / (x.size / mean.size - 1))
            s = {"mean": s["mean"] + MOMENTUM * (mean - s["mean"]), "var": s["var"] + MOMENTUM * (unbiased - s["var"])}
        else:
            mean, var = s["mean"], s["var"]
        scale = p["gamma"] * lax.rsqrt(var + EPS)
        return x * self.channels(scale) + self.channels(p["beta"] - mean * scale), s

    def residual(self, spec: w.Residual) -> tuple[Tree, Tree, Apply]:
        (main_p, main_s, main), (short_p, short_s, short) = self.net(spec.main), self.net(spec.shortcut)

        def apply(p: Tree, s: Tree, x: Any, key: Any) -> tuple[Any, Tree]:
            left, new_main = main(p[0], s[0], x, key)
            right, new_short = short(p[1], s[1], x, key)
            return left + right, [new_main, new_short]

        return [main_p, short_p], [main_s, short_s], apply

    def net(self, specs: w.Layers) -> tuple[Tree, Tree, Apply]:
        built = [self.layer(spec) for spec in specs]

        def apply(p: Tree, s: Tree, x: Any, key: Any) -> tuple[Any, Tree]:
            new = []
            for (_, _, layer), parameters, statistics in zip(built, p, s, strict=True):
                x, statistics = layer(parameters, statistics, x, key)
                new.append(statistics)
            return x, new

        return [b[0] for b in built], [b[1] for b in built], apply


def image(layout: str, seed: int, *shape: int) -> Any:
    x = normal(seed, *shape)
    return jnp.asarray(x if layout == "nchw" else np.ascontiguousarray(x.transpose(0, 2, 3, 1)))


def count(parameters: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def build(workload: w.Workload, variant: str) -> Step:
    return {"train": _train, "inference": _inference, "conv": _conv, "pool": _pool}[workload.kind](workload, variant)


def update(spec: w.Optimiser, parameters: Tree, gradients: Tree, states: Tree, step: Any) -> tuple[Tree, Tree]:
    decay = spec.weight_decay or spec.shrink
    if decay:
        gradients = jax.tree.map(lambda g, p: g + decay * p, gradients, parameters)
    if spec.name == "adam":
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, states[0], gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, states[1], gradients)
        rate = spec.lr / (1 - 0.9**step)
        root = jnp.sqrt(1 - 0.999**step)
        new = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), parameters, first, second)
        return new, (first, second)
    if spec.momentum:
        gradients = jax.tree.map(lambda v, g: spec.momentum * v + g, states[0], gradients)
        states = (gradients,)
    return jax.tree.map(lambda p, g: p - spec.lr * g, parameters, gradients), states


def _train(workload: w.Workload, layout: str) -> Step:
    net, spec = w.NETS[workload.net], workload.optimiser
    parameters, statistics, apply = Builder(layout, training=True).net(net.layers)
    zeros = [jax.tree.map(jnp.zeros_like, parameters) for _ in range(2)]
    states = tuple(zeros if spec.name == "adam" else zeros[: 1 if spec.momentum else 0])

    def loss_of(parameters: Tree, statistics: Tree, x: Any, target: Any, key: Any) -> tuple[Any, Tree]:
        logits, statistics = apply(parameters, statistics, x, key)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], 1)
        return -picked.mean(), statistics

    def whole(state: Tree, x: Any, target: Any) -> tuple[Tree, Any]:
        parameters, statistics, states, step, key = state
        key, now = jax.random.split(key)
        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            parameters, statistics, x, target, now
        )
        parameters, states = update(spec, parameters, gradients, states, step + 1)
        return (parameters, statistics, states, step + 1, key), loss

    jitted = jax.jit(whole, donate_argnums=0)
    # A donated buffer may be there only once: the statistics' zeros are shared with the parameters' until copied.
    state = jax.tree.map(jnp.copy, (parameters, statistics, states, jnp.zeros((), jnp.float32), jax.random.PRNGKey(0)))
    data = itertools.cycle(
        [
            (image(layout, seed, workload.batch, *net.image), jnp.asarray(labels(seed, workload.batch)))
            for seed in batches(workload.batch)
        ]
    )
    held = [state, None]

    def call() -> None:
        held[0], held[1] = jax.block_until_ready(jitted(held[0], *next(data)))

    return Step(call, loss=lambda: float(held[1]), parameters=count(parameters))


def _inference(workload: w.Workload, layout: str) -> Step:
    net = w.NETS[workload.net]
    parameters, statistics, apply = Builder(layout, training=False).net(net.layers)
    jitted = jax.jit(lambda p, s, x: apply(p, s, x, None)[0])
    x = image(layout, 0, workload.batch, *net.image)
    return Step(lambda: jax.block_until_ready(jitted(parameters, statistics, x)), parameters=count(parameters))


def _forward_backward(forward: Callable[..., Any], layout: str, *inputs: Any) -> Step:
    shape = jax.eval_shape(forward, *inputs).shape
    dy = jnp.asarray(normal(9, *shape))

    @jax.jit
    def both(dy: Any, *inputs: Any) -> Any:
        y, back = jax.vjp(forward, *inputs)
        return y, back(dy)

    return Step(lambda: jax.block_until_ready(both(dy, *inputs)))


def _conv(workload: w.Workload, layout: str) -> Step:
    spec, builder = workload.conv, Builder(layout, training=True)
    x = image(layout, 0, workload.batch, *workload.image)
    bias = jnp.asarray(normal(2, spec.outputs))

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        return builder.conv(x, weight, spec) + builder.channels(bias)

    return _forward_backward(forward, layout, x, builder.conv_weight(spec), bias)


def _pool(workload: w.Workload, layout: str) -> Step:
    builder = Builder(layout, training=True)
    x = image(layout, 0, workload.batch, *workload.image)
    return _forward_backward(lambda x: builder.max_pool(x, workload.pool, False), layout, x)
