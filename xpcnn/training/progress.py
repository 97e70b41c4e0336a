"""Progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from xpcnn.errors import ConfigError
from xpcnn.training.callbacks import Callback

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer


class Progress(Callback):
    """A bar on a terminal, where tqdm is installed; elsewhere a plain line every so many batches.

    Parameters
    ----------
    every : int
        Batches between two plain lines: time, epoch, batch, accuracy, loss, lr (means since the last line).
    file : text stream or None
        Where to; None is standard error.
    bar : bool or None
        Whether to draw a bar; None asks whether `file` is a terminal and tqdm is there.

    Raises
    ------
    ConfigError
        A bar is asked for and tqdm is not installed.
    """

    REFRESH = 0.2  # seconds between two changes of the bar

    def __init__(self, every: int = 50, file: TextIO | None = None, bar: bool | None = None) -> None:
        has_tqdm = find_spec("tqdm") is not None
        if bar and not has_tqdm:
            raise ConfigError("bar: expected False or None without tqdm, got True; pip install tqdm")
        self.every = every
        self._file, self._bar_wanted = file, bar if has_tqdm else False
        self._bar: Any = None

    @property
    def file(self) -> TextIO:
        """The stream; standard error as it is now, not as it was at import."""
        return self._file if self._file is not None else sys.stderr

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin to count."""
        self._is_bar = self.file.isatty() if self._bar_wanted is None else self._bar_wanted
        self._started = self._shown = time.monotonic()
        self._from = len(trainer.history)
        self._batch_size = 0

    def on_step(self, trainer: Trainer) -> None:
        """Draw or print where it is time to."""
        if not self._is_bar:
            if trainer.batch % self.every == 0 or trainer.batch == trainer.batches_per_epoch:
                self._line(trainer)
            return
        now = time.monotonic()
        if now - self._shown < self.REFRESH:
            return
        self._shown = now
        self._draw(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        """Print a line that stays."""
        epochs = trainer.history.epochs
        if self._is_bar:
            self._draw(trainer)
            if self._bar is not None:
                self._bar.n = self._bar.total or self._bar.n
                self._bar.close()
                self._bar = None
        text = f"epoch {trainer.epoch}/{trainer.epochs}"
        for name in ("loss", "accuracy", "validation_loss", "validation_accuracy"):
            if not math.isnan(epochs[name][-1]):
                text += f"  {name.replace('_', ' ')} {epochs[name][-1]:.4f}"
        seconds, rate = epochs["seconds"][-1], epochs["images_per_second"][-1]
        print(f"{text}  {seconds:.1f} s  {rate:.0f} images/s", file=self.file, flush=True)
        self._from = len(trainer.history)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Leave no half-drawn bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _recent(self, trainer: Trainer, steps: int) -> tuple[float, float] | None:
        history = trainer.history
        losses, accuracies = history.steps["loss"][-steps:], history.steps["accuracy"][-steps:]
        if not losses:
            return None
        return sum(losses) / len(losses), sum(accuracies) / len(accuracies)

    def _line(self, trainer: Trainer) -> None:
        trainer.read()
        recent = self._recent(trainer, max(1, len(trainer.history) - self._from))
        self._from = len(trainer.history)
        if recent is None:
            return
        loss, accuracy = recent
        total = "" if trainer.batches_per_epoch is None else f"/{trainer.batches_per_epoch}"
        print(
            f"{time.monotonic() - self._started:8.1f} s  epoch {trainer.epoch + 1}/{trainer.epochs}  "
            f"batch {trainer.batch}{total}  {_accuracy(accuracy, '  ')}loss {loss:.4f}  "
            f"lr {trainer.history.steps['lr'][-1]:.3g}",
            file=self.file,
            flush=True,
        )

    def _draw(self, trainer: Trainer) -> None:
        if self._bar is None and trainer.batch:
            from tqdm import tqdm

            self._bar = tqdm(
                total=trainer.batches_per_epoch,
                initial=trainer.batch - 1,
                desc=f"epoch {trainer.epoch + 1}/{trainer.epochs}",
                file=self.file,
                leave=False,
                unit="batch",
                mininterval=0,
                dynamic_ncols=True,
            )
            self._bar_started = time.monotonic()
            self._bar_from = trainer.average.weight
        if self._bar is None:
            return
        recent = self._recent(trainer, self.every)
        seconds = time.monotonic() - self._bar_started
        if recent is not None and seconds > 0:
            rate = (trainer.average.weight - self._bar_from) / seconds
            self._bar.set_postfix_str(
                f"{rate:.0f} images/s, {_accuracy(recent[1], ', ')}loss {recent[0]:.4f}", refresh=False
            )
        if trainer.batch:
            self._bar.update(trainer.batch - self._bar.n)


def _accuracy(value: float, end: str) -> str:
    """Return the accuracy as text; nothing where the targets are no classes."""
    return "" if math.isnan(value) else f"accuracy {value:.4f}{end}"
