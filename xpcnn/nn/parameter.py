"""A parameter: values, their gradient, and where both lie."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.functional.precision import cast


class Parameter:
    """An array that training changes, with its gradient.

    Gradients add up over backward calls until `zero_grad`, as in torch. Assigning to `.data` or `.grad` puts another
    array of the same shape there; an optimiser takes it into its own memory at its next step.

    Parameters
    ----------
    data : array, floating
    name : str
        How errors and `state_dict` call it; a module fills in the whole path.
    """

    __slots__ = ("_data", "_grad", "grad_is_zero", "name")

    def __init__(self, data: Array, name: str = "") -> None:
        backend = backend_of(data)
        if data.dtype.kind != "f":
            raise DTypeError(f"data: expected a floating type, got {data.dtype}")
        self._data = data
        self._grad = backend.zeros(data.shape, data.dtype)
        self.name = name
        # The gradient counts as zero, whatever its memory holds: the next one is copied there instead of added.
        self.grad_is_zero = True

    @property
    def data(self) -> Array:
        """The values."""
        return self._data

    @data.setter
    def data(self, value: Array) -> None:
        self._check("data", value)
        self._data = value

    @property
    def grad(self) -> Array:
        """The gradient: d loss / d data, summed since the last `zero_grad`."""
        if self.grad_is_zero:
            self._grad[...] = 0
            self.grad_is_zero = False
        return self._grad

    @grad.setter
    def grad(self, value: Array) -> None:
        self._check("grad", value)
        self._grad = value
        self.grad_is_zero = False

    def _check(self, what: str, value: Array) -> None:
        backend_of(value)
        if tuple(value.shape) != self.shape:
            raise ShapeError(f"{self.name}.{what}: expected shape {self.shape}, got {tuple(value.shape)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return tuple(self._data.shape)

    @property
    def size(self) -> int:
        """How many values there are."""
        return int(self._data.size)

    def zero_grad(self) -> None:
        """Set the gradient to zero; costs nothing until it is read."""
        self.grad_is_zero = True

    def gradient_target(self) -> Array | None:
        """Return where the next gradient may be computed in place; None where it must be added to one that is there."""
        return self._grad if self.grad_is_zero else None

    def accumulate(self, gradient: Array) -> None:
        """Add a gradient, which may already lie in `gradient_target`."""
        if gradient is not self._grad:
            if self.grad_is_zero:
                backend_of(gradient).xp.copyto(self._grad, gradient)
            else:
                backend_of(gradient).xp.add(self._grad, gradient, out=self._grad)
        self.grad_is_zero = False

    def to(self, backend: Backend) -> None:
        """Move to another backend."""
        here = backend_of(self._data)
        if here is not backend:
            self._data = backend.asarray(here.to_numpy(self._data))
            self._grad = backend.asarray(here.to_numpy(self.grad))

    def cast(self, dtype: Any) -> None:
        """Change the dtype of values and gradient."""
        if self._data.dtype != dtype:
            backend = backend_of(self._data)
            self._data, self._grad = cast(backend, self._data, dtype), cast(backend, self.grad, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the values on the host, for `numpy.asarray(parameter)`: `.data` itself where it lies there already.

        From a device it is a copy, which waits for the device; `copy=False` is an error there, as where a dtype asks
        for one.
        """
        backend = backend_of(self._data)
        host = backend.to_numpy(self._data)
        result = host if dtype is None else host.astype(dtype, copy=False)
        if result is self._data and copy:
            return result.copy()
        if result is not self._data and copy is False:
            raise ConfigError(f"copy: expected None or True for values on {backend.name} as {result.dtype}, got False")
        return result

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.shape}, dtype={self._data.dtype})"
