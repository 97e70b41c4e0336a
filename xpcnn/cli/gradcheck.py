"""`xpcnn gradcheck`: a network's own gradients beside difference quotients, layer by layer, parameter by parameter."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

_BATCH = 4  # images; batch norm over a single value per channel has no gradient to speak of
_ENTRIES = 12  # of each parameter, drawn at random; each costs two forwards


def _step(model: Any) -> float:
    """Return the step of the differences: small beside the filters, or it would cross kinks of ReLU and pooling."""
    from xpcnn.nn import Conv2d

    filters = [layer.weight.data for layer in model.modules() if isinstance(layer, Conv2d)]
    spreads = [float(model.backend.to_numpy(weight).std()) for weight in filters]
    return min([1e-6, *(1e-4 * spread for spread in spreads if spread > 0)])


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 where a gradient is off."""
    import numpy as np

    from xpcnn import recipes, testing
    from xpcnn.backend import use_backend
    from xpcnn.random import manual_seed

    recipe = recipes.find(arguments.recipe)
    manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    with use_backend(arguments.backend) if arguments.backend else contextlib.nullcontext():
        model = recipe.create_model()
        x = rng.standard_normal((_BATCH, *recipe.input_shape()))
        report = testing.gradcheck(model, x, eps=_step(model), max_entries=_ENTRIES, seed=arguments.seed)
        logits, labels = rng.standard_normal((_BATCH, 10)), rng.integers(0, 10, _BATCH)
        loss = testing.gradcheck(recipe.create_criterion(), (logits, labels))
    layers = {path: type(module).__name__ for path, module in model.named_modules()}
    rows = [("layer", "gradient", "shape", "entries", "analytic", "numerical", "relative error", "")]
    for found in [*report.rows, *loss.rows]:
        path, _, parameter = found.name.rpartition(".")
        layer = f"{path} {layers[path]}" if path in layers and path else "network"
        layer = "loss" if found in loss.rows else layer
        rows.append(
            (
                layer,
                parameter,
                "x".join(map(str, found.shape)),
                f"{found.entries}",
                f"{found.analytic: .6e}",
                f"{found.numerical: .6e}",
                f"{found.max_relative_error:.1e}",
                "ok" if found.ok else f"WRONG {found.remark}".rstrip(),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    right = bool(report) and bool(loss)
    verdict = "all gradients are right" if right else "at least one gradient is wrong"
    print(f"{recipe.name}: {verdict} (float64, tolerance {report.tolerance:.0e}; the entry shown is the worst)")
    return 0 if right else 1
