"""One training step, on a backend that answers at once and on a device that must not be waited for.

Both leave parameters, optimiser and running statistics as they were where the loss or a gradient is nan or infinite:
the first looks before it updates; the second lets the device decide (`Optimizer.guard`) and is told later. What is done
on a batch is a compiled function (`xpcnn.compile`), the loop that README shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array, Backend, backend_of, graph
from xpcnn.errors import ConfigError
from xpcnn.functional.precision import cast_batch
from xpcnn.nn import Module
from xpcnn.nn.precision import call, computes_in_float16
from xpcnn.optim import GradScaler, Optimizer, clip_grad_norm
from xpcnn.training.diagnosis import explain
from xpcnn.training.judging import copy_arrays, judge
from xpcnn.training.metrics import Ledger, write_hits

Row = tuple[float, float, bool, bool]  # loss, right answers, whether the update was left out and whether that is fatal


class Step:
    """Runs training steps; `read` tells what came of those since the last call.

    Parameters
    ----------
    model, criterion, optimizer
        What is trained, by what, and how.
    backend : Backend
        Where the model lies.
    clip_norm : float or None
        The highest norm of all gradients that the optimiser uses.
    scaler : GradScaler or None
        Scales the loss.
    stops : bool
        Whether nothing changes any more after the first step whose loss or gradient is nan or infinite.
    compile : "auto", True or False
        Whether steps are recorded: where that can be, or else are an error, or never.
    read_every : int
        Steps between two calls of `read`.

    Attributes
    ----------
    run : callable
        Runs a step on a batch (x, labels), or on several, as tuples of arrays.
    immediate : bool
        Whether a step is known when it returns.
    scale_is_fixed : bool
        Whether the loss is scaled and the scale is never lowered.

    Raises
    ------
    ConfigError
        Steps are to be recorded on a backend that cannot.
    """

    # --- what is done on a batch, compiled: nothing here may depend on a value that only the step itself knows --------

    def forward_backward(self, x: Array, labels: Array) -> tuple[Array, Array]:
        """Write gradients, times the scale, to the parameters, and the scale to the ledger; return logits and loss."""
        logits = call(self.model, x, self._is_float16)
        loss = self.criterion(logits, labels)
        self.model.backward(self._scaled(self.criterion.backward()), input_gradient=False)
        return logits, loss

    def accumulate(self, batches: tuple[Array, ...], targets: tuple[Array, ...]) -> None:
        """Do what `forward_backward` does for several batches as if they were one, and count their right answers."""
        xp = backend_of(batches[0]).xp
        total = sum(x.shape[0] for x in batches)
        for i, (x, labels) in enumerate(zip(batches, targets, strict=True)):
            share = 1.0 if self._sums else x.shape[0] / total
            logits = call(self.model, x, self._is_float16)
            loss = self.criterion(logits, labels)
            dlogits = xp.multiply(self.criterion.backward(), share)
            self.model.backward(self._scaled(dlogits), input_gradient=False)
            write_hits(logits, labels, self._part_hits if i else self._hits)
            if i:
                xp.add(self._loss, xp.multiply(loss, share), out=self._loss)
                xp.add(self._hits, self._part_hits, out=self._hits)
            else:
                xp.copyto(self._loss, xp.multiply(loss, share))

    def compute(self, x: Any, labels: Any) -> None:
        """Run forward and backward; leave loss, right answers and the sum of all gradients in the ledger.

        Tuples are the batches of one step.
        """
        self._compute(x, labels)
        self._sum_gradients()

    def _compute(self, x: Any, labels: Any) -> None:
        backend = backend_of(x[0] if isinstance(x, tuple) else x)
        xp = backend.xp
        copy_arrays(backend, self._copies, self._buffers)
        if isinstance(x, tuple):
            self.accumulate(x, labels)
            self.optimizer.collect()
        else:
            logits, loss = self.forward_backward(x, labels)
            xp.copyto(self._loss, loss)
            self.optimizer.collect()
            write_hits(logits, labels, self._hits)

    def _sum_gradients(self) -> None:
        first, *others = self.optimizer.gradient_sums()
        xp = backend_of(first).xp
        xp.copyto(self._slope, first)
        for total in others:
            xp.add(self._slope, total, out=self._slope)

    def update(self) -> None:
        """Update the parameters."""
        if self.clip_norm is not None:
            clip_grad_norm(self.optimizer.parameters(), self.clip_norm, scale=self._scale)
        self.optimizer.update()
        self.zero_grad()

    def compute_and_update(self, x: Any, labels: Any) -> None:
        """Run a whole step that changes nothing where a number is not finite, without the host having to know."""
        backend = backend_of(x[0] if isinstance(x, tuple) else x)
        sticky = self.stops and self.scaler is None  # after the first fatal step nothing changes any more
        ok = self._ok if sticky else self._fine
        if isinstance(x, tuple):
            self.compute(x, labels)
            self._judge(backend)
        else:
            copy_arrays(backend, self._copies, self._buffers)
            logits, loss = self.forward_backward(x, labels)
            self.optimizer.collect()
            judge(backend, loss, self.optimizer.flat_gradients(), logits, labels, self._ledger.row, ok, sticky)
        self._update_where(backend, ok)

    def _judge(self, backend: Backend) -> Array:
        """Return, as `judge` does, whether what the ledger holds of this step is finite."""
        xp = backend.xp
        xp.copyto(self._fine, xp.isfinite(self._loss + self._slope))
        if not self.stops or self.scaler is not None:
            return self._fine
        xp.logical_and(self._fine, self._ok, out=self._ok)
        return self._ok

    def _update_where(self, backend: Backend, ok: Array) -> None:
        """Update the parameters where `ok` (1,), and nothing at all elsewhere."""
        xp = backend.xp
        if self.stops and self.scaler is not None:
            passing = xp.logical_and(xp.isfinite(self._loss), self.scaler.can_lower(self._scale))
            xp.logical_and(xp.logical_or(ok, passing), self._ok, out=self._ok)
            ok = xp.logical_and(ok, self._ok)
        if self.clip_norm is not None:
            clip_grad_norm(self.optimizer.parameters(), self.clip_norm, scale=self._scale)
        self.optimizer.update(ok)
        if self.scaler is not None:
            self.scaler.update(ok, self._ok if self.stops else None)
        copy_arrays(backend, self._buffers, self._copies, ok)
        self.zero_grad()

    def _scaled(self, dlogits: Array) -> Array:
        backend = backend_of(dlogits)
        if self._scale is not None:
            backend.xp.copyto(self._scale_used, self._scale)
            dlogits = backend.xp.multiply(dlogits, self._scale)
        return cast_batch(backend, dlogits, "float16") if self._is_float16 else dlogits  # scaled, small numbers survive

    # --- the two kinds ----------------------------------------------------------------------------------------------

    def __init__(
        self,
        model: Module,
        criterion: Any,
        optimizer: Optimizer,
        backend: Backend,
        *,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        stops: bool = True,
        compile: str | bool = "auto",
        read_every: int = 1,
    ) -> None:
        if compile is True and not backend.captures:
            raise ConfigError(f'compile: expected "auto" or False on {backend.name}, which records no steps, got True')
        self.model, self.criterion, self.optimizer, self.backend = model, criterion, optimizer, backend
        self.clip_norm, self.scaler, self.stops = clip_norm, scaler, stops
        self.immediate = backend.immediate
        self.run: Callable[[Any, Any], None] = self._at_once if self.immediate else self._deferred
        # Batch norm writes its running statistics before anybody knows that the step is bad.
        self._buffers = [buffer for _, buffer in model.named_buffers()]
        self._copies = [backend.place(backend.copy(buffer)) for buffer in self._buffers]
        self._ledger = Ledger(backend, 4, 1 if self.immediate else read_every)
        row = self._ledger.row  # loss, right answers, sum of gradients, scale of the loss
        self._loss, self._hits, self._slope = row[0:1], row[1:2].reshape(()), row[2:3]
        self._part_hits = backend.place(backend.zeros((), "float64"))
        self._sums = getattr(criterion, "reduction", "mean") == "sum"
        self._scale = None if scaler is None else scaler.place(backend)
        self._scale_used = row[3:4]
        self.scale_is_fixed = scaler is not None and scaler.backoff_factor == 1.0
        optimizer.grad_scale = self._scale
        self._is_float16 = computes_in_float16(model)
        self._ok, self._fine = (backend.xp.ones((1,), dtype=bool) for _ in range(2))
        self._rows: list[Row] = []
        self._batch: tuple[Any, Any] | None = None
        if not self.immediate:
            optimizer.guard_updates()
        compiled = (
            (lambda part: graph.Compiled(part, backend, strict=compile is True, writes=False))
            if compile
            else self._as_written
        )
        self.compiled = [compiled(part) for part in self.parts_to_compile()]

    def parts_to_compile(self) -> list[Callable[..., None]]:
        """Return what a step does, in its order."""
        return [self.compute, self.update] if self.immediate else [self.compute_and_update]

    def _as_written(self, part: Callable[..., None]) -> Callable[..., None]:
        def run(*arrays: Array) -> None:
            with self.backend.as_recorded():
                part(*arrays)

        return run

    def _at_once(self, x: Any, labels: Any) -> None:
        compute, update = self.compiled
        try:
            compute(x, labels)
            row = self._judged(*self.backend.to_numpy(self._ledger.row).tolist())
            _, _, bad, _ = row
            if not bad:
                update()
        except BaseException:
            self.zero_grad()
            raise
        self._settle(row, x, labels)

    def _settle(self, row: Row, x: Array, labels: Array) -> None:
        """Take in what came of a step."""
        _, _, bad, fatal = row
        if bad:
            self.zero_grad()
            self.restore_buffers()
            self._batch = x, labels
        if self.scaler is not None and not (fatal and self.stops):
            self.scaler.update(self.backend.asarray([not bad]))
        self._rows.append(row)

    def _deferred(self, x: Any, labels: Any) -> None:
        self._batch = x, labels
        (whole,) = self.compiled
        try:
            whole(x, labels)
        except BaseException:
            self.zero_grad()
            raise
        self._ledger.keep()

    def zero_grad(self) -> None:
        """Declare all gradients zero, those of parameters that the optimiser has not too."""
        graph.see(self.model)
        self.optimizer.zero_grad()
        self.model.zero_grad()

    def read(self) -> list[Row]:
        """Return what came of each step since the last call; waits for the device."""
        if not self.immediate:
            self._rows = [self._judged(*row) for row in self._ledger.read()]
        rows, self._rows = self._rows, []
        return rows

    def _judged(self, loss: float, hits: float, slope: float, scale: float) -> Row:
        bad = not math.isfinite(loss + slope)
        fatal = bad and (self.scaler is None or not math.isfinite(loss) or not self.scaler.can_lower(scale))
        return loss, hits, bad, fatal

    # --- when something went wrong ----------------------------------------------------------------------------------

    def explanation(self, step: int, loss: float, lr: float) -> str:
        """Say in one line what went wrong in a step; the model is as it was before it."""
        what = "a gradient is nan or infinite" if math.isfinite(loss) else f"the loss is {loss}"
        batch, self._batch = self._batch, None
        reason = "the batch is gone"
        if batch is not None:
            pairs = list(zip(*batch, strict=True)) if isinstance(batch[0], tuple) else [batch]
            for pair in pairs:
                reason = explain(self, *pair, lr)
                if not reason.startswith("first in the loss"):
                    break
        return f"step {step}: {what}; {reason}; the update was not made"

    def restore_buffers(self) -> None:
        """Set running statistics back to what they were before the step."""
        copy_arrays(self.backend, self._buffers, self._copies)

    def run_backward(self, x: Array, labels: Array) -> None:
        """Run a forward and a backward that update nothing but the gradients."""
        self.zero_grad()
        self.forward_backward(x, labels)

    def try_size(self, x: Array, labels: Array) -> None:
        """Run forward and backward, to see whether there is memory for a batch; leaves the state as it was."""
        try:
            self.run_backward(x, labels)
            self.backend.synchronize()
        finally:
            self.model.forget()
            self.restore_buffers()
            self.zero_grad()
