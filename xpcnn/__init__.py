"""Convolutional networks whose every layer is written once over an array module `xp`: NumPy, or CuPy on a GPU.

    nn, models               layers and losses; networks such as lenet5 and resnet20
    optim                    SGD, Adam and kin, schedules of the learning rate
    data, datasets           loaders and transforms; MNIST, folders of pictures, CIFAR-10
    training                 Trainer, callbacks, History, save_model, load_model
    plot, explain            pictures of a training; saliency and Grad-CAM
    functional               the maths: y, cache = F.conv2d(...), F.conv2d_backward(dy, cache)
    testing                  gradcheck for a layer of your own
    set_backend, compile     where it is computed; a step recorded once and replayed
    onnx, sklearn            files for elsewhere; a network as an estimator

`xpcnn.set_backend("auto")` takes a GPU where one answers. `xpcnn guide` (or `xpcnn/guides/`) tells the rest.
"""

from __future__ import annotations

import importlib
from typing import Any

from xpcnn.backend import (
    Backend,
    available_backends,
    compile,
    get_backend,
    get_num_threads,
    get_winograd,
    register_backend,
    set_backend,
    set_num_threads,
    set_winograd,
    use_backend,
)
from xpcnn.random import manual_seed

__version__ = "0.2.0"

__all__ = [
    "Backend",
    "__version__",
    "available_backends",
    "compile",
    "get_backend",
    "get_num_threads",
    "get_winograd",
    "info",
    "manual_seed",
    "no_grad",
    "register_backend",
    "set_backend",
    "set_num_threads",
    "set_winograd",
    "use_backend",
]

_SUBPACKAGES = frozenset(
    {
        "backend",
        "cli",
        "data",
        "datasets",
        "distributed",
        "errors",
        "explain",
        "functional",
        "models",
        "nn",
        "onnx",
        "optim",
        "plot",
        "random",
        "recipes",
        "sklearn",
        "testing",
        "training",
        "web",
    }
)
_LATER = {"no_grad": "xpcnn.nn", "info": "xpcnn.information"}


def __getattr__(name: str) -> Any:
    # Packages are imported when they are first named: `import xpcnn` costs little more than NumPy.
    if name in _SUBPACKAGES:
        return importlib.import_module(f"xpcnn.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'xpcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
