"""The layer that is one of ONNX's operators, for what `nn` has no layer of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xpcnn.backend import Array, Backend, backend_of, get_backend
from xpcnn.errors import DataError, ShapeError, StateError, XpcnnError
from xpcnn.nn import Module, Parameter
from xpcnn.onnx.operators import OPERATORS, Call

MOVING = "moving"  # a place whose value each call brings

Backward = Callable[..., Sequence[Any]]


class Operation(Module):
    """y = an operator of x, with numbers that the file holds.

    Parameters
    ----------
    operator : str
        Of ONNX's.
    attributes : mapping
    version : int
        The opset.
    places : sequence
        For each input: MOVING, None for one left out, or an array of the host. Of the latter, those named in `learned`
        are parameters and other floating ones buffers.
    names : sequence of str
        For each input, what its parameter or buffer is called.
    learned : collection of int
    outputs : int
    batch : int or None
        The batch size that the file was written for, where it has a fixed one.
    """

    unguarded = Module.unguarded | {"_hosts"}

    def __init__(
        self,
        operator: str,
        attributes: Mapping[str, Any],
        version: int,
        places: Sequence[Any],
        names: Sequence[str] = (),
        learned: Sequence[int] = (),
        outputs: int = 1,
        batch: int | None = None,
    ) -> None:
        super().__init__()
        self.operator, self.attributes, self.version = operator, dict(attributes), version
        self.outputs, self.batch = outputs, batch
        self._hosts: dict[int, Any] = {}
        self._held: dict[int, str] = {}
        self._moving = tuple(i for i, place in enumerate(places) if place is MOVING)
        self._count = len(places)
        backend = get_backend()
        for i, place in enumerate(places):
            if place is MOVING or place is None:
                continue
            if i in OPERATORS[operator].host:
                self._hosts[i] = place
                continue
            name = names[i] if i < len(names) else f"input{i}"
            name = name if name.isidentifier() and not hasattr(self, name) else f"input{i}"
            self._held[i] = name
            if i in learned:
                setattr(self, name, Parameter(backend.asarray(place), name))
            else:
                self.register_buffer(name, backend.asarray(place))

    @property
    def moving(self) -> tuple[int, ...]:
        """The places whose values each call brings."""
        return self._moving

    @property
    def hosts(self) -> frozenset[int]:
        """The places of numbers of the host."""
        return frozenset(self._hosts)

    @property
    def count(self) -> int:
        """How many places there are."""
        return self._count

    def values(self) -> dict[int, Any]:
        """Return what the file holds, by place: arrays of the host, parameters, buffers."""
        return dict(self._hosts) | {i: getattr(self, name) for i, name in self._held.items()}

    def forward(self, x: Array) -> Array:
        """Return y, or the first of several results."""
        results, backward = self.apply((x,))
        self.keep(backward)
        return results[0]

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx."""
        (dx,) = self.take()((dy, *(None,) * (self.outputs - 1)))
        return dx if input_gradient else None

    def apply(self, moving: Sequence[Any], on_host: Sequence[bool] = ()) -> tuple[tuple[Any, ...], Backward]:
        """Return all results for the values that move, and what maps their gradients to those of the values.

        `on_host` says which of the values are numbers of the host, such as shapes.
        """
        on_host = on_host or (False,) * len(moving)
        arrays = [value for value, host in zip(moving, on_host, strict=True) if not host]
        backend = backend_of(*arrays) if arrays else None
        inputs = self._inputs(moving, on_host, backend)
        call = Call(self.attributes, self.version, self.outputs, backend, self.training, self.batch)
        try:
            if backend is None:
                result, back = OPERATORS[self.operator].function(call, *inputs)
            else:
                with backend.errstate():
                    result, back = OPERATORS[self.operator].function(call, *inputs)
        except DataError as error:
            raise ShapeError(f"{self.operator}: {error}") from error
        except (ValueError, IndexError) as error:  # of the array module
            if isinstance(error, XpcnnError):
                raise
            shapes = [tuple(getattr(each, "shape", ())) for each in inputs if each is not None]
            reason = " ".join(str(error).split())
            raise ShapeError(f"{self.operator}: expected inputs that fit, got {shapes} ({reason:.120})") from error
        results = result if isinstance(result, tuple) else (result,)
        return results, self._backward(back, backend)

    def _inputs(self, moving: Sequence[Any], on_host: Sequence[bool], backend: Backend | None) -> list[Any]:
        inputs: list[Any] = [None] * self._count
        for i, array in self._hosts.items():
            inputs[i] = array
        for i, name in self._held.items():
            value = getattr(self, name)
            inputs[i] = value.data if isinstance(value, Parameter) else value
            if backend is None:
                inputs[i] = backend_of(inputs[i]).to_numpy(inputs[i])
        for i, value, host in zip(self._moving, moving, on_host, strict=True):
            to_device = host and backend is not None and i not in OPERATORS[self.operator].host
            inputs[i] = backend.asarray(value) if to_device and backend is not None else value
        return inputs

    def _backward(self, back: Callable[..., Sequence[Any]] | None, backend: Backend | None) -> Backward:
        def backward(dys: Sequence[Any]) -> Sequence[Any]:
            if back is None or backend is None:
                raise StateError(f"{self.operator}: expected an operator with a gradient, got one without")
            with backend.errstate():
                gradients = back(*dys) if self.outputs > 1 else back(dys[0])
            for i, name in self._held.items():
                value = getattr(self, name)
                if isinstance(value, Parameter) and i < len(gradients) and gradients[i] is not None:
                    value.accumulate(gradients[i])
            return [gradients[i] if i < len(gradients) else None for i in self._moving]

        return backward

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return ", ".join([self.operator, *(f"{name}={value!r:.40}" for name, value in self.attributes.items())])
