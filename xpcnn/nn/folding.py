"""From a model to the steps of its forward in evaluation mode: whatever can be computed beforehand is."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ConfigError
from xpcnn.functional.channelwise import ChannelOp, run
from xpcnn.functional.concatenation import concat
from xpcnn.functional.convolution import FixedConvolution
from xpcnn.functional.linear import linear
from xpcnn.functional.normalization import AffineOp
from xpcnn.functional.pooling import MaxPoolOp
from xpcnn.nn.batches import Cost
from xpcnn.nn.channelwise import ChannelLayer, pool_first
from xpcnn.nn.concat import Concat
from xpcnn.nn.convolution import Conv2d
from xpcnn.nn.dropout import Dropout, Dropout2d
from xpcnn.nn.flatten import Flatten
from xpcnn.nn.fusion import Chain, Group, ResidualSum, group
from xpcnn.nn.identity import Identity
from xpcnn.nn.inquiries import goes_its_class_s_way, is_ours, keeps_samples_apart
from xpcnn.nn.linear import Linear
from xpcnn.nn.module import Module
from xpcnn.nn.normalization import BatchNorm1d, BatchNorm2d
from xpcnn.nn.residual import Residual, add_paths
from xpcnn.nn.sequential import Sequential


class Step:
    """A part of a forward: y for x."""

    def __call__(self, x: Array) -> Array:
        """Return y."""
        raise NotImplementedError

    def measure(self, x: Array) -> tuple[Array, Cost]:
        """Return y and what it takes."""
        y = self(x)
        return y, (max(x.size, y.size), self.work(x, y))

    def work(self, x: Array, y: Array) -> float:
        """Return the elementary operations, a product's multiply-adds as an eighth of one each."""
        return 2.0 * int(y.size)


class Path(Step):
    """Steps in their order.

    Attributes
    ----------
    is_fresh : bool
        Whether the result is an array of its own, neither x nor a view of it.
    is_known : bool
        Whether all steps are the library's own and treat each sample of a batch alone.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.is_fresh = False
        self.is_known = True

    def __call__(self, x: Array) -> Array:
        for step in self.steps:
            x = step(x)
        return x

    def measure(self, x: Array) -> tuple[Array, Cost]:
        largest, total = x.size, 0.0
        for step in self.steps:
            x, (size, work) = step.measure(x)
            largest, total = max(largest, size), total + work
        return x, (largest, total)


class _Convolution(Step):
    def __init__(self, layer: Conv2d, weight: Array, bias: Array | None) -> None:
        self.convolve = FixedConvolution(
            weight, bias, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
        )

    def __call__(self, x: Array) -> Array:
        return self.convolve(x)

    def __getstate__(self) -> dict[str, Any]:
        return {"weight": self.convolve.weight, "bias": self.convolve.bias, "geometry": self.convolve.geometry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.convolve = FixedConvolution(state["weight"], state["bias"], **state["geometry"])

    def work(self, x: Array, y: Array) -> float:
        return int(y.size) * int(self.convolve.weight[0].size) / 8


class _Dense(Step):
    def __init__(self, weight: Array, bias: Array | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Array) -> Array:
        return linear(x, self.weight, self.bias)[0]

    def work(self, x: Array, y: Array) -> float:
        return int(x.shape[0]) * int(self.weight.size) / 8


class _Chain(Step):
    def __init__(self, ops: list[ChannelOp], reuse: bool) -> None:
        self.ops, self.reuse = ops, reuse

    def __call__(self, x: Array) -> Array:
        return run(self.ops, x, keep=False, reuse=self.reuse)[0]

    def work(self, x: Array, y: Array) -> float:
        return float(x.size) * sum(op.passes for op in self.ops)


class _Sum(Step):
    """A residual block."""

    def __init__(self, body: Path, shortcut: Path) -> None:
        self.body, self.shortcut = body, shortcut

    def __call__(self, x: Array) -> Array:
        return add_paths(self.body(x), self.shortcut(x), reuse=self.body.is_fresh)

    def measure(self, x: Array) -> tuple[Array, Cost]:
        y, (size, work) = self.body.measure(x)
        other, (other_size, other_work) = self.shortcut.measure(x)
        return add_paths(y, other), (max(size, other_size), work + other_work + 3 * y.size)


class _Branches(Step):
    """Several paths, their results side by side."""

    def __init__(self, paths: list[Path], dim: int) -> None:
        self.paths, self.dim = paths, dim

    def __call__(self, x: Array) -> Array:
        return concat([path(x) for path in self.paths], self.dim)[0]

    def measure(self, x: Array) -> tuple[Array, Cost]:
        measured = [path.measure(x) for path in self.paths]
        y = concat([each for each, _ in measured], self.dim)[0]
        largest = max(size for _, (size, _) in measured)
        return y, (max(y.size, largest), 2.0 * y.size + sum(work for _, (_, work) in measured))


class _AsItIs(Step):
    """A copy of a module, in evaluation mode."""

    def __init__(self, module: Module) -> None:
        backend = module.backend
        try:
            self.module = copy.deepcopy(module, {id(backend): backend})
        except Exception as error:
            raise ConfigError(
                f"model: expected modules that copy.deepcopy copies, got {type(module).__name__}, "
                f"{type(error).__name__}: {error}; give it a __deepcopy__"
            ) from error
        self.module.eval()

    def __call__(self, x: Array) -> Array:
        return self.module(x)


def fold(model: Module) -> Path:
    """Return the steps of the model's forward in evaluation mode, which share no memory with it."""
    path, groups = Path(), deque(group(_flatten(model), is_ours))
    while groups:
        part = groups.popleft()
        if isinstance(part, Chain):
            if part.convolution is None:
                _add_chain(path, part.members)
            else:
                _add_product(path, part.convolution, part.members)
        elif isinstance(part, ResidualSum):
            _add_sum(path, part.block)
            _add_chain(path, part.followers)
        else:
            layer = part.layers()[0]
            if not goes_its_class_s_way(layer):
                path.steps.append(_AsItIs(layer))
                path.is_fresh = path.is_known = False
            elif type(layer) is Residual:
                _add_sum(path, layer)
            elif type(layer) is Concat:
                _add_branches(path, layer)
            elif type(layer) is Conv2d or type(layer) is Linear:
                _add_product(path, layer, _take_chain(groups))
            else:
                path.steps.append(_AsItIs(layer))
                path.is_fresh = path.is_fresh and type(layer) is Flatten
                path.is_known = path.is_known and keeps_samples_apart(layer)
    return path


def _flatten(module: Module) -> Iterator[Module]:
    """Yield the layers that a forward in evaluation mode goes through, those of inner `Sequential`s in their place."""
    is_plain = goes_its_class_s_way(module)
    if type(module) is Sequential and is_plain:
        for layer in module:
            yield from _flatten(layer)
    elif type(module) not in (Dropout, Dropout2d, Identity) or not is_plain:
        yield module


def _add_chain(path: Path, layers: Sequence[ChannelLayer]) -> None:
    path.steps.append(_Chain(_operations(layers), reuse=path.is_fresh))
    path.is_fresh = True


def _add_sum(path: Path, block: Residual) -> None:
    body, shortcut = fold(block.body), Path() if block.shortcut is None else fold(block.shortcut)
    path.steps.append(_Sum(body, shortcut))
    path.is_fresh = True
    path.is_known = path.is_known and body.is_known and shortcut.is_known


def _add_branches(path: Path, layer: Concat) -> None:
    paths = [fold(branch) for branch in layer.branches]
    path.steps.append(_Branches(paths, layer.dim))
    path.is_fresh = True
    path.is_known = path.is_known and all(branch.is_known for branch in paths)


def _take_chain(groups: deque[Group]) -> Sequence[ChannelLayer]:
    """Take the layers of the next group where that is a chain alone."""
    if not groups or not isinstance(groups[0], Chain) or groups[0].convolution is not None:
        return ()
    members = groups[0].members
    groups.popleft()
    return members


def _add_product(path: Path, layer: Conv2d | Linear, following: Sequence[ChannelLayer]) -> None:
    """Add a convolution or dense layer with all that can go into it, and the chain behind it."""
    backend = backend_of(layer.weight.data)
    weight = backend.copy(layer.weight.data)
    bias = None if layer.bias is None else backend.copy(layer.bias.data)
    for norm in following:
        if not isinstance(norm, BatchNorm1d | BatchNorm2d) or not _folds(layer, norm):
            break
        shift, scale, mean = _affine(norm)
        shift = backend.xp.subtract(shift, backend.xp.multiply(mean, scale))
        following = following[1:]
        weight *= scale.reshape(-1, *(1,) * (weight.ndim - 1))
        bias = shift if bias is None else backend.xp.add(backend.xp.multiply(bias, scale), shift)
    ops = _operations(following)
    if ops and type(ops[0]) is MaxPoolOp and bias is not None:
        # The maximum of sums with a constant is the sum with the maximum, rounding included, on fewer numbers.
        ops.insert(1, AffineOp(bias))
        bias = None
    path.steps.append(_Convolution(layer, weight, bias) if isinstance(layer, Conv2d) else _Dense(weight, bias))
    if ops:
        path.steps.append(_Chain(ops, reuse=True))
    path.is_fresh = True


def _folds(layer: Conv2d | Linear, norm: BatchNorm1d | BatchNorm2d) -> bool:
    """Whether batch norm of a layer's outputs follows; one that does not fit them is left to say so itself."""
    weight = layer.weight.data
    return (
        type(norm) is (BatchNorm2d if isinstance(layer, Conv2d) else BatchNorm1d)
        and norm.weight.shape == (weight.shape[0],)
        and norm.weight.data.dtype == weight.dtype
    )


def _affine(norm: BatchNorm1d | BatchNorm2d) -> tuple[Array, Array, Array]:
    """Return beta, the scale gamma / sqrt(var + eps) and the mean, copies (C,)."""
    backend = backend_of(norm.weight.data)
    xp = backend.xp
    scale = xp.divide(norm.weight.data, xp.sqrt(xp.add(norm.running_var, norm.eps)))
    return backend.copy(norm.bias.data), scale, backend.copy(norm.running_mean)


def _operations(layers: Sequence[ChannelLayer]) -> list[ChannelOp]:
    """Return the operations of channelwise layers in evaluation mode."""
    ops: list[ChannelOp] = [
        AffineOp(*_affine(layer), ndim=layer.ndim)
        if isinstance(layer, BatchNorm1d | BatchNorm2d)
        else layer.channel_op()
        for layer in layers
    ]
    return pool_first(ops)
