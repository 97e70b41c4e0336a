"""What in an image a network's answer comes from: gradients of a class's score, as arrays; `plot` draws them.

Both run a copy of the model in evaluation mode: the model, its gradients and what its forwards keep stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.nn import Conv2d, Module
from xpcnn.nn.naming import layer_at
from xpcnn.nn.precision import computes_in_float16

__all__ = ["grad_cam", "saliency"]


def saliency(model: Module, x: Array, target: Any = None) -> Array:
    """Return how much each pixel moves a class's score: the largest |d score / d x| of its channels.

    Parameters
    ----------
    model : Module
        Gives scores (N, K), such as logits.
    x : (N, C, H, W) or (C, H, W) array
        Images as the model takes them.
    target : int, or (N,) integers, optional
        The class whose score it is; by default the one with the highest score, of each image.

    Returns
    -------
    (N, H, W) array
        0 or more, on the model's backend.

    Raises
    ------
    ShapeError, DTypeError, DataError
        The images do not fit the model, its result is not (N, K), or there is no such class.

    References
    ----------
    Simonyan, Vedaldi and Zisserman 2013, Deep inside convolutional networks, arXiv:1312.6034, section 3.

    Examples
    --------
    >>> from xpcnn import explain
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    >>> images = np.random.default_rng(0).random((2, 1, 8, 8), "float32")
    >>> explain.saliency(model, images).shape
    (2, 8, 8)
    """
    backend, twin, x = _prepared(model, x)
    with backend.errstate():
        dx = twin.backward(_slope(backend, twin(x), target))
        return backend.xp.max(backend.xp.absolute(dx), axis=1)  # (N, H, W)


def grad_cam(model: Module, x: Array, target: Any = None, *, layer: Module | str | None = None) -> Array:
    """Return where a layer sees what speaks for a class: relu(sum_k a_k A_k), with a_k the mean of d score / d A_k.

    Parameters
    ----------
    model : Module
        Gives scores (N, K), such as logits.
    x : (N, C, H, W) or (C, H, W) array
        Images as the model takes them.
    target : int, or (N,) integers, optional
        The class whose score it is; by default the one with the highest score, of each image.
    layer : Module or str, optional
        One inside the model, itself or its path in `named_modules`, whose result A is (N, K, h, w); by default the last
        `Conv2d`. It is called once in a forward.

    Returns
    -------
    (N, h, w) array
        0 or more, of the layer's size, on the model's backend.

    Raises
    ------
    ShapeError, DTypeError, DataError
        The images do not fit the model, its result is not (N, K), the layer's not (N, K, h, w), or there is no such
        class.
    ConfigError
        There is no such layer in the model, or no convolution.

    References
    ----------
    Selvaraju et al. 2017, Grad-CAM, arXiv:1610.02391, equations 1 and 2.

    Examples
    --------
    >>> from xpcnn import explain
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    >>> images = np.random.default_rng(0).random((2, 1, 8, 8), "float32")
    >>> explain.grad_cam(model, images).shape
    (2, 6, 6)
    """
    path = _path_of(model, layer)
    backend, twin, x = _prepared(model, x)
    inner = dict(twin.named_modules())[path]
    results: list[Array] = []
    slopes: list[Array] = []
    inner.register_forward_hook(lambda module, args, output: results.append(output))  # the copy goes, and its hook
    inner.backward = _watched(inner.backward, slopes)  # type: ignore[method-assign]
    with backend.errstate():
        twin.backward(_slope(backend, twin(x), target))
        if len(results) != 1 or len(slopes) != 1:
            raise ConfigError(
                f"layer: expected one that is called once in a forward, got {path!r}, {len(results)} calls"
            )
        maps, slope = results[0], slopes[0]
        if maps.ndim != 4:
            raise ShapeError(f"layer: expected one with a result (N, K, h, w), got {path!r} with {tuple(maps.shape)}")
        xp = backend.xp
        weights = xp.mean(slope, axis=(2, 3), keepdims=True)  # (N, K, 1, 1)
        return xp.maximum(xp.sum(xp.multiply(weights, maps), axis=1), 0)  # (N, h, w)


def _watched(backward: Callable[..., Array], slopes: list[Array]) -> Callable[..., Array]:
    """Return a backward that notes the gradient that it is given."""

    def watched(dy: Array, **options: Any) -> Array:
        slopes.append(dy)
        return backward(dy, **options)

    return watched


def _path_of(model: Module, layer: Module | str | None) -> str:
    """Return the path of a layer in the model."""
    modules = dict(model.named_modules())
    if layer is None:
        found = [path for path, module in modules.items() if isinstance(module, Conv2d)]
        if not found:
            raise ConfigError(
                f"layer: expected a Conv2d in the model, got none in {type(model).__name__}; name a layer"
            )
        return found[-1]
    if isinstance(layer, str):
        layer_at(model, layer, "layer")
        return layer
    for path, module in modules.items():
        if module is layer:
            return path
    raise ConfigError(f"layer: expected a layer of the model, got {type(layer).__name__} of another")


def _prepared(model: Module, x: Array) -> tuple[Backend, Module, Array]:
    """Return the backend, a frozen copy of the model in evaluation mode, and a batch on that backend."""
    if not isinstance(model, Module):
        raise ConfigError(f"model: expected an nn.Module, got {type(model).__name__}")
    backend = model.backend
    if not hasattr(x, "ndim") or x.ndim not in (3, 4):
        raise ShapeError(f"x: expected (N, C, H, W) or (C, H, W), got {tuple(getattr(x, 'shape', ()))}")
    x = x if backend.owns(x) else backend.asarray(backend_of(x).to_numpy(x))
    x = x if x.ndim == 4 else x[None]  # (1, C, H, W)
    twin = copy.deepcopy(model, {id(backend): backend})
    if computes_in_float16(twin):
        twin.float()
        x = x.astype("float32")
    twin.eval().requires_grad_(False)
    return backend, twin, x


def _slope(backend: Backend, scores: Array, target: Any) -> Array:
    """Return d score / d scores: 1 at each image's class."""
    if scores.ndim != 2:
        raise ShapeError(f"model: expected scores (N, K) from it, got {tuple(scores.shape)}")
    count, classes = scores.shape
    xp = backend.xp
    if target is None:
        index = xp.argmax(scores, axis=1)
    else:
        numbers = _numbers(target, count)
        if len(numbers) != count:
            raise ShapeError(f"target: expected a class, or one for each of {count} images, got {len(numbers)}")
        for each in numbers:
            if isinstance(each, bool) or not hasattr(each, "__index__"):
                raise DTypeError(f"target: expected integers, got {each!r:.40}")
            if not 0 <= int(each) < classes:
                raise DataError(f"target: expected a class from 0 to {classes - 1}, got {int(each)}")
        index = backend.asarray([int(each) for each in numbers], "int64")
    one = xp.equal(index[:, None], xp.arange(classes)[None])  # (N, K)
    return one.astype(scores.dtype)


def _numbers(target: Any, count: int) -> list[Any]:
    """Return what was given for each of `count` images, or the one thing that was given for all of them."""
    if getattr(target, "ndim", 0):
        return list(backend_of(target).to_numpy(target))
    if not hasattr(target, "ndim") and hasattr(target, "__iter__") and not isinstance(target, str):
        return list(target)
    return [target.item() if hasattr(target, "item") else target] * count
