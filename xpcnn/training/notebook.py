"""Progress in a notebook: one place of a cell's output that changes, with a bar and the table of epochs."""

from __future__ import annotations

import html
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer


def is_notebook() -> bool:
    """Whether the program runs in the kernel of a notebook; IPython is not imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return hasattr(shell, "kernel")


class Page:
    """A piece of HTML in the output of the cell that runs, written anew as the training goes on."""

    def __init__(self) -> None:
        from IPython import display

        tools: Any = display
        self._make = tools.HTML
        self._handle: Any = tools.display(tools.HTML(""), display_id=True)

    def show(self, text: str) -> None:
        """Put `text` in the place of what was there."""
        self._handle.update(self._make(text))


def page_of(trainer: Trainer, seconds: float, recent: tuple[float, float] | None, done: bool) -> str:
    """Return bar and table of a training; the bar goes when it is `done`.

    Parameters
    ----------
    trainer : Trainer
    seconds : float
        Since `fit` began.
    recent : (loss, accuracy) or None
        Means over the last batches.
    done : bool
        Whether nothing more comes.
    """
    table = trainer.history._repr_html_()
    if done:
        end = f"<p>{html.escape(trainer.stop_reason)}</p>" if trainer.stopped and trainer.stop_reason else ""
        return table + end
    total = trainer.batches_per_epoch
    share = "" if total is None else f' value="{trainer.batch}" max="{total}"'
    words = [f"epoch {min(trainer.epoch + 1, trainer.epochs)}/{trainer.epochs}"]
    words.append(f"batch {trainer.batch}" + ("" if total is None else f"/{total}"))
    for name, value in zip(("loss", "accuracy"), recent or (), strict=False):
        if not math.isnan(value):
            words.append(f"{name} {value:.4f}")
    words.append(f"{seconds:.0f} s")
    return f"<p><progress{share}></progress> {', '.join(words)}</p>{table}"
