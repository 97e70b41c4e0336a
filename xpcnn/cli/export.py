"""`xpcnn export`: a trained network as an ONNX file, for other runtimes."""

from __future__ import annotations

import argparse
import os


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and print what it takes and gives."""
    from xpcnn import onnx, recipes

    model, recipe, _, kind = recipes.load_model(arguments.source, backend="numpy")
    shape = recipe.input_shape(kind)
    onnx.export(
        model.float(),
        shape,
        arguments.out,
        opset=arguments.opset,
        fold=arguments.fold,
        classes=[str(label) for label in range(recipe.classes)],
        transform=recipe.transforms[kind],
    )
    size = os.stat(arguments.out).st_size
    sizes = ", ".join(map(str, shape))
    print(f"{arguments.out}: {size:,} bytes, opset {arguments.opset}, input (N, {sizes}), output (N, {recipe.classes})")
    return 0
