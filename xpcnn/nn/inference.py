"""A trained model as it is used: batch norm folded, dropout gone, large batches cut to the cache, forwards replayed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array, Backend, graph, resolve
from xpcnn.backend.split import split_evenly
from xpcnn.errors import ConfigError, ShapeError, XpcnnError
from xpcnn.functional.layout import check_backend, copy_batch_last, empty_batch_last
from xpcnn.nn.folding import fold
from xpcnn.nn.module import Module, no_grad
from xpcnn.nn.precision import computes_in_float16
from xpcnn.windows import integer

GRAIN = 16  # images: pieces of a batch are multiples, so that the rows of a product fill whole registers
# What the largest activation of a piece takes, in slabs. Threads that meet under Python's lock want few and long calls:
# lenet5 on 1024 images takes 7.2 ms, with one slab 9.1 (without the lock 6.2 and 6.1).
SLABS = 2


class Inference:
    """A model's forward in evaluation mode, as fast as it gets; calling it with x gives what `model.eval()(x)` gives.

    Batch norm is folded into the convolution or dense layer before it, w' = w gamma / sqrt(var + eps), and dropout is
    left out. Results differ from the model's by rounding. The forward is compiled (`xpcnn.compile`). On NumPy a large
    batch goes through the whole network in pieces that stay in a core's cache, one thread each.

    Parameters
    ----------
    model : Module
        Stays as it is and is copied: training it later does not reach this object. A module of the user's own, a
        subclass of a layer included, is copied and run as it is; batches are then not cut.
    records : int
        For how many shapes of batches to keep graphs; the one used longest ago gives way. 0 records nothing.

    Attributes
    ----------
    backend : Backend
        Where it computes; `Inference(model.to("cupy"))` is one for another backend.

    Raises
    ------
    ConfigError
        `model` is no module, has float16 parameters, or one of the user's own cannot be copied.

    Notes
    -----
    Threads may share it. On a device they should share a stream, too.

    References
    ----------
    Jacob et al. 2018, Quantization and training of neural networks, arXiv:1712.05877, section 3.2 (folding).
    """

    def __init__(self, model: Module, records: int = 8) -> None:
        if not isinstance(model, Module):
            raise ConfigError(f"model: expected an instance of xpcnn.nn.Module, got {type(model).__name__}")
        if computes_in_float16(model):
            raise ConfigError(
                "model: expected float32 or float64 parameters, got float16; take copy.deepcopy(model).float()"
            )
        self.backend: Backend = model.backend
        self._path = fold(model)
        self._records = integer("records", records, 0)
        self._start_empty()

    def __call__(self, x: Array) -> Array:
        """Return y for x (N, ...), an array that belongs to the caller.

        Raises
        ------
        ShapeError, DTypeError, MixedBackendsError
            `x` does not fit the model.
        """
        check_backend("x", x, self.backend)
        if not x.ndim:
            raise ShapeError("x: expected shape (N, ...), got ()")
        with no_grad(), self.backend.errstate():
            pieces, sizes = self._pieces(x)
            if sizes is None:
                y = self._whole(x)
                return y if y is not x else self.backend.copy(y)
            y = empty_batch_last(self.backend, (x.shape[0], *sizes.out), x.dtype)

            fill = self._shared.fill if isinstance(self._shared, graph.Compiled) else self._fill_as_written

            def work(piece: slice) -> None:
                with no_grad(), self.backend.errstate():  # both belong to a thread
                    fill(y[piece], x[piece])

            self.backend.parallel(work, pieces, sizes.work * x.shape[0])
            return y

    def __getstate__(self) -> dict[str, Any]:
        return {"backend": self.backend.name, "_path": self._path, "_records": self._records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.backend = resolve(state["backend"])
        self._path, self._records = state["_path"], state["_records"]
        self._start_empty()

    def _start_empty(self) -> None:
        self._whole, self._shared = self._compiled(), self._compiled()  # what is one of several pieces is not split
        self._sizes: OrderedDict[Any, _Sizes] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Inference({len(self._path.steps)} steps, {self.backend.name})"

    # --- pieces of a batch ------------------------------------------------------------------------------------------

    def _pieces(self, x: Array) -> tuple[list[slice], _Sizes | None]:
        """Return the pieces in which x goes through the network, and what one sample takes; None for one piece."""
        n, slab = x.shape[0], self.backend.slab_bytes
        if n <= GRAIN or slab is None or not self._path.is_known:
            return [], None
        sizes = self._sizes_of(x)
        threads = self.backend.get_num_threads() if self.backend.shares(sizes.work * n / 2) else 1
        grains = -(-n // GRAIN)
        count = -(-grains // max(1, SLABS * slab // (GRAIN * sizes.largest)))
        count = min(grains, -(-count // threads) * threads)  # as many for each thread
        if count == 1:
            return [], None
        pieces = [slice(GRAIN * part.start, min(GRAIN * part.stop, n)) for part in split_evenly(grains, count)]
        return pieces, sizes

    def _sizes_of(self, x: Array) -> _Sizes:
        key = x.shape[1:], x.dtype
        with self._lock:
            found = self._sizes.get(key)
        if found is None:
            try:
                y, (largest, work) = self._path.measure(x[:1])
            except XpcnnError:
                self._path(x)  # says the same of the whole batch
                raise
            found = _Sizes(tuple(y.shape[1:]), max(1, largest * x.dtype.itemsize), work)
            with self._lock:
                self._sizes[key] = found
                if len(self._sizes) > max(1, self._records):
                    self._sizes.popitem(last=False)
        return found

    def _compiled(self) -> Callable[[Array], Array]:
        if not self._records:
            return self._as_written
        return graph.Compiled(
            self._path, self.backend, kept=self._records, layout=copy_batch_last, eager=1, writes=False
        )

    def _as_written(self, x: Array) -> Array:
        with self.backend.as_recorded():  # to the same bits
            return self._path(x)

    def _fill_as_written(self, out: Array, x: Array) -> None:
        self.backend.xp.copyto(out, self._as_written(x))


class _Sizes:
    """What one sample takes: shape of its result, bytes of its largest array, elementary operations."""

    def __init__(self, out: tuple[int, ...], largest: int, work: float) -> None:
        self.out, self.largest, self.work = out, largest, work
