"""The recipe mnist-best written in PyTorch: test accuracy and seconds of the steps, as one JSON line.

Written to be as fast as eager code is: all images lie there as floats, a batch is one index_select, its images are
turned, shifted and scaled by one grid_sample, each in its own way.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MNIST = Path(__file__).resolve().parents[2] / "xpcnn" / "datasets" / "mnist"
HELD_OUT = 10_000
DEFAULTS = {
    "epochs": 7, "batch_size": 128, "peak": 0.2, "warm": 0.25, "decay": 5e-4, "average": 0.998,
    "degrees": 8.0, "shift": 2.0, "scale": 0.07, "dropout": 0.0, "smoothing": 0.1,
    "shifts": 1,
}  # fmt: skip


def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 28, 28) from 0 to 1, and labels."""
    with gzip.open(MNIST / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)[16:].view(-1, 1, 28, 28)
    with gzip.open(MNIST / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)[8:].long()
    return pixels.float().div_(255), labels


def network(dropout: float) -> nn.Sequential:
    """The net of `xpcnn.models.conv4` for images of 24 pixels, with its initial values."""
    layers: list[nn.Module] = []
    channels = 1
    for filters, kernel, is_pooled in ((16, 5, True), (32, 3, False), (64, 3, True), (128, 3, False)):
        layers += [nn.Conv2d(channels, filters, kernel, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
        channels = filters
        if is_pooled:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    layers += [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(channels, 10)]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def changed(x: torch.Tensor, degrees: float, shift: float, scale: float) -> torch.Tensor:
    """Each image turned, shifted by so many pixels and scaled in its own way, then prepared."""
    count, side = len(x), x.shape[-1]
    angle = (torch.rand(count) * 2 - 1) * (degrees * math.pi / 180)
    factor = 1 + (torch.rand(count) * 2 - 1) * scale
    right, down = ((torch.rand(2, count) * 2 - 1) * (2 * shift / side)).unbind()
    cos, sin = angle.cos() / factor, angle.sin() / factor
    rows = (
        torch.stack([cos, sin, -(cos * right + sin * down)], 1),
        torch.stack([-sin, cos, sin * right - cos * down], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), x.shape, align_corners=False)  # (N, 28, 28, 2)
    return prepared(F.grid_sample(x, grid, align_corners=False))


def prepared(x: torch.Tensor) -> torch.Tensor:
    """The middle 24x24 pixels, normalised."""
    return x[:, :, 2:-2, 2:-2].sub(0.1307).div_(0.3081)


def mean_over_shifts(model: nn.Module, x: torch.Tensor, shift: int) -> torch.Tensor:
    """The mean probabilities of the images and of their shifts in eight directions, as xpcnn's `Predictor` has them."""
    side, padded = x.shape[-1], F.pad(x, (shift,) * 4, mode="replicate")
    starts = (0, shift, 2 * shift) if shift else (0,)
    views = [padded[:, :, top : top + side, left : left + side] for top in starts for left in starts]
    return torch.stack([model(view).softmax(1) for view in views]).mean(0)


def average(decay: float) -> AveragedModel.__class__:
    """The average's update, whose decay grows with the steps, as in xpcnn's `ModelAverage(warmup=True)`."""

    def update(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        if not mean.is_floating_point():
            return value
        n = int(count)
        return torch.lerp(value, mean, min(decay, (1 + n) / (10 + n)))

    return update


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    values = DEFAULTS | {name: float(value) for name, value in (pair.split("=") for pair in options.set)}
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    images, labels = load("train")
    if options.validation:
        tests, truth = images[-HELD_OUT:], labels[-HELD_OUT:]
        images, labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    else:
        tests, truth = load("t10k")
    model = network(values["dropout"])
    norms = {p for layer in model if isinstance(layer, nn.BatchNorm2d) for p in layer.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if p not in norms], "weight_decay": values["decay"]},
        {"params": list(norms)},
    ]
    optimizer = torch.optim.SGD(groups, values["peak"], 0.9, nesterov=True, fused=True)
    size, epochs = int(values["batch_size"]), int(values["epochs"])
    total = epochs * -(-len(images) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, values["peak"], total_steps=total, pct_start=values["warm"], cycle_momentum=False
    )
    averaged = AveragedModel(model, avg_fn=average(values["average"]), use_buffers=True)
    began = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(size):
            x = changed(images.index_select(0, chosen), values["degrees"], values["shift"], values["scale"])
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), labels.index_select(0, chosen), label_smoothing=values["smoothing"]).backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
    seconds = time.perf_counter() - began
    averaged.eval()
    with torch.no_grad():
        shares = torch.cat([mean_over_shifts(averaged, prepared(x), int(values["shifts"])) for x in tests.split(500)])
    print(json.dumps({"accuracy": (shares.argmax(1) == truth).double().mean().item(), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
