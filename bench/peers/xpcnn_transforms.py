"""Our side of bench/augmentation.py: milliseconds for a batch, as one JSON line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import xpcnn
from xpcnn.data import (
    ColorJitter,
    Compose,
    MixUp,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    Resize,
)

BATCH, SIDE, CLASSES = 128, 32, 10
NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TRANSFORMS: dict[str, tuple[Any, ...]] = {
    "normalise alone": (),
    "crop, padding 4": (RandomCrop(SIDE, 4),),
    "flip": (RandomHorizontalFlip(),),
    "crop and flip": (RandomCrop(SIDE, 4), RandomHorizontalFlip()),
    "affine, bilinear": (RandomAffine(15, (0.1, 0.1), (0.9, 1.1)),),
    "erasing": (RandomErasing(0.5),),
    "jitter without hue": (ColorJitter(0.2, 0.2, 0.2),),
    "jitter": (ColorJitter(0.2, 0.2, 0.2, 0.1),),
    "resize to 28": (Resize(28),),
    "mixup": (MixUp(1.0, CLASSES),),
}


def best(function: Callable[[], Any], rounds: int) -> float:
    """The smallest of the times in milliseconds, after two calls that do not count."""
    function()
    function()
    smallest = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        smallest = min(smallest, time.perf_counter() - start)
    return smallest * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    xpcnn.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 3, SIDE, SIDE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, BATCH)
    found = {}
    for name, transforms in TRANSFORMS.items():
        transform = Compose(*transforms, NORMALIZE)
        found[name] = {"each": best(lambda transform=transform: transform(images, labels), options.rounds)}
    print(json.dumps({"ms": found, "versions": {"numpy": np.__version__, "xpcnn": xpcnn.__version__}}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
