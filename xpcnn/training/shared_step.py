"""One training step on a batch that is shared out to the ranks of a job.

Each rank runs forward and backward on its part; loss, right answers and gradients are added up over all ranks, each
with the weight of its images, and every rank makes the same update from the same bits. The sums stand between two
recordings: of forward and backward, and of the update. With batch statistics that are synchronised, which need sums
within forward and backward, nothing is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from xpcnn.backend import Array, backend_of, graph
from xpcnn.distributed import Communicator
from xpcnn.errors import ConfigError
from xpcnn.functional.part import Part, computing, part_of, present_part, present_parts
from xpcnn.functional.precision import is_narrow
from xpcnn.nn import BatchNorm1d, BatchNorm2d, Module
from xpcnn.nn.precision import call
from xpcnn.optim.flat import HEAD
from xpcnn.training.buckets import Buckets
from xpcnn.training.metrics import write_hits
from xpcnn.training.step import Step


class SharedStep(Step):
    """A `Step` of one rank; `run` takes this rank's part of a batch, while `part` says which that is.

    Parameters
    ----------
    communicator : Communicator
    synchronise : bool
        Whether batch norm takes the statistics of the whole batch, rather than of each rank's part.
    **options
        As for `Step`.

    Attributes
    ----------
    flags : sequence of float
        What this rank has to say with the next step, some numbers of 0 or 1.
    said : list of bool or None
        Whether any rank has, after the step; None where that did not travel with it.
    """

    def __init__(
        self,
        *arguments: Any,
        communicator: Communicator,
        synchronise: bool = False,
        compile: Any = "auto",
        **options: Any,
    ) -> None:
        self.communicator = communicator
        has_statistics = any(isinstance(module, BatchNorm1d | BatchNorm2d) for module in arguments[0].modules())
        self.synchronises = synchronise and has_statistics
        if self.synchronises and compile is True:
            raise ConfigError(
                'compile: expected "auto" or False with synchronised batch norm, whose sums over ranks stand within a '
                "step, got True"
            )
        super().__init__(*arguments, compile=False if self.synchronises else compile, **options)
        self.reduce: Callable[[Array], Any] | None = communicator.allreduce if self.synchronises else None
        self.buckets = Buckets(communicator, self.optimizer)
        self.flags: Sequence[float] = ()
        self.said: list[bool] | None = None
        self._averaged = [] if self.synchronises else _statistics(self.model)
        backend, dtype = self.backend, "float32" if not self._averaged else self._averaged[0].dtype
        self._packed = backend.zeros((sum(array.size for array in self._averaged),), dtype)

    def divide(self, total: int) -> Part:
        """Return this rank's part of a batch."""
        return part_of(total, self.communicator.rank, self.communicator.size, self.reduce)

    # --- what is done on a part -------------------------------------------------------------------------------------

    def parts_to_compile(self) -> list[Callable[..., None]]:
        return [self.compute, self.update if self.immediate else self.update_where_finite]

    def accumulate(self, batches: tuple[Array, ...], targets: tuple[Array, ...]) -> None:
        xp = backend_of(batches[0]).xp
        parts = present_parts()
        total = sum(part.total for part in parts)
        xp.copyto(self._loss, 0.0)
        xp.copyto(self._hits, 0.0)
        for i, (x, labels, part) in enumerate(zip(batches, targets, parts, strict=True), 1):
            weight = float(bool(part.size)) if self._sums else part.size / total
            with computing((part,)):
                logits = call(self.model, x, self._is_float16)
                loss = self.criterion(logits, labels)
                dlogits = xp.multiply(self.criterion.backward(), weight)
                with self._overlapping(i == len(parts)):
                    self.model.backward(super()._scaled(dlogits), input_gradient=False)
            write_hits(logits, labels, self._part_hits)
            xp.add(self._loss, xp.multiply(loss, weight), out=self._loss)
            xp.add(self._hits, xp.multiply(self._part_hits, float(bool(part.size))), out=self._hits)

    def compute(self, x: Any, labels: Any) -> None:
        """Run forward and backward; leave this part's share of loss and right answers in the ledger."""
        with self._overlapping(not isinstance(x, tuple)):
            self._compute(x, labels)
        part = present_part()
        if part is not None and not isinstance(x, tuple):
            xp = backend_of(x).xp
            xp.multiply(self._loss, self._weight(part), out=self._loss)
            if not part.size:
                xp.multiply(self._hits, 0.0, out=self._hits)

    def _overlapping(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Return what lets sums of gradients begin within a backward, where it is the last of a step that does so."""
        return self.buckets.watching() if is_last and self._overlaps() else contextlib.nullcontext()

    def _overlaps(self) -> bool:
        """Whether sums may begin within backward: on the host, and where no others stand there."""
        if not self.communicator.bucket_bytes or not self.immediate or self.synchronises:
            return False
        buffers = self.optimizer.gradient_buffers()
        return bool(buffers) and not any(is_narrow(each.dtype) for each in buffers)

    def update_where_finite(self) -> None:
        """Update the parameters, or nothing at all where the loss or a gradient is not finite."""
        backend = self.backend.for_array(self._loss)
        self._sum_gradients()
        self._update_where(backend, self._judge(backend))

    def _scaled(self, dlogits: Array) -> Array:
        part = present_part()
        weight = 1.0 if part is None else self._weight(part)
        if weight != 1.0:
            dlogits = backend_of(dlogits).xp.multiply(dlogits, weight)
        return super()._scaled(dlogits)

    def _weight(self, part: Part) -> float:
        """Return what a part's loss and gradients count for in those of the batch."""
        if self._sums:
            return float(bool(part.size))
        return part.size / part.total

    # --- the step ---------------------------------------------------------------------------------------------------

    def _at_once(self, x: Any, labels: Any) -> None:
        compute, update = self.compiled
        try:
            if self.buckets.prepare(self._overlaps()):
                self._forget()
            compute(x, labels)
            self._reduce()
            with self.backend.as_recorded(), self.backend.errstate():
                self._sum_gradients()
            row = self._judged(*self.backend.to_numpy(self._ledger.row).tolist())
            _, _, bad, _ = row
            if not bad:
                self._average_statistics()
                update()
        except BaseException:
            self.zero_grad()
            raise
        self._settle(row, x, labels)

    def _deferred(self, x: Any, labels: Any) -> None:
        self._batch = x, labels
        compute, update = self.compiled
        try:
            compute(x, labels)
            self._reduce()
            self._average_statistics()
            update()
        except BaseException:
            self.zero_grad()
            raise
        self._ledger.keep()

    def _reduce(self) -> None:
        """Put what is of all ranks in the place of what is of this one's: loss, right answers, flags, gradients."""
        row, buffers = self._ledger.row[0:2], self.optimizer.gradient_buffers()
        if not buffers or is_narrow(buffers[0].dtype):  # float16 has no room for a loss
            for array in (row, *buffers):
                self.communicator.allreduce(array)
            self.said = None
            return
        head = buffers[0][:HEAD]
        head[0:2] = row
        if self.immediate:
            head[2 : 2 + len(self.flags)] = self.flags
        if not self._overlaps():
            for array in buffers:
                self.communicator.allreduce(array)
        elif self.buckets.finish():
            self._forget()
        row[...] = head[0:2]
        self.said = None
        if self.immediate:
            self.said = [value > 0 for value in head[2 : 2 + len(self.flags)].tolist()]  # on the host

    def _forget(self) -> None:
        """Drop recorded backwards, which begin sums at other places than those to come."""
        compute = self.compiled[0]
        if isinstance(compute, graph.Compiled):
            compute.forget()

    def _average_statistics(self) -> None:
        """Give all ranks the mean of their running statistics, so that there is one model and not one a rank."""
        parts = present_parts()
        if not self._averaged or not parts:
            return
        weight = sum(part.size for part in parts) / sum(part.total for part in parts)
        xp, packed = self.backend.xp, self._packed
        at = 0
        for array in self._averaged:
            xp.multiply(array.reshape(-1), weight, out=packed[at : at + array.size])
            at += array.size
        self.communicator.allreduce(packed)
        at = 0
        for array in self._averaged:
            xp.copyto(array, packed[at : at + array.size].reshape(array.shape))
            at += array.size

    # --- when something went wrong ----------------------------------------------------------------------------------

    def explanation(self, step: int, loss: float, lr: float) -> str:
        with computing(()):  # no sums over ranks: each may look for another reason
            return super().explanation(step, loss, lr)


def _statistics(model: Module) -> list[Array]:
    """Return the floating buffers of a model: running statistics."""
    return [array for _, array in model.named_buffers() if array.dtype.kind == "f"]
