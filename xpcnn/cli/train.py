"""`xpcnn train`: a recipe, its run folder, its pictures, and one line of result."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpcnn.cli import pictures
from xpcnn.errors import ConfigError, XpcnnError

if TYPE_CHECKING:
    from xpcnn.distributed import Communicator

SIGNALLED = 128
_FEW_STEPS = 100


def run(arguments: argparse.Namespace) -> int:
    """Train, draw, print `test accuracy: 0.9xxx`."""
    if arguments.resume and arguments.out is None:
        raise ConfigError("--resume: expected the folder of the run with it, --out RUN_DIR")
    if arguments.sync_batch_norm and not arguments.distributed:
        raise ConfigError("--sync-batch-norm: expected --distributed with it")
    communicator = None
    if arguments.distributed:
        from xpcnn import distributed

        communicator = distributed.init()
    if communicator is None or communicator.rank == 0:
        pictures.warm_up()
    from xpcnn.training.interrupt import ending_signals_raise

    with ending_signals_raise():
        status = _train(arguments, communicator)
    if communicator is not None:
        communicator.part_together()  # rank 0 still draws, and nobody needs the cores meanwhile
    return status


def _train(arguments: argparse.Namespace, communicator: Communicator | None) -> int:
    from xpcnn import recipes

    is_ours = arguments.out is None
    out = _default_folder(arguments.recipe or recipes.DEFAULT) if is_ours else Path(arguments.out)
    heading = _Heading()
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
            image_size=arguments.image_size,
            augment=arguments.augment,
            patience=arguments.patience,
            skip_broken=arguments.skip_broken,
            lr=arguments.lr,
            resume=arguments.resume,
            callbacks=[heading],
            progress=True,
            numbered=is_ours,
            communicator=communicator,
            sync_batch_norm=arguments.sync_batch_norm,
        )
    except KeyboardInterrupt as error:
        if heading.folder is None or not recipes.is_run(heading.folder):
            raise
        again = f"xpcnn train --resume --out {shlex.quote(str(heading.folder))}"
        print(f"xpcnn train: interrupted; go on with: {again}", file=sys.stderr)
        return SIGNALLED + getattr(error, "signum", 2)
    if communicator is not None and communicator.rank:
        return 0
    try:
        pictures.draw(done)
    except Exception as error:  # whatever matplotlib or its fonts stumble over: the model is there
        reason = str(error) if isinstance(error, XpcnnError) else f"{type(error).__name__}: {error!s:.120}"
        print(f"no pictures: {' '.join(reason.split())}", file=sys.stderr)
    seconds = sum(each or 0.0 for each in done.history.to_dict()["epochs"]["seconds"])
    print(f"trained {seconds:.1f} s, imports and evaluation left out", file=sys.stderr)
    steps = heading.steps
    if done.kind == "pictures" and steps < _FEW_STEPS:
        print(
            f"only {steps:,} training step{'s' * (steps != 1)}: smaller batches and more epochs may give a better "
            "network; without --batch-size and --epochs both follow from the number of pictures",
            file=sys.stderr,
        )
    print(f"run folder: {done.folder}", file=sys.stderr)
    print(f"test accuracy: {done.metrics.accuracy:.4f}", flush=True)
    return 0


class _Heading:
    """Says what is about to be trained, knows where, and says where a callback stopped it."""

    once = True
    folder: Path | None = None
    steps = 0  # of the whole training, where no callback stops it

    def on_fit_start(self, trainer: Any) -> None:
        """Print a line, and one of what few pictures have made of the recipe."""
        from xpcnn.recipes import folder as folders
        from xpcnn.recipes.pictures import KIND

        self.folder = trainer.checkpoint.folder.parent
        self.steps = trainer.epochs * trainer.batches_per_epoch
        parameters = sum(parameter.size for parameter in trainer.model.parameters())
        ranks = f", {trainer.communicator.size} ranks" if trainer.communicator is not None else ""
        begun, content = folders.read(self.folder)
        goes_on = f", going on from step {trainer.step}" if trainer.step else ""
        where = f"backend {trainer.model.backend.name}{ranks}"
        print(
            f"{parameters:,} parameters, {where}, run folder {self.folder}{goes_on}",
            file=sys.stderr,
            flush=True,
        )
        if content["data"]["kind"] == KIND:
            rate = "" if begun.lr is None else f", learning rate {begun.lr:g}"
            print(
                f"{content['data']['samples']:,} images to train on in batches of {begun.batch_size}, {begun.epochs} "
                f"epoch{'s' * (begun.epochs != 1)}{rate} (--batch-size, --epochs, --lr)",
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
    return Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
