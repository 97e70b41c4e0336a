"""Forwards in evaluation mode: as fast as those inside `no_grad`, and a backward may follow all the same.

Hardly ever one does. So a network of the library's own layers keeps a copy of x and computes its caches when a layer
asks for them. After a backward its forwards keep caches again, until some have come that no backward followed.
"""

from __future__ import annotations

import contextlib
from typing import Any

from xpcnn.backend import Array, Backend, base
from xpcnn.backend.graph import compiled
from xpcnn.errors import XpcnnError
from xpcnn.functional.part import present_part
from xpcnn.nn import caches
from xpcnn.nn.batches import GRAIN, Batches
from xpcnn.nn.caches import Forward, forward_now
from xpcnn.nn.module import Module
from xpcnn.nn.recomputed import Recomputed, Snapshot, keepers, leave

KEPT_AFTER_BACKWARD = 8  # forwards that keep their caches, after one whose backward came


class Evaluation:
    """The forwards of one network as it is."""

    def __init__(self, model: Any, batches: Batches) -> None:
        self.model, self.batches, self.was = model, batches, Snapshot(model)
        self._kept: list[Module] | None = None
        self._keeping = 0
        self._is_first = True

    def renewed(self) -> Evaluation:
        """Return one for the network as it is now."""
        self.batches.sizes.clear()  # layers may be others
        made = Evaluation(self.model, self.batches)
        made._keeping, made._is_first = self._keeping, self._is_first
        if made.was.modules == self.was.modules:
            made._kept = self._kept
        return made

    def forward_alone(self, x: Array) -> Array | None:
        """Return y of a forward that keeps nothing; None where it is to run as written."""
        with contextlib.suppress(XpcnnError):  # as written it says the same, and where
            if self.batches.takes(x):
                return self.batches(x)
        return None

    def forward(self, x: Array) -> Array | None:
        """Return y, and let a backward follow; None where it is to run as written, and nothing done."""
        batches, model = self.batches, self.model
        if caches.checks_writes or present_part() is not None or type(x) not in base._by_type:
            return None
        if batches.backend.for_array(x) is not batches.backend:
            return None
        if self._is_first and x.shape and x.shape[0] <= GRAIN:  # may be the only one: not worth being measured
            self._is_first = False
            return None
        with contextlib.suppress(XpcnnError):
            if not batches.takes(x):
                return None
            # A batch in pieces may differ from a whole one in its last bits: it is never both by turns.
            if not batches.cuts(x) and self._keeps_now():
                return None
            kept = self._keepers(x)
            if kept is None:
                return None
            forward = Forward()
            forward.origin = self
            awaited = Awaited(forward, self.was, batches.backend, x)
            y = batches(x)
            if model._forwards:
                caches.make_room(model._forwards, False, type(model).__name__)
            leave(awaited, model, kept, forward)
            return y
        return None

    def expect_backward(self) -> None:
        """Let the next forwards keep their caches."""
        self._keeping = KEPT_AFTER_BACKWARD

    def _keeps_now(self) -> bool:
        if not compiled.is_enabled() or any(bypass() for bypass in compiled.bypasses):
            return True
        if self._keeping:
            self._keeping = self._keeping - 1 if self.model._forwards else KEPT_AFTER_BACKWARD
        return self._keeping > 0

    def _keepers(self, x: Array) -> list[Module] | None:
        """Return the modules that keep caches, by one forward as written; None where other threads come between."""
        if self._kept is None:
            forward = Forward()
            token = forward_now.set(forward)
            try:
                with self.batches.backend.errstate():
                    self.model.forward(x[:1])
                self._kept = keepers(self.model, forward)
            finally:
                forward_now.reset(token)
                forward.discard()
        return self._kept


class Awaited(Recomputed):
    """What a forward in evaluation mode leaves: its x, and how to go on from there."""

    __slots__ = ("_x",)

    def __init__(self, forward: Forward, was: Snapshot, backend: Backend, x: Array) -> None:
        super().__init__(forward, was.buffers, backend)
        self._x = backend.duplicate(x)

    def restore(self) -> None:
        """Compute the caches as written."""
        forward = self._forward()
        if forward is None:
            return
        this: Evaluation = forward.origin
        self._restore(this.model, this._kept or (), this.was, this.batches.backend, self._x)
        live = this.model._live
        if live is not None and live[1] is not None:
            live[1].expect_backward()
