"""Progress: a bar on a terminal, plain lines in a log, a table in a notebook."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from xpcnn.errors import ConfigError
from xpcnn.extras import install_line
from xpcnn.training.callbacks import Callback
from xpcnn.training.notebook import Page, is_notebook, page_of

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer


class Progress(Callback):
    """A bar on a terminal, where tqdm is installed; elsewhere a plain line every so many batches.

    In a notebook, unless a file or a bar is asked for or forbidden, a bar and the table of the epochs, in one place.

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

    Examples
    --------
    >>> from xpcnn import training
    >>> import io
    >>> screen = io.StringIO()
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> progress = training.Progress(file=screen, bar=False)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss(), callbacks=[progress])
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> history = trainer.fit(batches, epochs=1)
    >>> "epoch 1/1" in screen.getvalue()
    True
    """

    once = True
    REFRESH = 0.2  # seconds between two changes of the bar

    def __init__(self, every: int = 50, file: TextIO | None = None, bar: bool | None = None) -> None:
        has_tqdm = find_spec("tqdm") is not None
        if bar and not has_tqdm:
            raise ConfigError(f"bar: expected False or None without tqdm, got True: {install_line('cli')}")
        self.every = every
        self._file, self._bar_wanted = file, bar if has_tqdm else False
        self._is_free = file is None and bar is None  # to choose where it is shown
        self._page: Page | None = None
        self._bar: Any = None

    @property
    def file(self) -> TextIO | None:
        """The stream; standard error as it is now, not as it was at import. None where a program has none."""
        return self._file if self._file is not None else sys.stderr

    def _say(self, text: str) -> None:
        """Print a line, if that can be: a terminal that has gone must not take the training with it."""
        file = self.file
        with contextlib.suppress(OSError, ValueError):  # ValueError: a closed file, letters that it cannot hold
            try:
                print(text, file=file, flush=True)
            except UnicodeEncodeError:
                print(text.encode("ascii", "backslashreplace").decode(), file=file, flush=True)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin to count."""
        wanted = self._is_terminal() if self._bar_wanted is None else self._bar_wanted
        self._page = Page() if self._is_free and is_notebook() else None
        self._is_bar = wanted and self.file is not None and self._page is None
        self._started = self._shown = time.monotonic()
        self._from = len(trainer.history)
        self._batch_size = 0

    def _is_terminal(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self.file is not None and self.file.isatty()
        return False

    def on_step(self, trainer: Trainer) -> None:
        """Draw or print where it is time to."""
        if self._page is None and not self._is_bar:
            if trainer.batch % self.every < trainer.accumulate or trainer.batch == trainer.batches_per_epoch:
                self._line(trainer)
            return
        now = time.monotonic()
        if now - self._shown < self.REFRESH:
            return
        self._shown = now
        if self._page is not None:
            self._show(self._page, trainer)
        else:
            self._draw(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        """Print a line that stays."""
        if self._page is not None:
            self._show(self._page, trainer)
            return
        epochs = trainer.history.epochs
        if self._is_bar:
            self._draw(trainer)
            if self._bar is not None:
                self._bar.n = self._bar.total or self._bar.n
                self._close()
        text = f"epoch {trainer.epoch}/{trainer.epochs}"
        for name in ("loss", "accuracy", "validation_loss", "validation_accuracy"):
            if not math.isnan(epochs[name][-1]):
                text += f"  {name.replace('_', ' ')} {epochs[name][-1]:.4f}"
        seconds, rate = epochs["seconds"][-1], epochs["images_per_second"][-1]
        self._say(f"{text}  {seconds:.1f} s  {rate:.0f} images/s")
        self._from = len(trainer.history)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Leave no half-drawn bar."""
        page, self._page = self._page, None
        if page is not None:
            self._show(page, trainer, done=True)
        self._close()

    def _show(self, page: Page, trainer: Trainer, done: bool = False) -> None:
        page.show(page_of(trainer, time.monotonic() - self._started, self._recent(trainer, self.every), done))

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with contextlib.suppress(OSError, ValueError):
                bar.close()

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
        self._say(
            f"{time.monotonic() - self._started:8.1f} s  epoch {trainer.epoch + 1}/{trainer.epochs}  "
            f"batch {trainer.batch}{total}  {_accuracy(accuracy, '  ')}loss {loss:.4f}  "
            f"lr {trainer.history.steps['lr'][-1]:.3g}"
        )

    def _draw(self, trainer: Trainer) -> None:
        try:
            self._draw_bar(trainer)
        except (OSError, ValueError):  # the terminal has gone
            self._is_bar = False
            self._close()

    def _draw_bar(self, trainer: Trainer) -> None:
        if self._bar is None and trainer.batch:
            from tqdm import tqdm

            self._bar = tqdm(
                total=trainer.batches_per_epoch,
                initial=trainer.batch - 1,
                file=self.file,
                leave=False,
                mininterval=0,
                delay=1e-9,  # nothing is written before there is a bar to close
                dynamic_ncols=True,
                # What matters most stands first: a narrow terminal cuts off the end.
                bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
            )
            self._bar_epoch = trainer.epoch + 1
            self._bar_started = time.monotonic()
            self._bar_from = trainer.average.weight
        if self._bar is None:
            return
        recent = self._recent(trainer, self.every)
        seconds = time.monotonic() - self._bar_started
        text = f"epoch {self._bar_epoch}/{trainer.epochs}"
        if recent is not None:
            text += f" loss {recent[0]:.4f} {_accuracy(recent[1], '')}".rstrip()
        if seconds > 0:
            rate = (trainer.average.weight - self._bar_from) / seconds
            self._bar.set_postfix_str(f"{rate:.0f}/s", refresh=False)
        self._bar.set_description_str(text, refresh=False)
        if trainer.batch:
            self._bar.update(trainer.batch - self._bar.n)


def _accuracy(value: float, end: str) -> str:
    """Return the accuracy as text; nothing where the targets are no classes."""
    return "" if math.isnan(value) else f"accuracy {value:.4f}{end}"
