"""One training step, on a backend that answers at once and on a device that must not be waited for.

Both leave parameters, optimiser and running statistics as they were where the loss or a gradient is nan or infinite:
the first looks before it updates; the second lets the device decide (`Optimizer.guard`) and is told later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ConfigError
from xpcnn.optim import clip_grad_norm
from xpcnn.training.diagnosis import explain
from xpcnn.training.metrics import Ledger, count_hits

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

EAGER_STEPS = 3  # run before the first is captured: kernels are compiled and workspaces made by then

Row = tuple[float, float, bool]  # loss, right answers, whether the update was left out


class Step:
    """Runs steps of a trainer; `read` tells what came of those since the last call.

    Attributes
    ----------
    immediate : bool
        Whether a step is known when it returns.
    """

    def __init__(self, trainer: Trainer, backend: Backend) -> None:
        if trainer.capture is True and not backend.captures:
            raise ConfigError(f'capture: expected "auto" or False on {backend.name}, which records no steps, got True')
        self.trainer, self.backend = trainer, backend
        self.model, self.criterion, self.optimizer = trainer.model, trainer.criterion, trainer.optimizer
        self.immediate = backend.immediate
        # Batch norm writes its running statistics, dropout its key, before anybody knows that the step is bad.
        self._kept = [(buffer, backend.copy(buffer)) for _, buffer in trainer.model.named_buffers()]
        self._parameters = trainer.model.parameters()
        self._clip = trainer.clip_norm
        self._batch: tuple[Array, Array] | None = None
        self._rows: list[Row] = []
        self._gradient_is_bad = False
        self.run: Callable[[Array, Array], None] = self._at_once if self.immediate else self._deferred
        if self.immediate:
            return
        self._ledger = Ledger(backend, 3, trainer.read_every)
        self._ok = backend.xp.ones((1,), dtype=bool)
        self._sticky = trainer.nonfinite == "stop"
        self._captures = backend.captures and trainer.capture is not False
        self._replay: Callable[[], None] | None = None
        self._input: tuple[Array, Array] | None = None
        self._key: Any = None
        self._eager = 0

    def read(self) -> list[Row]:
        """Return what came of each step since the last call; waits for the device."""
        if not self.immediate:
            self._rows = [
                (loss, hits, not (math.isfinite(loss) and math.isfinite(slope)))
                for loss, hits, slope in self._ledger.read()
            ]
        rows, self._rows = self._rows, []
        return rows

    # --- a backend that answers at once ---------------------------------------------------------------------------

    def _at_once(self, x: Array, labels: Array) -> None:
        backend, optimizer = self.backend, self.optimizer
        for buffer, copy in self._kept:
            copy[...] = buffer
        logits = self.model(x)
        loss = self.criterion(logits, labels)
        value = float(loss)
        self.model.backward_parameters(self.criterion.backward())
        optimizer.collect()
        slope = sum(map(float, optimizer.gradient_sums()))
        hits = count_hits(backend, logits, labels)
        if math.isfinite(value + slope):
            if self._clip is not None:
                clip_grad_norm(self._parameters, self._clip)
            optimizer.upload()
            optimizer.apply()
            optimizer.zero_grad()
            self._rows.append((value, float(hits), False))
            return
        for buffer, copy in self._kept:
            buffer[...] = copy
        self._batch, self._gradient_is_bad = (x, labels), math.isfinite(value)
        self._rows.append((value, float(hits), True))
        if self.trainer.nonfinite == "skip":
            optimizer.zero_grad()

    # --- a device ---------------------------------------------------------------------------------------------------

    def _deferred(self, x: Array, labels: Array) -> None:
        self._batch = (x, labels)
        self.optimizer.collect()
        self.optimizer.upload()
        key = (x.shape, x.dtype, labels.shape, labels.dtype, self.optimizer.generation)
        if self._replay is not None and key == self._key:
            self._feed(x, labels)
            self._replay()
        elif not self._captures or self._eager < EAGER_STEPS or (self._replay is not None and self._is_ragged(x)):
            self._eager += 1
            self._on_device(x, labels)
        else:
            self._capture(x, labels, key)
        self.optimizer.zero_grad()
        self._ledger.keep()

    def _is_ragged(self, x: Array) -> bool:
        """Whether the batch has fewer samples than the recorded ones: not worth a record of its own."""
        return (
            self._input is not None and x.shape[0] < self._input[0].shape[0] and x.shape[1:] == self._input[0].shape[1:]
        )

    def _capture(self, x: Array, labels: Array, key: Any) -> None:
        backend = self.backend
        if self._input is None or self._input[0].shape != x.shape or self._input[1].shape != labels.shape:
            self._input = _like(backend, x), backend.copy(labels)
        self._feed(x, labels)
        held = self._input
        self._replay = None  # gives the old record's memory back
        self._replay = backend.capture(lambda: self._on_device(*held))
        self._key = key
        self._replay()

    def _feed(self, x: Array, labels: Array) -> None:
        if self._input is not None:
            self._input[0][...] = x
            self._input[1][...] = labels

    def _on_device(self, x: Array, labels: Array) -> None:
        """Do a step of which the host need know nothing; this is what gets recorded."""
        backend, xp, optimizer = self.backend, self.backend.xp, self.optimizer
        for buffer, copy in self._kept:
            copy[...] = buffer
        logits = self.model(x)
        loss = self.criterion(logits, labels)
        self.model.backward_parameters(self.criterion.backward())
        optimizer.collect()
        row = self._ledger.row  # loss, hits, sum of gradients
        row[0:1] = loss
        row[1:2] = count_hits(backend, logits, labels)
        row[2:3] = 0.0
        for total in optimizer.gradient_sums():
            row[2:3] += total
        if self._clip is not None:
            clip_grad_norm(self._parameters, self._clip)
        ok = xp.isfinite(row[0:1] + row[2:3])
        if self._sticky:  # after the first bad step nothing changes any more
            xp.logical_and(ok, self._ok, out=self._ok)
            ok = self._ok
        optimizer.guard(ok)
        optimizer.apply()
        if self._kept:
            bad = xp.logical_not(ok)
            for buffer, copy in self._kept:
                xp.copyto(buffer, copy, where=bad)

    # --- when something went wrong ----------------------------------------------------------------------------------

    def explanation(self, step: int, loss: float, lr: float) -> str:
        """Say in one line what went wrong in a step; the model is as it was before it."""
        gradient_is_bad = self._gradient_is_bad if self.immediate else math.isfinite(loss)
        what = "a gradient is nan or infinite" if gradient_is_bad else f"the loss is {loss}"
        batch, self._batch = self._batch, None
        reason = "" if batch is None else explain(self, *batch, lr)
        return f"step {step}: {what}; {reason}; the update was not made" if reason else f"step {step}: {what}"

    def restore_buffers(self) -> None:
        """Set running statistics and dropout keys back to what they were before the step."""
        for buffer, copy in self._kept:
            buffer[...] = copy

    def run_backward(self, x: Array, labels: Array) -> None:
        """Run a forward and a backward that update nothing but the gradients."""
        self.optimizer.zero_grad()
        logits = self.model(x)
        self.criterion(logits, labels)
        self.model.backward_parameters(self.criterion.backward())

    def try_size(self, x: Array, labels: Array) -> None:
        """Run forward and backward, to see whether there is memory for a batch; leaves the state as it was."""
        try:
            self.run_backward(x, labels)
            self.backend.synchronize()
        finally:
            self.model.forget()
            self.restore_buffers()
            self.optimizer.zero_grad()


def _like(backend: Backend, x: Array) -> Array:
    """Return a copy of `x` in batch-last memory, as the loader's batches are."""
    copy = backend.empty((*x.shape[1:], x.shape[0]), x.dtype).transpose(x.ndim - 1, *range(x.ndim - 1))
    copy[...] = x
    return copy
