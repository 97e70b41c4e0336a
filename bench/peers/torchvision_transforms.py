"""torchvision's side of bench/augmentation.py: milliseconds for a batch, as one JSON line."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torchvision.transforms import v2

BATCH, SIDE, CLASSES = 128, 32, 10
MOST_SECONDS = 3.0  # of one way; image after image some take a second a batch
BILINEAR = v2.InterpolationMode.BILINEAR
TO_FLOAT = (v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3))
TRANSFORMS: dict[str, tuple[Any, ...]] = {
    "normalise alone": (),
    "crop, padding 4": (v2.RandomCrop(SIDE, 4),),
    "flip": (v2.RandomHorizontalFlip(),),
    "crop and flip": (v2.RandomCrop(SIDE, 4), v2.RandomHorizontalFlip()),
    "affine, bilinear": (v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), interpolation=BILINEAR),),
    "erasing": (v2.RandomErasing(0.5),),
    "jitter without hue": (v2.ColorJitter(0.2, 0.2, 0.2),),
    "jitter": (v2.ColorJitter(0.2, 0.2, 0.2, 0.1),),
    "resize to 28": (v2.Resize((28, 28)),),
}


def best(function: Callable[[], Any], rounds: int) -> float:
    """The smallest of the times in milliseconds, after two calls that do not count."""
    began = time.perf_counter()
    function()
    function()
    smallest = float("inf")
    for done in range(rounds):
        start = time.perf_counter()
        function()
        smallest = min(smallest, time.perf_counter() - start)
        if done > 0 and time.perf_counter() - began > MOST_SECONDS:
            break
    return smallest * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (BATCH,))
    found: dict[str, dict[str, float]] = {}
    for name, transforms in TRANSFORMS.items():
        whole = v2.Compose([*transforms, *TO_FLOAT])

        def each(whole: Any = whole) -> Any:
            return torch.stack([whole(image) for image in images])

        found[name] = {
            "each": best(each, options.rounds),
            "once": best(lambda whole=whole: whole(images), options.rounds),
        }
    mixed = v2.MixUp(alpha=1.0, num_classes=CLASSES)
    prepared = v2.Compose(list(TO_FLOAT))
    found["mixup"] = {"once": best(lambda: mixed(prepared(images), labels), options.rounds)}
    print(json.dumps({"ms": found, "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__}}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
