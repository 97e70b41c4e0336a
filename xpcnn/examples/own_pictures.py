"""Pictures of one's own: a folder with a sub-folder a class, a network, a file, and names for new pictures.

`python -m xpcnn.examples.own_pictures FOLDER`; without a folder it draws some rings and crosses to begin with.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import xpcnn
from xpcnn import nn, optim
from xpcnn.data import Compose, DataLoader, Normalize, RandomAffine
from xpcnn.datasets import Dataset, load_folder
from xpcnn.training import EarlyStopping, Trainer, load_model, save_model


def draw(folder: Path, count: int = 60) -> None:
    """Make `count` pictures (64, 64, 3) of each class, which stand for one's own."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for name in ("cross", "ring"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            y, x = rows - rng.integers(22, 42), columns - rng.integers(22, 42)
            size, width = rng.integers(10, 20), rng.integers(2, 5)
            ring = np.abs(np.hypot(y, x) - size) < width
            cross = (np.minimum(abs(y), abs(x)) < width) & (np.maximum(abs(y), abs(x)) < size)
            shape = ring if name == "ring" else cross
            picture = rng.integers(0, 90, (64, 64, 3)) + shape[..., None] * rng.integers(60, 160, 3)
            Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{number}.png")


def main(folder: Path | None = None) -> float:
    """Train on the folder and return the accuracy on the fifth of it that is held back."""
    xpcnn.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            folder = Path(place) / "pictures"
            draw(folder)
        pictures = load_folder(folder, size=(32, 32))
        if not isinstance(pictures, Dataset):
            raise SystemExit(f"{folder}: expected one sub-folder a class, got sets for training and testing")
        classes = pictures.classes or []
        print(f"{len(pictures)} pictures of {', '.join(classes)}")
        mixed = pictures.subset(np.random.default_rng(0).permutation(len(pictures)))
        test, train = mixed.split(len(mixed) // 5)
        predict = load_model(fit(train, test, Path(place) / "mine.safetensors"))
        some = next(path for path in sorted(folder.rglob("*.*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        (found,) = predict([some])
        print(f"{some.name} of {some.parent.name}: {found.label}, {found.probability:.3f}")
        right = sum(classes[label] == each.label for label, each in zip(test.labels, predict(test.images), strict=True))
        return float(right / len(test))


def fit(train: Dataset, test: Dataset, path: Path) -> Path:
    """Train a small network and leave it in a file with the names of its classes."""
    classes = train.classes or []
    change = Compose(RandomAffine(degrees=10, translate=(0.1, 0.1)), Normalize(0.5, 0.25))
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(64, len(classes)),
    )  # fmt: skip
    trainer = Trainer(
        model, optim.AdamW(model.parameters(), 3e-3), nn.CrossEntropyLoss(), callbacks=[EarlyStopping(patience=5)]
    )
    test_batches = DataLoader(test.images, test.labels, 50, shuffle=False, transform=Normalize(0.5, 0.25))
    trainer.fit(DataLoader(train.images, train.labels, 16, transform=change), test_batches, epochs=15)
    print(trainer.evaluate(test_batches, per_class=True).per_class)
    save_model(model, path, classes=classes, transform=change)
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
