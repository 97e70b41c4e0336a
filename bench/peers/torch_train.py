"""The whole training program in PyTorch that `xpcnn train` is measured against, written to be as fast as eager code is.

    python torch_train.py FOLDER [--recipe lenet5|one-cycle] [--epochs N] [--seed S] [--layout nchw|nhwc] [--fused]

All images are read, padded and normalised once, as one tensor; a batch is one index_select; nothing is read back in an
epoch. Prints one JSON line: test accuracy and seconds of each part, imports included.
"""

# ruff: noqa: E402 (the clock starts before the imports, which are counted)
from __future__ import annotations

import time

BEGAN = time.perf_counter()

import argparse
import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import workloads as w

from peers.torch_peer import LAYOUTS, sequential

BATCH = 128
LR, SHRINK, MOMENTUM = 0.1, 4e-4, 0.9  # the LeNet notebook's; the rate falls to nine tenths every 30 steps
PEAK_LR, WARM_SHARE, DECAY = 0.4, 0.3, 1e-3  # one-cycle: the best of eight settings on 10,000 held-out training images


def load(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 32, 32), padded and normalised as the LeNet notebook does, and labels."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)[16:].view(-1, 1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)[8:].long()
    images = F.pad(pixels, (2, 2, 2, 2)).float().div_(255).sub_(0.1307).div_(0.3081)
    return images, labels


def initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> None:
    norms = {p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    decayed = [p for p in model.parameters() if p not in norms]
    cycle = options.recipe == "one-cycle"
    groups = [{"params": decayed, "weight_decay": DECAY if cycle else 0.0}, {"params": list(norms)}]
    optimizer = torch.optim.SGD(groups, LR, MOMENTUM, nesterov=cycle, fused=True if options.fused else None)
    steps = -(-len(images) // BATCH)
    if cycle:
        total = steps * options.epochs
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_LR, total_steps=total, pct_start=WARM_SHARE, cycle_momentum=False
        )
    else:
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.9)
    model.train()
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images.index_select(0, chosen)), labels.index_select(0, chosen)).backward()
            if not cycle:
                with torch.no_grad():
                    torch._foreach_mul_(decayed, 1 - SHRINK)
            optimizer.step()
            schedule.step()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        batches = zip(images.split(1000), labels.split(1000), strict=True)
        right = sum((model(x).argmax(1) == y).sum() for x, y in batches)
    return int(right) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds MNIST's four IDX files, gzipped")
    parser.add_argument("--recipe", choices=("lenet5", "one-cycle"), default="lenet5")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="nchw")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validate", action="store_true", help="test on 10,000 of the training images instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    marks = [time.perf_counter()]
    images, labels = load(options.folder, "train")
    if options.validate:
        images, labels, test = images[:50000], labels[:50000], (images[50000:], labels[50000:])
    else:
        test = load(options.folder, "t10k")
    marks.append(time.perf_counter())
    model = sequential(w.NETS["lenet5"].layers).to(memory_format=LAYOUTS[options.layout])
    initialise(model)
    train(model, images, labels, options)
    marks.append(time.perf_counter())
    result = accuracy(model, *test)
    marks.append(time.perf_counter())
    spans = [after - before for before, after in pairwise([BEGAN, *marks])]
    parts = dict(zip(("imports", "data", "train", "test"), spans, strict=True))
    print(json.dumps({"accuracy": result, "seconds": parts}))


if __name__ == "__main__":
    main()
