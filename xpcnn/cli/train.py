"""`xpcnn train`: a recipe, its run folder, its pictures, and one line of result."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from xpcnn.cli import pictures
from xpcnn.errors import ConfigError, XpcnnError

INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Train, draw, print `test accuracy: 0.9xxx`."""
    if arguments.resume and arguments.out is None:
        raise ConfigError("--resume: expected the folder of the run with it, --out RUN_DIR")
    pictures.warm_up()
    from xpcnn import recipes

    out = Path(arguments.out) if arguments.out is not None else _default_folder(arguments.recipe or recipes.DEFAULT)
    try:
        done = recipes.run(
            arguments.recipe,
            backend=arguments.backend,
            data=arguments.data,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            out=out,
            as_written=arguments.as_written,
            precision=arguments.precision,
            resume=arguments.resume,
            callbacks=[_Heading(out)],
            progress=True,
        )
    except KeyboardInterrupt:
        if not recipes.is_run(out):
            raise
        print(
            f"xpcnn train: interrupted; go on with: xpcnn train --resume --out {shlex.quote(str(out))}", file=sys.stderr
        )
        return INTERRUPTED
    try:
        pictures.draw(done)
    except XpcnnError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    print(f"run folder: {out}", file=sys.stderr)
    print(f"test accuracy: {done.metrics.accuracy:.4f}", flush=True)
    return 0


class _Heading:
    """Says what is about to be trained, and where a callback stopped it."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_fit_start(self, trainer: Any) -> None:
        """Print a line."""
        parameters = sum(parameter.size for parameter in trainer.model.parameters())
        goes_on = f", going on from step {trainer.step}" if trainer.step else ""
        print(
            f"{parameters:,} parameters, backend {trainer.model.backend.name}, run folder {self.out}{goes_on}",
            file=sys.stderr,
            flush=True,
        )

    def on_fit_end(self, trainer: Any) -> None:
        """Print a line where `Trainer.stop` ended the training."""
        if trainer.stopped:
            reason = f": {trainer.stop_reason}" if trainer.stop_reason else ""
            print(
                f"stopped after step {trainer.step}, {trainer.epoch} of {trainer.epochs} epochs finished{reason}",
                file=sys.stderr,
                flush=True,
            )


def _default_folder(recipe: str) -> Path:
    stem = Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 100):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        if not folder.exists():
            return folder
    return stem
