"""What `gradcheck` may check: a function, a module or a loss, behind one face.

A subject holds the float64 host values by which it is differentiated, and the arrays of the backend that it feeds.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpcnn.backend import Array, Backend, backend_of, get_backend
from xpcnn.errors import ConfigError, DTypeError

Host = NDArray[np.float64]
Gradients = tuple[dict[str, Host | None], dict[str, str]]  # gradients by name, and remarks on what is wrong at once


class Subject:
    """Inputs on their backend; `values` are the ones to differentiate by."""

    def __init__(self, inputs: Sequence[Any], names: Sequence[str], backend: Backend | None) -> None:
        self.backend = backend or _backend_of_inputs(inputs)
        self.values: dict[str, Host] = {}
        self._originals: list[Any] = []
        self._names: list[str | None] = []
        self._fed: dict[str, Array] = {}
        for name, value in zip(names, inputs, strict=True):
            host = _host(value)
            if host is not None and host.dtype.kind == "f":
                self.values[name] = np.array(host, np.float64, order="C")
                self.put(name)
                self._names.append(name)
            else:
                self._names.append(None)
            self._originals.append(value if host is None else self.backend.asarray(host))

    def put(self, name: str) -> None:
        """Bring a changed value to the backend."""
        self._fed[name] = self._device(self.values[name])

    def _device(self, host: Host) -> Array:
        return self.backend.copy(self.backend.asarray(host))

    def _inputs(self) -> list[Any]:
        # Copies: what a forward changes in place, such as running statistics, must not change the next.
        return [
            original if name is None else self.backend.copy(self._fed[name])
            for name, original in zip(self._names, self._originals, strict=True)
        ]

    def _numpy(self, array: Array) -> Host:
        return np.array(self.backend.to_numpy(array), np.float64)

    def _match(self, gradients: Any) -> Gradients:
        """Give the gradients that a backward returned to the inputs that they stand for."""
        parts = gradients if isinstance(gradients, tuple) else (gradients,)
        found: dict[str, Host | None] = {}
        for name, gradient in zip(self._names, parts, strict=False):
            if name is not None:
                found[name] = None if gradient is None else self._numpy(gradient)
        return found, {}

    def upstream(self, y: Host, rng: np.random.Generator) -> Host:
        """Draw d loss / d y."""
        return rng.standard_normal(y.shape)

    def forward(self) -> Host:
        """Return y at the present values."""
        raise NotImplementedError

    def backward(self, dy: Host) -> Gradients:
        """Return the gradients after the last forward."""
        raise NotImplementedError


class FunctionSubject(Subject):
    """A function that returns (y, cache), or y alone."""

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Any], backward: Callable[..., Any] | None = None
    ) -> None:
        self.function = function
        self._backward = backward or _find_backward(function)
        self._cache: Any = None
        super().__init__(inputs, _argument_names(function, len(inputs)), None)

    def forward(self) -> Host:
        """Return y, keeping the cache."""
        result = self.function(*self._inputs())
        y, self._cache = result if isinstance(result, tuple) else (result, result)
        return self._numpy(y)

    def backward(self, dy: Host) -> Gradients:
        """Return the gradients that the backward beside the function gives."""
        return self._match(self._backward(self._device(dy), self._cache))


class CriterionSubject(Subject):
    """A loss object: `loss = criterion(logits, labels)`, `dlogits = criterion.backward()`."""

    def __init__(self, criterion: Any, inputs: Sequence[Any]) -> None:
        self.criterion = copy.deepcopy(criterion)
        super().__init__(inputs, _argument_names(self.criterion, len(inputs)), None)

    def upstream(self, y: Host, rng: np.random.Generator) -> Host:
        """Return 1: a loss starts the chain."""
        return np.ones(y.shape)

    def forward(self) -> Host:
        """Return the loss."""
        return self._numpy(self.criterion(*self._inputs()))

    def backward(self, dy: Host) -> Gradients:
        """Return the gradient that the loss kept."""
        return self._match(self.criterion.backward())


class ModuleSubject(Subject):
    """A copy of a module in float64; its parameters are differentiated by beside its inputs."""

    def __init__(self, module: Any, inputs: Sequence[Any]) -> None:
        if hasattr(module, "forget"):
            module.forget()
        self.module = copy.deepcopy(module)
        self.parameters = dict(self.module.named_parameters())
        names = _argument_names(self.module.forward, len(inputs))
        super().__init__(inputs, [f"input {name}" for name in names], self.module.backend)
        for name, parameter in self.parameters.items():
            self.values[name] = np.array(self.backend.to_numpy(parameter.data), np.float64, order="C")
            type(parameter).__init__(parameter, self._device(self.values[name]), name)  # made anew, in float64
        self._buffers: dict[str, tuple[Array, Host]] = {}
        for each in self.module.modules():
            for name in each._buffers:
                host = np.array(self.backend.to_numpy(getattr(each, name)))
                host = host.astype(np.float64) if host.dtype.kind == "f" else host
                setattr(each, name, self._device(host))
        for name, array in self.module.named_buffers():
            self._buffers[name] = (array, np.array(self.backend.to_numpy(array)))

    def put(self, name: str) -> None:
        """Bring a changed input or parameter to the backend."""
        parameter = self.parameters.get(name)
        if parameter is None:
            super().put(name)
        else:
            parameter.data = self._device(self.values[name])

    def forward(self) -> Host:
        """Return y, from the same running statistics each time."""
        for array, start in self._buffers.values():
            array[...] = self.backend.asarray(start)
        self.module.forget()
        return self._numpy(self.module(*self._inputs()))

    def backward(self, dy: Host) -> Gradients:
        """Return the gradients of inputs and parameters, and which of these did not add up."""
        self.module.zero_grad()
        found, _ = self._match(self.module.backward(self._device(dy)))
        once = {name: self._numpy(parameter.grad) for name, parameter in self.parameters.items()}
        self.forward()
        self.module.backward(self._device(dy))
        remarks = {
            name: "(a second backward must add to the gradient)"
            for name, parameter in self.parameters.items()
            if not np.allclose(self._numpy(parameter.grad), 2 * once[name], rtol=1e-9, atol=1e-300)
        }
        return {**found, **once}, remarks


def _host(value: Any) -> NDArray[Any] | None:
    """Return an array's values on the host; None for what is no array."""
    if isinstance(value, np.ndarray):
        return value
    try:
        host: NDArray[Any] = backend_of(value).to_numpy(value)
    except DTypeError:
        return None
    return host


def _backend_of_inputs(inputs: Sequence[Any]) -> Backend:
    for value in inputs:
        if value is not None and not isinstance(value, np.ndarray) and _host(value) is not None:
            return backend_of(value)
    return get_backend()


def _argument_names(function: Callable[..., Any], count: int) -> list[str]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in inspect.signature(function).parameters.values() if each.kind in positional]
    return [names[i] if i < len(names) else f"input {i}" for i in range(count)]


def _find_backward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return NAME_backward from where the function NAME was defined, with the options that both take."""
    options = function.keywords if isinstance(function, functools.partial) else {}
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", "function")
    backward = getattr(sys.modules.get(function.__module__), f"{name}_backward", None)
    if backward is None:
        raise ConfigError(f"target: found no {name}_backward in {function.__module__}; pass backward=")
    taken = inspect.signature(backward).parameters
    return functools.partial(backward, **{key: value for key, value in options.items() if key in taken})
