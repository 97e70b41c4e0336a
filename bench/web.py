"""A LeNet in a browser's onnxruntime: trained here, exported, and asked about 1,000 test digits in WebAssembly.

    python -m bench.web [--folder FOLDER] [--epochs N]

Needs Node 18 or newer with npm, which fetches onnxruntime-web into FOLDER. Ends with status 1 where an answer differs
or the logits do by more than 1e-5, relative by norm.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import xpcnn
import xpcnn.onnx
from xpcnn import datasets, models, nn, optim
from xpcnn.data import DataLoader, Pad
from xpcnn.training import Trainer

DIGITS, BOUND = 1000, 1e-5
PACKAGE = "onnxruntime-web@^1.20"


def trained(epochs: int) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """Return a LeNet-5 after some training, and the digits that it is asked about with their labels."""
    xpcnn.manual_seed(0)
    train, test = datasets.load_mnist()
    model, transform = models.create("lenet5"), Pad(2)
    trainer = Trainer(model, optim.Adam(model.parameters(), 2e-3), nn.CrossEntropyLoss())
    trainer.fit(
        DataLoader(train.images[:12_000], train.labels[:12_000], 100, seed=0, transform=transform), epochs=epochs
    )
    return model.eval(), transform(test.images[:DIGITS]), test.labels[:DIGITS]


def in_node(folder: Path, x: np.ndarray) -> np.ndarray:
    """Return what onnxruntime-web makes of images, by the model in `folder`."""
    if not (folder / "node_modules" / "onnxruntime-web").is_dir():
        (folder / "package.json").write_text('{"private": true}\n')
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent", PACKAGE], cwd=folder, check=True)
    shutil.copy(Path(__file__).with_name("web.mjs"), folder)
    np.ascontiguousarray(x).tofile(folder / "images.bin")
    sizes = ",".join(map(str, x.shape[1:]))
    command = ["node", "web.mjs", "lenet5.onnx", "images.bin", str(len(x)), sizes, "logits.bin"]
    print(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip())
    return np.fromfile(folder / "logits.bin", np.float32).reshape(len(x), -1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where onnxruntime-web is fetched to (a temporary one)")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    if not (shutil.which("node") and shutil.which("npm")):
        print("web: needs Node with npm, which are not on the PATH", file=sys.stderr)
        return 2
    model, x, labels = trained(arguments.epochs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        worst = 0
        for fold in (False, True):
            xpcnn.onnx.export(model, (1, 32, 32), folder / "lenet5.onnx", fold=fold)
            there, here = in_node(folder, x), np.asarray(model(x))
            differ = int((there.argmax(1) != here.argmax(1)).sum())
            error = float(np.linalg.norm(there - here) / np.linalg.norm(here))
            right = float((there.argmax(1) == labels).mean())
            size = (folder / "lenet5.onnx").stat().st_size
            print(
                f"{'folded' if fold else 'as it is'}: {size:,} bytes, {DIGITS} digits, accuracy {right:.3f}, "
                f"{differ} other answers, relative difference {error:.1e}"
            )
            worst = max(worst, differ, int(error > BOUND))
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
