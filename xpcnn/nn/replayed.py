"""Training as users write it, replayed: the forward of a network and the backward after it are halves of one graph.

A step written out calls the network, a loss, the network's backward and an optimiser, and nobody knows of it as a
whole. A `Sequential` of the library's own layers that has taken a few batches of one shape is recorded both ways at
once. Its forwards then keep nothing but a `Deferred` for each layer: backward replays the other half, and where anybody
else asks for a cache (a layer's own backward, a gradient that lies otherwise) the forward is computed again as written,
to the same bits. A forward that comes before the backward of the one that is replayed runs as written.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from xpcnn import random
from xpcnn.backend import Array, Backend, base
from xpcnn.backend.graph import Halves, compiled, guards, tracing
from xpcnn.backend.graph import see as graph_see
from xpcnn.errors import XpcnnError
from xpcnn.functional.part import present_part
from xpcnn.nn import caches
from xpcnn.nn.caches import GONE, Forward, forward_now
from xpcnn.nn.fusion import first_needed
from xpcnn.nn.module import Module
from xpcnn.nn.parameter import Parameter, clock
from xpcnn.nn.recomputed import Recomputed, Snapshot, keepers, leave, own_parameters

CALLS_BEFORE = 5  # of a kind, before it is recorded: more than a trainer makes before it records whole steps
SHARE = 4  # one call in so many at least must be of a kind that is recorded: not an epoch's smaller last batch
MISSES = 4  # graphs in a row that served no backward, before a kind runs as written for good
KINDS_KEPT = 8


class Replays:
    """The graphs of one network by kinds of batches."""

    def __init__(self, model: Any, backend: Backend) -> None:
        # Who holds no graph yet goes at once when it is dropped.
        self._model: Callable[[], Any] = weakref.ref(model)
        self.backend = backend
        self._cases: dict[Any, _Case] = {}
        self._calls = 0
        self._seen: tuple[tuple[int, ...], Any, bool] | None = None  # of the last backward: axes of dy, dtype, dx

    def forward(self, x: Array, as_written: Callable[[Array], Array]) -> Array:
        """Return y, and let a backward follow."""
        if self.backend.for_array(x) is not self.backend or type(x) not in base._by_type:
            return as_written(x)
        if not compiled.is_enabled() or any(bypass() for bypass in compiled.bypasses):
            return as_written(x)
        if present_part() is not None or tracing() is not None:
            return as_written(x)
        key = x.shape, x.strides, x.dtype, self._model().training, self.backend.cuts()
        case = self._cases.get(key)
        if case is None:
            if len(self._cases) >= KINDS_KEPT:
                self._cases.clear()
            case = self._cases[key] = _Case()
        model = self._model()
        if model._forwards and not model.training:  # one of them may have the graph
            caches.make_room(model._forwards, False, type(model).__name__)
        pair = case.take()
        if pair is not None:
            if case.misses < MISSES and pair.halves.record.holds(gradients=False):
                return pair.forward(x)
            case.drop(pair)
        case.calls += 1
        self._calls += 1
        found = self._record(case, x) if self._seen is not None and case.is_ready(self._calls) else None
        return as_written(x) if found is None else found

    def backward(self, dy: Array, input_gradient: bool, as_written: Callable[[Array, bool], Array]) -> Array:
        """Return dx."""
        model = self._model()
        entry = model._kept[-1] if model._kept else None
        if entry is not None and isinstance(entry.cache, Waiting):
            done = entry.cache.backward(model, dy, input_gradient)
            if done is not None:
                return done[0]
        dx = as_written(dy, input_gradient)
        if tracing() is not None:
            return dx
        order = tuple(sorted(range(dy.ndim), key=lambda axis: -abs(dy.strides[axis])))
        self._seen = order, dy.dtype, input_gradient
        return dx

    def _record(self, case: _Case, x: Array) -> Array | None:
        """Return y of a forward that is recorded with a backward; None where there can be no graph, and nothing done.

        The backward works on zeros, and what was in gradients is put back.
        """
        model, (order, dtype, input_gradient) = self._model(), self._seen  # type: ignore[misc]
        parameters = model.parameters()
        keys, xp = random.key_stream(), self.backend.xp
        gradients = [(each, self.backend.copy(each.gradient_array)) for each in parameters if not each.grad_is_zero]
        buffers = [(array, self.backend.copy(array)) for _, array in model.named_buffers()]
        kept: list[Module] = []

        def both(x: Array, pause: Any) -> Array:
            graph_see(model)
            forward = Forward()
            token = forward_now.set(forward)
            try:
                y = model.forward(x)
            finally:
                forward_now.reset(token)
            kept.extend(keepers(model, forward) or ())
            shape = [y.shape[axis] for axis in order]
            like = self.backend.zeros(shape, dtype).transpose(sorted(range(y.ndim), key=order.__getitem__))
            return model.backward(pause(y, like), input_gradient=input_gradient)

        halves: Halves | None = None
        try:
            for parameter, _ in gradients:
                parameter.zero_grad()
            halves = Halves(self.backend, both, x)
        except XpcnnError:
            pass  # as written it says the same, and where
        finally:
            for parameter in parameters:
                parameter.zero_grad()
            for parameter, values in gradients:
                xp.copyto(parameter.grad, values)
            for array, values in buffers:
                xp.copyto(array, values)
            random.go_back(keys)
        if halves is None or not kept or len(set(map(id, kept))) != len(kept):
            case.misses = MISSES
            return None
        # The backward has used the memory of what the forward kept: once more, as every replay to come.
        return Pair(case, model, halves, kept, parameters, input_gradient).forward(x)


class _Case:
    """Batches of one kind: how many came, and the graphs that are not in use."""

    def __init__(self) -> None:
        self.calls = self.misses = 0
        self.free: list[Pair] = []
        self.is_recorded = False

    def is_ready(self, calls: int) -> bool:
        """Whether a forward of this kind is to be recorded, after so many of all kinds."""
        if self.is_recorded or self.misses >= MISSES:
            return False
        return self.calls > CALLS_BEFORE and SHARE * self.calls >= calls

    def take(self) -> Pair | None:
        """Return a graph, which comes back when nobody waits for its backward any more."""
        try:
            return self.free.pop()
        except IndexError:
            return None

    def drop(self, pair: Pair) -> None:
        """Let go of a graph whose guards do not hold any more."""
        self.misses = 0 if pair.replays else self.misses + 1
        self.is_recorded = False


class Pair:
    """A forward and its backward as one graph in two halves, for one at a time."""

    def __init__(
        self,
        case: _Case,
        model: Module,
        halves: Halves,
        modules: list[Module],
        parameters: list[Parameter],
        input_gradient: bool,
    ) -> None:
        self.case, self.model, self.halves, self.modules = case, model, halves, modules
        self.input_gradient = input_gradient
        self.was = Snapshot(model)
        self.homes = [(each, each.gradient_array, each.requires_grad) for each in parameters]
        self.filled = halves.gradients
        self.buffers_read = [array for each in self.was.modules if not each.training for array in each._own_buffers()]
        self.readers = _readers(model, input_gradient)
        self.replays = 0
        case.is_recorded = True

    def forward(self, x: Array) -> Array:
        """Return y, and leave word in each layer that its cache can be had."""
        if self.model._forwards:
            caches.make_room(self.model._forwards, self.model.training, type(self.model).__name__)
        forward = Forward()
        waiting = Waiting(self, forward)
        y = self.halves.first(x)
        leave(waiting, self.model, self.modules, forward)
        return y


class Waiting(Recomputed):
    """What a replayed forward has left for its backward: the graph, which is nobody else's meanwhile."""

    __slots__ = ("_pair", "_version")

    def __init__(self, pair: Pair, forward: Forward) -> None:
        self._pair, self._version = pair, guards.version[0]
        super().__init__(forward, pair.buffers_read, pair.halves.backend)

    def __del__(self) -> None:
        self._pair.case.free.append(self._pair)  # may run in any thread at any moment: one append is all it does

    def backward(self, model: Module, dy: Array, input_gradient: bool) -> tuple[Array] | None:
        """Return (dx,) by the graph; None, and nothing done, where the caches themselves are needed.

        Raises
        ------
        StateError
            A parameter has changed since the forward.
        """
        pair, forward = self._pair, self._forward()
        halves = pair.halves
        if model is not pair.model or input_gradient is not pair.input_gradient or not halves.takes(dy):
            return None
        if forward is None or tracing() is not None or len(forward.entries) != len(pair.modules):
            return None
        for module, entry in zip(pair.modules, forward.entries, strict=True):
            if not module._kept or module._kept[-1] is not entry:
                return None
        if self._version != guards.version[0] and any(
            each.gradient_array is not grad or each.requires_grad is not trained for each, grad, trained in pair.homes
        ):
            return None
        root = forward.entries[-1]
        if root.time != clock.now:
            for module in pair.readers:
                caches.check_unchanged(type(module).__name__, root, None, own_parameters(vars(module)))
        xp = halves.backend.xp
        before = [(each, halves.backend.copy(each.gradient_array)) for each in pair.filled if not each.grad_is_zero]
        caches.take(model._kept, restore=False)
        for module, entry in zip(pair.modules, forward.entries, strict=True):
            if module is not model:
                module._kept.pop()
            entry.cache = GONE
        dx = halves.second(dy)
        for each in pair.filled:
            each.grad_is_zero = False
        for each, old in before:
            xp.add(old, each.gradient_array, out=each.gradient_array)
        pair.replays += 1
        pair.case.misses = max(0, pair.case.misses - 1)
        caches.use_up()
        return (dx,)

    def restore(self) -> None:
        """Compute the caches as written."""
        pair = self._pair
        pair.case.misses += 2
        self._restore(pair.model, pair.modules, pair.was, pair.halves.backend, pair.halves.x)


def _readers(model: Any, input_gradient: bool) -> list[Module]:
    """Return the modules that a backward reaches, in its order."""
    groups = model.groups
    reached = groups[0 if input_gradient else first_needed(groups) :]
    return [module for step in reversed(reached) for layer in reversed(step.layers()) for module in layer.modules()]
