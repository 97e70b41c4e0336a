"""A parameter: values, their gradient, and where both lie."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.backend.graph import Guarded, changed, traces, tracing
from xpcnn.backend.graph.guards import Tokens
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.functional.precision import cast


class Clock:
    """Counts the changes of all parameters, so that one comparison tells whether any has changed since.

    Attributes
    ----------
    now : int
        Changes of values.
    freezes : int
        Changes of `requires_grad`.
    """

    __slots__ = ("freezes", "now")

    def __init__(self) -> None:
        self.now = self.freezes = 0


clock = Clock()


class _Thread(threading.local):
    """What is told of gradients in a thread."""

    receive: Callable[[Parameter], None] | None = None


_thread = _Thread()


@contextlib.contextmanager
def receiving(receive: Callable[[Parameter], None]) -> Iterator[None]:
    """Call `receive` with each parameter that has got a gradient in this thread, for the length of a `with` block."""
    before, _thread.receive = _thread.receive, receive
    try:
        yield
    finally:
        _thread.receive = before


class Parameter(Guarded):
    """An array that training changes, with its gradient.

    Gradients add up over backward calls until `zero_grad`, as in torch. Assigning to `.data` or `.grad` puts another
    array of the same shape there; an optimiser takes it into its own memory at its next step.

    Parameters
    ----------
    data : array, floating
    name : str
        How errors and `state_dict` call it; a module fills in the whole path.
    requires_grad : bool
        False freezes it: no gradient is added, optimisers leave it and their state of it as they are, and a layer
        whose parameters are all frozen computes no gradient for them. It may be set at any time.

    Examples
    --------
    >>> weight = nn.Parameter(np.zeros((2, 3), "float32"), "weight")
    >>> weight.shape, weight.grad is None, weight.requires_grad
    ((2, 3), False, True)
    """

    __slots__ = ("_data", "_grad", "_requires_grad", "changed_at", "changed_by", "grad_is_zero", "name")

    def __init__(self, data: Array, name: str = "", requires_grad: bool = True) -> None:
        backend = backend_of(data)
        if data.dtype.kind != "f":
            raise DTypeError(f"data: expected a floating type, got {data.dtype}")
        self._data = data
        self._grad = backend.zeros(data.shape, data.dtype)
        self.name = name
        self.requires_grad = requires_grad
        self.mark_changed("a new Parameter in its place")
        # The gradient counts as zero, whatever its memory holds: the next one is copied there instead of added.
        self.grad_is_zero = True

    @property
    def data(self) -> Array:
        """The values."""
        return _seen(self._data) if traces[0] else self._data

    @data.setter
    def data(self, value: Array) -> None:
        self._check("data", value)
        self._data = value
        self.mark_changed("an assignment to .data")
        changed()

    @property
    def grad(self) -> Array:
        """The gradient: d loss / d data, summed since the last `zero_grad`."""
        if self.grad_is_zero:
            backend_of(self._grad).xp.copyto(self._grad, 0)
            self.grad_is_zero = False
        return _seen(self._grad)

    @grad.setter
    def grad(self, value: Array) -> None:
        self._check("grad", value)
        self._grad = value
        self.grad_is_zero = False
        changed()

    @property
    def requires_grad(self) -> bool:
        """Whether training changes it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ConfigError(f"{self.name}.requires_grad: expected True or False, got {value!r}")
        self._requires_grad = value
        clock.freezes += 1
        changed()

    # --- traced by `xpcnn.compile` -----------------------------------------------------------------------------------

    __setattr__ = object.__setattr__  # type: ignore[assignment]  # what matters says so itself

    def guard_token(self, tokens: Tokens, without: frozenset[str] = frozenset()) -> Any:
        """Return where values and gradient lie, and whether they are trained."""
        tokens.held += [self._data, self._grad]
        return id(self._data), id(self._grad), self._requires_grad

    def arrays(self) -> tuple[Array, Array]:
        """Return values and gradient."""
        return self._data, self._grad

    def enter_trace(self) -> Any:
        """Return whether the gradient counts as zero, and where values and gradient lie."""
        return self.grad_is_zero, self._data, self._grad

    def leave_trace(self, before: Any, undo: bool) -> str | None:
        """See to it that values and gradient lie where they did."""
        zero, data, grad = before
        moved = self._data is not data or self._grad is not grad
        if undo:
            self.grad_is_zero, self._data, self._grad = zero, data, grad
        elif moved:
            self._data, self._grad = (backend_of(data).untraced(array) for array in (self._data, self._grad))
        return (
            f"it puts another array in the place of {self.name}'s; write into the one that is there" if moved else None
        )

    # --- changes ----------------------------------------------------------------------------------------------------

    def mark_changed(self, by: str) -> None:
        """Note that the values are others from now on, so that a backward of an earlier forward finds out.

        `by` is what errors name. Whoever writes into `.data` in place may call it; the library does.
        """
        clock.now += 1
        self.changed_at, self.changed_by = clock.now, by

    @staticmethod
    def mark_all_changed(parameters: Sequence[Parameter], by: str) -> None:
        """Do `mark_changed` for many at once."""
        clock.now = now = clock.now + 1
        for parameter in parameters:
            parameter.changed_at, parameter.changed_by = now, by

    def relocate(self, data: Array, grad: Array) -> None:
        """Let values and gradient lie in other arrays, which hold the same numbers already."""
        changed, is_zero = (self.changed_at, self.changed_by), self.grad_is_zero
        self.data, self.grad = data, grad
        (self.changed_at, self.changed_by), self.grad_is_zero = changed, is_zero

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
        if not self.grad_is_zero or not self._requires_grad:
            return None
        return _seen(self._grad) if traces[0] else self._grad

    @property
    def gradient_array(self) -> Array:
        """Where the gradient lies; what it holds counts only where `grad_is_zero` is False."""
        return self._grad

    def accumulate(self, gradient: Array) -> None:
        """Add a gradient, which may already lie in `gradient_target`; one of a frozen parameter is dropped."""
        if not self._requires_grad:
            return
        if backend_of(self._grad).untraced(gradient) is not self._grad:
            if self.grad_is_zero:
                backend_of(gradient).xp.copyto(self._grad, gradient)
            else:
                backend_of(gradient).xp.add(self._grad, gradient, out=self._grad)
        self.grad_is_zero = False
        if _thread.receive is not None:
            _thread.receive(self)

    def to(self, backend: Backend) -> None:
        """Move to another backend."""
        here = backend_of(self._data)
        if here is not backend:
            self.data, grad = backend.asarray(here.to_numpy(self._data)), backend.asarray(here.to_numpy(self.grad))
            self.grad = grad
            self.mark_changed("a move to another backend")

    def cast(self, dtype: Any) -> None:
        """Change the dtype of values and gradient."""
        if self._data.dtype != dtype:
            backend = backend_of(self._data)
            self.data, self.grad = cast(backend, self._data, dtype), cast(backend, self.grad, dtype)
            self.mark_changed("a change of its dtype")

    def __getstate__(self) -> dict[str, Any]:
        return {
            "data": self._data,
            "grad": None if self.grad_is_zero else self._grad,
            "name": self.name,
            "requires_grad": self._requires_grad,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        data, grad = state["data"], state["grad"]
        Parameter.__init__(self, data, state["name"], state["requires_grad"])
        if grad is not None:
            self.grad = grad

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the values on the host, for `numpy.asarray(parameter)`: `.data` itself where it lies there already.

        From a device it is a copy, which waits for the device; `copy=False` is an error there, as where a dtype asks
        for one.
        """
        backend = backend_of(self._data)
        host = backend_of(self._data).to_numpy(self.data)
        result = host if dtype is None else host.astype(dtype, copy=False)
        if result is self._data and copy:
            return result.copy()
        if result is not self._data and copy is False:
            raise ConfigError(f"copy: expected None or True for values on {backend.name} as {result.dtype}, got False")
        return result

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.shape}, dtype={self._data.dtype})"


def _seen(array: Array) -> Array:
    """Return an array as the function sees it that is traced in this thread, if there is one."""
    found = tracing()
    return array if found is None or found.arrays.wrap is None else found.arrays.wrap(array)
