"""`xpcnn recipes`: what can be trained, how large it is and what to expect of it."""

from __future__ import annotations

import argparse

_HEADING = ("recipe", "parameters", "multiply-adds", "accuracy", "time", "network")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from xpcnn import recipes
    from xpcnn.backend import use_backend
    from xpcnn.nn.summary import costs

    rows = [_HEADING]
    with use_backend("numpy"):
        for name in recipes.names():
            recipe = recipes.find(name)
            model = recipe.create_model()
            parameters = sum(parameter.size for parameter in model.parameters())
            work = sum(cost.multiply_adds for cost in costs(model, recipe.input_shape()))
            accuracy, relative_time = f"{recipe.accuracy:.3f}", f"{recipe.relative_time:.3g}"
            rows.append((name, f"{parameters:,}", f"{work:,}", accuracy, relative_time, recipe.network))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADING))]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        cells = [row[0].ljust(widths[0]), *numbers, row[-1]]
        print("  ".join(cells).rstrip())
    print("multiply-adds: of one image forward; accuracy: expected on the test set; time: of the training, lenet5 = 1")
    return 0
