"""A trained model as it is used: batch norm folded, dropout gone, large batches cut to the cache, forwards replayed."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from xpcnn.backend import Array, Backend, resolve
from xpcnn.backend.split import split_evenly
from xpcnn.errors import BackendError, ConfigError, ShapeError, XpcnnError
from xpcnn.functional.layout import check_backend, copy_batch_last, empty_batch_last
from xpcnn.nn.folding import Path, fold
from xpcnn.nn.module import Module, no_grad
from xpcnn.nn.precision import computes_in_float16
from xpcnn.windows import integer

GRAIN = 16  # images: pieces of a batch are multiples, so that the rows of a product fill whole registers
# What the largest activation of a piece takes, in slabs. Threads that meet under Python's lock want few and long calls:
# lenet5 on 1024 images takes 7.2 ms, with one slab 9.1 (without the lock 6.2 and 6.1).
SLABS = 2

Key = tuple[tuple[int, ...], Any, bool]  # shape and dtype of a batch, and whether one of several threads works on it


class Inference:
    """A model's forward in evaluation mode, as fast as it gets; calling it with x gives what `model.eval()(x)` gives.

    Batch norm is folded into the convolution or dense layer before it, w' = w gamma / sqrt(var + eps), and dropout is
    left out. Results differ from the model's by rounding. Where the backend records steps, the forward is recorded
    for each shape of batch and replayed. On NumPy a large batch goes through the whole network in pieces that stay
    in a core's cache, one thread each.

    Parameters
    ----------
    model : Module
        Stays as it is and is copied: training it later does not reach this object. A module of the user's own, a
        subclass of a layer included, is copied and run as it is; batches are then neither recorded nor cut.
    records : int
        How many shapes to keep records of; the one used longest ago gives way. 0 records nothing.

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
        self._records = integer("records", records, 0) if self._path.is_known and self.backend.captures else 0
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
                return self._run(x, False, copy_batch_last)
            y = empty_batch_last(self.backend, (x.shape[0], *sizes.out), x.dtype)

            def work(piece: slice) -> None:
                with no_grad(), self.backend.errstate():  # both belong to a thread
                    self._run(x[piece], True, lambda backend, part: backend.xp.copyto(y[piece], part))

            self.backend.parallel(work, pieces, sizes.work * x.shape[0])
            return y

    def __getstate__(self) -> dict[str, Any]:
        return {"backend": self.backend.name, "_path": self._path, "_records": self._records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.backend = resolve(state["backend"])
        self._path, self._records = state["_path"], state["_records"]
        self._start_empty()

    def _start_empty(self) -> None:
        self._shelf: OrderedDict[Key, list[_Record]] = OrderedDict()
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

    # --- records ----------------------------------------------------------------------------------------------------

    def _run(self, x: Array, shared: bool, take: Callable[[Backend, Array], Any]) -> Any:
        """Return what `take` makes of the network's y for x, which the next replay overwrites."""
        if not self._records:
            return take(self.backend, self._path(x))
        key = (tuple(x.shape), x.dtype, shared)
        record = self._borrow(key)
        if record is None:
            try:
                record = _Record(self.backend, self._path, x)
            except BackendError as error:
                warnings.warn(f"inference goes on unrecorded: {error}", RuntimeWarning, stacklevel=3)
                self._records = 0
                return take(self.backend, self._path(x))
        else:
            record(x)
        result = take(self.backend, record.y)
        self._give_back(key, record)
        return result

    def _borrow(self, key: Key) -> _Record | None:
        """Take a record that nobody uses, or None where there is none."""
        with self._lock:
            free = self._shelf.setdefault(key, [])
            self._shelf.move_to_end(key)
            while len(self._shelf) > self._records:
                self._shelf.popitem(last=False)
            return free.pop() if free else None

    def _give_back(self, key: Key, record: _Record) -> None:
        with self._lock:
            if key in self._shelf:
                self._shelf[key].append(record)


class _Sizes:
    """What one sample takes: shape of its result, bytes of its largest array, elementary operations."""

    def __init__(self, out: tuple[int, ...], largest: int, work: float) -> None:
        self.out, self.largest, self.work = out, largest, work


class _Record:
    """A forward for one shape, with its input and output in fixed memory; making it does the work for `x`."""

    def __init__(self, backend: Backend, path: Path, x: Array) -> None:
        self._backend = backend
        self._x = given = copy_batch_last(backend, x)
        self._results = results = [given]

        def forward() -> None:  # without `self`: a record that is dropped is to go at once, with its memory
            results[0] = path(given)

        if not backend.capture_runs:
            forward()  # kernels must be compiled and weights laid out before a device records
        self._replay = backend.capture(forward)
        results[0] = backend.untraced(results[0])
        if not backend.capture_runs:
            self._replay()

    @property
    def y(self) -> Array:
        """The result of the last call, until the next."""
        return self._results[0]

    def __call__(self, x: Array) -> None:
        self._backend.xp.copyto(self._x, x)
        self._replay()
