"""A forward that keeps nothing, over batches of any size: graphs of it, and large batches in pieces.

`Inference` is one of a folded copy; a `Sequential` in evaluation mode has one of itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array, Backend, graph
from xpcnn.backend.split import split_evenly
from xpcnn.errors import XpcnnError
from xpcnn.functional.layout import copy_batch_last, empty_batch_last
from xpcnn.nn.contexts import no_grad

GRAIN = 16  # images: pieces of a batch are multiples, so that the rows of a product fill whole registers
# What the largest activation of a piece takes, in slabs. Threads that meet under Python's lock want few and long calls:
# one slab makes lenet5 on 1024 images slower by a quarter (`python bench/run.py infer-1024`), without the lock hardly.
SLABS = 2

Cost = tuple[int, float]  # elements of the largest array, elementary operations


class Batches:
    """A forward over batches of any size.

    Parameters
    ----------
    forward : callable
        Returns y for x (N, ...).
    measure : callable
        Returns y for x, and what it takes.
    is_known : bool
        Whether a sample's result depends on that sample alone, so that batches may be cut.
    backend : Backend
        Where it computes.
    records : int
        For how many shapes of batches to keep graphs; the one used longest ago gives way. 0 records nothing.
    quiet : bool
        Whether to say nothing of what cannot be recorded.
    """

    def __init__(
        self,
        forward: Callable[[Array], Array],
        measure: Callable[[Array], tuple[Array, Cost]],
        backend: Backend,
        records: int,
        *,
        is_known: bool = True,
        quiet: bool = False,
    ) -> None:
        self._forward, self._measure, self._is_known = forward, measure, is_known
        self.backend, self._records = backend, records
        self.whole, self.shared = self._compiled(quiet), self._compiled(quiet)  # a piece is not split once more
        self.sizes: OrderedDict[Any, Sizes] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, x: Array) -> Array:
        """Return y for x (N, ...), an array that belongs to the caller."""
        with no_grad():
            pieces, sizes = self._pieces(x)
            if sizes is None:
                y = self.whole(x)
                return y if y is not x else self.backend.copy(y)
            y = empty_batch_last(self.backend, (x.shape[0], *sizes.out), x.dtype)
            fill = self.shared.fill if isinstance(self.shared, graph.Compiled) else self._fill_as_written

            def work(piece: slice) -> None:
                with no_grad():  # belongs to a thread
                    fill(y[piece], x[piece])

            self.backend.parallel(work, pieces, sizes.work * x.shape[0])
            return y

    def takes(self, x: Array) -> bool:
        """Whether graphs and pieces gain anything: where calls are what takes the time, or a core's cache overflows."""
        if not hasattr(x, "ndim") or not x.ndim or not x.shape[0] or x.dtype.kind != "f":
            return False
        slab = self.backend.slab_bytes
        return slab is not None and (x.shape[0] > GRAIN or x.shape[0] * self.sizes_of(x).largest <= SLABS * slab)

    def cuts(self, x: Array) -> bool:
        """Whether x goes through the network in pieces."""
        return self._pieces(x)[1] is not None

    def _pieces(self, x: Array) -> tuple[list[slice], Sizes | None]:
        """Return the pieces in which x goes through the network, and what one sample takes; None for one piece."""
        n, slab = x.shape[0], self.backend.slab_bytes
        if n <= GRAIN or slab is None or not self._is_known or self.backend.is_as_recorded:
            return [], None  # as one graph takes it
        sizes = self.sizes_of(x)
        threads = self.backend.get_num_threads() if self.backend.shares(sizes.work * n / 2) else 1
        grains = -(-n // GRAIN)
        count = -(-grains // max(1, SLABS * slab // (GRAIN * sizes.largest)))
        count = min(grains, -(-count // threads) * threads)  # as many for each thread
        if count == 1:
            return [], None
        pieces = [slice(GRAIN * part.start, min(GRAIN * part.stop, n)) for part in split_evenly(grains, count)]
        return pieces, sizes

    def sizes_of(self, x: Array) -> Sizes:
        """Return what one sample takes."""
        key = x.shape[1:], x.dtype
        with self._lock:
            found = self.sizes.get(key)
        if found is None:
            try:
                with self.backend.errstate():
                    y, (largest, work) = self._measure(x[:1])
            except XpcnnError:
                self._forward(x)  # says the same of the whole batch
                raise
            found = Sizes(tuple(y.shape[1:]), max(1, largest * x.dtype.itemsize), work)
            with self._lock:
                self.sizes[key] = found
                if len(self.sizes) > max(1, self._records):
                    self.sizes.popitem(last=False)
        return found

    def _compiled(self, quiet: bool) -> Callable[[Array], Array]:
        if not self._records:
            return self._as_written
        return graph.Compiled(
            self._forward,
            self.backend,
            kept=self._records,
            layout=copy_batch_last,
            eager=1,
            writes=False,
            quiet=quiet,
        )

    def _as_written(self, x: Array) -> Array:
        with self.backend.as_recorded(), self.backend.errstate():  # to the same bits
            return self._forward(x)

    def _fill_as_written(self, out: Array, x: Array) -> None:
        self.backend.xp.copyto(out, self._as_written(x))


class Sizes:
    """What one sample takes: shape of its result, bytes of its largest array, elementary operations."""

    def __init__(self, out: tuple[int, ...], largest: int, work: float) -> None:
        self.out, self.largest, self.work = out, largest, work
