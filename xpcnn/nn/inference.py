"""A trained model as it is used: batch norm folded, dropout gone, large batches cut to the cache, forwards replayed."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array, Backend, resolve
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.functional.layout import check_backend
from xpcnn.nn.batches import Batches
from xpcnn.nn.folding import fold
from xpcnn.nn.module import Module
from xpcnn.nn.precision import computes_in_float16
from xpcnn.windows import integer


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

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> predict = nn.Inference(model)  # in evaluation mode, batch norm folded
    >>> predict(x).shape
    (2, 8, 6, 6)
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
        return self._batches(x)

    def __getstate__(self) -> dict[str, Any]:
        return {"backend": self.backend.name, "_path": self._path, "_records": self._records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.backend = resolve(state["backend"])
        self._path, self._records = state["_path"], state["_records"]
        self._start_empty()

    def _start_empty(self) -> None:
        self._batches = Batches(
            self._path, self._path.measure, self.backend, self._records, is_known=self._path.is_known
        )

    def __repr__(self) -> str:
        return f"Inference({len(self._path.steps)} steps, {self.backend.name})"
