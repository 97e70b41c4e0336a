"""`xpcnn export`: a trained network as an ONNX file, for other runtimes."""

from __future__ import annotations

import argparse
import os
from typing import Any

from xpcnn.errors import ConfigError


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and print what it takes and gives."""
    from xpcnn import onnx, recipes

    predictor = recipes.load_predictor(arguments.source, backend="numpy")
    shape = _given_shape(arguments.input_shape) if arguments.input_shape else _input_shape(arguments.source, predictor)
    model, classes = predictor.model.float(), predictor.classes
    onnx.export(
        model,
        shape,
        arguments.out,
        opset=arguments.opset,
        fold=arguments.fold,
        classes=None if classes is None else [str(each) for each in classes],
        transform=predictor.transform,
    )
    size = os.stat(arguments.out).st_size
    sizes = ", ".join(map(str, shape))
    print(f"{arguments.out}: {size:,} bytes, opset {arguments.opset}, input (N, {sizes})")
    return 0


def _given_shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and len(size) < 10 for size in sizes):
        raise ConfigError(f"--input-shape: expected sizes such as 3,32,32, got {text!r:.40}")
    return tuple(int(size) for size in sizes)


def _input_shape(source: str, predictor: Any) -> tuple[int, ...]:
    """Return the shape of one image as the network takes it."""
    from xpcnn.backend import get_backend, use_backend

    stored = (28, 28) if predictor.stored.digits else predictor.image_shape
    if stored is None or None in stored:
        raise ConfigError(
            f"{source}: it takes images of any size, and a file of ONNX is for one: give --input-shape 3,H,W"
        )
    with use_backend("numpy"):
        return tuple(predictor.prepare(get_backend().zeros((1, *stored), "uint8")).shape[1:])
