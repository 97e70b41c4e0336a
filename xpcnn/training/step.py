"""One training step, on a backend that answers at once and on a device that must not be waited for.

Both leave parameters, optimiser and running statistics as they were where the loss or a gradient is nan or infinite:
the first looks before it updates; the second lets the device decide (`Optimizer.guard`) and is told later. Where the
backend records steps, the first few run as written and all others are replayed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import BackendError, ConfigError
from xpcnn.functional.layout import copy_batch_last
from xpcnn.functional.precision import cast_batch
from xpcnn.nn.module import is_ours
from xpcnn.nn.precision import call, computes_in_float16
from xpcnn.optim import clip_grad_norm
from xpcnn.training.diagnosis import explain
from xpcnn.training.metrics import Ledger, write_hits

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

EAGER_STEPS = 3  # run before one is recorded: kernels are compiled and workspaces made by then

Row = tuple[float, float, bool, bool]  # loss, right answers, whether the update was left out and whether that is fatal


class Step:
    """Runs steps of a trainer; `read` tells what came of those since the last call.

    Attributes
    ----------
    run : callable
        Runs a step on a batch (x, labels).
    immediate : bool
        Whether a step is known when it returns.
    scale_is_fixed : bool
        Whether the loss is scaled and the scale is never lowered.

    Raises
    ------
    ConfigError
        Steps are to be recorded on a backend that cannot.
    """

    def __init__(self, trainer: Trainer, backend: Backend) -> None:
        if trainer.capture is True and not backend.captures:
            raise ConfigError(f'capture: expected "auto" or False on {backend.name}, which records no steps, got True')
        self.trainer, self.backend = trainer, backend
        self.model, self.criterion, self.optimizer = trainer.model, trainer.criterion, trainer.optimizer
        self.immediate = backend.immediate
        self.run: Callable[[Array, Array], None] = self._at_once if self.immediate else self._deferred
        # Batch norm writes its running statistics, dropout its key, before anybody knows that the step is bad.
        self._kept = [(buffer, backend.place(backend.copy(buffer))) for _, buffer in trainer.model.named_buffers()]
        self._parameters = trainer.model.parameters()
        self._clip = trainer.clip_norm
        self._ledger = Ledger(backend, 4, 1 if self.immediate else trainer.read_every)
        row = self._ledger.row  # loss, right answers, sum of gradients, scale of the loss
        self._loss, self._hits, self._slope = row[0:1], row[1:2].reshape(()), row[2:3]
        self._scaler = trainer.scaler
        self._scale = None if self._scaler is None else self._scaler.place(backend)
        self._scale_used = row[3:4]
        self.scale_is_fixed = self._scaler is not None and self._scaler.backoff_factor == 1.0
        self.optimizer.grad_scale = self._scale
        self._is_float16 = computes_in_float16(trainer.model)
        self._ok = backend.xp.ones((1,), dtype=bool)
        self._sticky = trainer.nonfinite == "stop"
        self._rows: list[Row] = []
        self._batch: tuple[Array, Array] | None = None
        self._records = backend.captures and (
            trainer.capture is True or (trainer.capture == "auto" and _all_ours(trainer))
        )
        self._eager = 0
        self._input: tuple[Array, Array] | None = None
        self._key: Any = None
        self._replay: list[_Recorded] = []

    def read(self) -> list[Row]:
        """Return what came of each step since the last call; waits for the device."""
        if not self.immediate:
            self._rows = [self._judged(*row) for row in self._ledger.read()]
        rows, self._rows = self._rows, []
        return rows

    def _judged(self, loss: float, hits: float, slope: float, scale: float) -> Row:
        bad = not math.isfinite(loss + slope)
        fatal = bad and (self._scaler is None or not math.isfinite(loss) or not self._scaler.can_lower(scale))
        return loss, hits, bad, fatal

    # --- the two kinds ----------------------------------------------------------------------------------------------

    def _at_once(self, x: Array, labels: Array) -> None:
        optimizer = self.optimizer
        replay = self._replay_for(x, labels, self._compute, optimizer.apply) if self._records else None
        if replay is None or not self._replayed(replay[0]):
            with self.backend.as_recorded():
                self._compute(x, labels)
        row = self._judged(*self.backend.to_numpy(self._ledger.row).tolist())
        self._rows.append(row)
        _, _, bad, fatal = row
        if not bad:
            if self._clip is not None:
                for parameter in self._parameters:
                    parameter.grad_is_zero = False  # a replay does not run what says so
                clip_grad_norm(self._parameters, self._clip, scale=self._scale)
            optimizer.upload()
            if replay is None or not self._records:
                optimizer.apply()
            else:
                replay[1]()
        else:
            self.restore_buffers()
            self._batch = x, labels
        if self._scaler is not None and not (fatal and self._sticky):
            self._scaler.update(self.backend.asarray([not bad]))
        optimizer.zero_grad()

    def _deferred(self, x: Array, labels: Array) -> None:
        self._batch = x, labels
        self.optimizer.upload()
        replay = self._replay_for(x, labels, self._compute_and_update) if self._records else None
        if replay is None or not self._replayed(replay[0]):
            with self.backend.as_recorded():
                self._compute_and_update(x, labels)
        self.optimizer.zero_grad()
        self._ledger.keep()

    # --- what is done, recorded or not: nothing here may depend on a value that changes on the host -----------------

    def _compute(self, x: Array, labels: Array) -> None:
        xp = backend_of(x).xp
        for buffer, copy in self._kept:
            xp.copyto(copy, buffer)
        logits = self._forward_and_backward(x, labels)
        self.optimizer.collect()
        write_hits(logits, labels, self._hits)
        first, *others = self.optimizer.gradient_sums()
        xp.copyto(self._slope, first)
        for total in others:
            xp.add(self._slope, total, out=self._slope)

    def _forward_and_backward(self, x: Array, labels: Array) -> Array:
        """Write loss and scale to the ledger and gradients, times the scale, to the parameters; return the logits."""
        backend = backend_of(x)
        xp = backend.xp
        logits = call(self.model, x, self._is_float16)
        xp.copyto(self._loss, self.criterion(logits, labels))
        dlogits = self.criterion.backward()
        if self._scale is not None:
            xp.copyto(self._scale_used, self._scale)
            dlogits = xp.multiply(dlogits, self._scale)
        if self._is_float16:  # after the scaling, which is what saves small numbers
            dlogits = cast_batch(backend, dlogits, "float16")
        self.model.backward_parameters(dlogits)
        return logits

    def _compute_and_update(self, x: Array, labels: Array) -> None:
        self._compute(x, labels)
        if self._clip is not None:
            clip_grad_norm(self._parameters, self._clip, scale=self._scale)
        xp = self.backend.xp
        ok = xp.isfinite(self._loss + self._slope)
        if self._sticky:  # after the first fatal step nothing changes any more
            if self._scaler is None:
                xp.logical_and(ok, self._ok, out=self._ok)
                ok = self._ok
            else:
                passing = xp.logical_and(xp.isfinite(self._loss), self._scaler.can_lower(self._scale))
                xp.logical_and(xp.logical_or(ok, passing), self._ok, out=self._ok)
                ok = xp.logical_and(ok, self._ok)
        self.optimizer.guard(ok)
        self.optimizer.apply()
        if self._scaler is not None:
            self._scaler.update(ok, self._ok if self._sticky else None)
        if self._kept:
            bad = xp.logical_not(ok)
            for buffer, copy in self._kept:
                xp.copyto(buffer, copy, where=bad)

    # --- recording --------------------------------------------------------------------------------------------------

    def _replay_for(self, x: Array, labels: Array, *parts: Callable[..., None]) -> list[_Recorded] | None:
        """Return what replays `parts` on this batch, or None where they must run as written."""
        self.optimizer.gather()
        key = (x.shape, x.dtype, labels.shape, labels.dtype, self.optimizer.generation)
        if key == self._key:
            self._feed(x, labels)
            return self._replay
        if self._eager < EAGER_STEPS or self._is_ragged(x):
            self._eager += 1
            return None
        self._replay, self._key = [], None  # gives the old record's memory back
        if self._input is None or self._input[0].shape != x.shape or self._input[1].shape != labels.shape:
            self._input = tuple(map(self.backend.place, (copy_batch_last(self.backend, x), self.backend.copy(labels))))
        self._feed(x, labels)
        first, *rest = parts
        held = self._input
        self._replay = [_Recorded(self.backend, lambda: first(*held)), *(_Recorded(self.backend, p) for p in rest)]
        self._key = key
        return self._replay

    def _replayed(self, record: _Recorded) -> bool:
        """Replay the first part of a step, or record it; False where it turns out that it cannot be recorded."""
        try:
            record()
        except BackendError as error:
            if isinstance(error, MemoryError) or record.exists or self.trainer.capture is True:
                raise
            warnings.warn(f"{error}; training goes on step by step", RuntimeWarning, stacklevel=2)
            self._records = False
            if self.backend.capture_runs:
                self.restore_buffers()
            self.model.forget()
            self.optimizer.zero_grad()
            return False
        return True

    def _is_ragged(self, x: Array) -> bool:
        """Whether the batch is the recorded ones' but smaller: not worth a record of its own."""
        return self._input is not None and x.shape[1:] == self._input[0].shape[1:] and len(x) < len(self._input[0])

    def _feed(self, x: Array, labels: Array) -> None:
        if self._input is not None:
            self._input[0][...] = x
            self._input[1][...] = labels

    # --- when something went wrong ----------------------------------------------------------------------------------

    def explanation(self, step: int, loss: float, lr: float) -> str:
        """Say in one line what went wrong in a step; the model is as it was before it."""
        what = "a gradient is nan or infinite" if math.isfinite(loss) else f"the loss is {loss}"
        batch, self._batch = self._batch, None
        reason = explain(self, *batch, lr) if batch is not None else "the batch is gone"
        return f"step {step}: {what}; {reason}; the update was not made"

    def restore_buffers(self) -> None:
        """Set running statistics and dropout keys back to what they were before the step."""
        for buffer, copy in self._kept:
            buffer[...] = copy

    def run_backward(self, x: Array, labels: Array) -> None:
        """Run a forward and a backward that update nothing but the gradients."""
        self.optimizer.zero_grad()
        self._forward_and_backward(x, labels)

    def try_size(self, x: Array, labels: Array) -> None:
        """Run forward and backward, to see whether there is memory for a batch; leaves the state as it was."""
        try:
            self.run_backward(x, labels)
            self.backend.synchronize()
        finally:
            self.model.forget()
            self.restore_buffers()
            self.optimizer.zero_grad()


class _Recorded:
    """A part of a step: recorded at its first call, replayed at the others."""

    def __init__(self, backend: Backend, part: Callable[[], None]) -> None:
        self._backend, self._part = backend, part
        self._replay: Callable[[], None] | None = None

    @property
    def exists(self) -> bool:
        """Whether it has been recorded."""
        return self._replay is not None

    def __call__(self) -> None:
        if self._replay is not None:
            self._replay()
            return
        with self._backend.as_recorded():
            self._replay = self._backend.capture(self._part)
        if not self._backend.capture_runs:
            self._replay()


def _all_ours(trainer: Trainer) -> bool:
    return all(is_ours(part) for part in (*trainer.model.modules(), trainer.criterion))
