"""One training of the recipe mnist-best: test accuracy and seconds of the steps, as one JSON line."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import xpcnn
from xpcnn import recipes
from xpcnn.data import RandomAffine
from xpcnn.recipes import mnist_best, table
from xpcnn.recipes.recipe import Splits

HELD_OUT = 10_000
SETTINGS = (
    "epochs", "batch_size", "peak", "warm", "decay", "average", "degrees", "shift", "scale", "dropout", "smoothing",
    "shifts",
)  # fmt: skip


def held_out(train: Any, test: Any) -> Splits:
    """The last images of the training set in place of the test set."""
    first, rest = train.split(len(train) - HELD_OUT)
    return Splits(first, None, rest)


def changed(options: argparse.Namespace) -> Any:
    """The recipe with other settings."""
    recipe, values = mnist_best.MNIST_BEST, dict(pair.split("=") for pair in options.set)
    unknown = sorted(values.keys() - set(SETTINGS))
    if unknown:
        raise SystemExit(f"--set: expected one of {', '.join(SETTINGS)}, got {', '.join(unknown)}")
    mnist_best.PEAK = float(values.get("peak", mnist_best.PEAK))
    mnist_best.WARM_SHARE = float(values.get("warm", mnist_best.WARM_SHARE))
    mnist_best.DECAY = float(values.get("decay", mnist_best.DECAY))
    mnist_best.AVERAGE_DECAY = float(values.get("average", mnist_best.AVERAGE_DECAY))
    if {"degrees", "shift", "scale"} & values.keys():
        shift, scale = float(values.get("shift", 2)) / 28, float(values.get("scale", 0.07))
        affine = RandomAffine(float(values.get("degrees", 8)), (shift, shift), (1 - scale, 1 + scale))
        recipe = replace(recipe, augment=(affine,))
    if "dropout" in values:
        recipe = replace(recipe, options={**recipe.options, "dropout": float(values["dropout"])})
    if "smoothing" in values:
        recipe = replace(recipe, label_smoothing=float(values["smoothing"]))
    if "shifts" in values:
        recipe = replace(recipe, average_shifts=int(values["shifts"]))
    if options.validation:
        recipe = replace(recipe, split=held_out)
    counts = {name: int(values.get(name, getattr(recipe, name))) for name in ("epochs", "batch_size")}
    return replace(recipe, **counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    xpcnn.set_num_threads(options.threads)
    table.RECIPES["mnist-best"] = changed(options)
    done = recipes.run("mnist-best", backend="numpy", seed=options.seed)
    seconds = sum(done.history.to_dict()["epochs"]["seconds"])
    print(json.dumps({"accuracy": done.metrics.accuracy, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
