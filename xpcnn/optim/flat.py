"""One flat buffer under many parameters: what lets an update be a few calls over contiguous memory.

Parameters keep their shapes; their `.data` and `.grad` become views into the buffer, so layers write gradients
straight into it. Each parameter starts at a multiple of 64 bytes; the gaps hold zeros.

float16 parameters have a float32 master copy, on which the update works, with float32 state; the parameters are its
roundings (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.backend.split import split_evenly
from xpcnn.functional.precision import in_float32, is_narrow, wide
from xpcnn.nn import Parameter

ALIGNMENT = 64  # bytes: a cache line, and the width of AVX-512
# Elements that one thread updates at a time, so that all passes but the first find them in cache. Measured on two
# cores of an EPYC (Zen 5), 1.7 million elements: Adam 3.7 ms with 2**17, 4.5 with 2**14, 4.5 in one piece.
CHUNK = 1 << 17
HEAD = 8  # numbers before the gradients, at least: what several ranks add up with them
MASTER = "master"  # how a state calls the float32 copy of float16 parameters

Update = Callable[..., None]


class Flat:
    """Data, gradients and state of parameters of one group, dtype and backend, each in one flat array.

    Parameters
    ----------
    parameters : list of Parameter
        At least one; their arrays are copied into the buffer and replaced by views of it.
    backend : Backend
        The one that owns the arrays.
    state : mapping of str to float
        Name and initial value of each array of the optimiser's own.
    identity : tuple of float
        The hyperparameters with which an update on gradients of zero changes nothing.
    guarded : bool
        Whether `guard` will be called (see there).

    Attributes
    ----------
    data, grad : (size,) array
        What the parameters' arrays are views of.
    summed : (head + size,) array
        `grad`, and room before it for what ranks add up beside gradients in one go: before, because the gradients of
        the first layers are complete last.
    head : int
        HEAD, or more so that `grad` begins at a multiple of 64 bytes.
    counters : dict
        The optimiser's numbers that change from step to step; all parameters of a buffer have taken part in the same.
    hyper_values : tuple of float or None
        What `hyper` holds on the backend.
    master, slope : (size,) array
        What the update reads and writes: `data` and `grad` themselves, or float32 beside float16.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        backend: Backend,
        state: Mapping[str, float],
        identity: tuple[float, ...],
        guarded: bool,
    ) -> None:
        self.parameters = list(parameters)
        self.backend = backend
        self.dtype = parameters[0].data.dtype
        step = max(1, ALIGNMENT // self.dtype.itemsize)
        self.places: list[tuple[slice, tuple[int, ...]]] = []
        size = 0
        for parameter in parameters:
            shape = tuple(parameter.data.shape)
            count = math.prod(shape)
            self.places.append((slice(size, size + count), shape))
            size += -(-count // step) * step
        self.size = size
        self.is_narrow, self.wide = is_narrow(self.dtype), wide(self.dtype)

        def zeros(*shape: int, dtype: Any = self.wide) -> Array:
            return backend.place(backend.zeros(shape, dtype))

        self.data = self.master = zeros(size, dtype=self.dtype)
        self.head = max(HEAD, step)
        self.summed = zeros(self.head + size, dtype=self.dtype)
        self.grad = self.slope = self.summed[self.head :]
        if self.is_narrow:
            self.master, self.slope = zeros(size), zeros(size)
        self.state = {name: zeros(size) for name in state}
        for name, value in state.items():
            if value:
                self.state[name][...] = value
        self.counters: dict[str, float | int | bool] = {}
        self.hyper = zeros(len(identity))
        self.hyper_values: tuple[float, ...] | None = None
        self.applied = zeros(len(identity)) if guarded else self.hyper
        self._identity = backend.asarray(identity, self.wide) if guarded else None
        self._ok: Array | None = None  # what the next update is guarded by, where a kernel looks at it
        self._zero, self._sum = zeros(1, dtype=self.dtype), zeros()
        self._sums = zeros(max(1, min(size // CHUNK, backend.get_num_threads())))
        self.views: list[tuple[Parameter, Array, Array]] = []
        for parameter, data, grad in zip(parameters, self.split(self.data), self.split(self.grad), strict=True):
            data[...] = parameter.data
            if not parameter.grad_is_zero:
                here = backend_of(parameter.grad)
                grad[...] = parameter.grad if here is backend else backend.asarray(here.to_numpy(parameter.grad))
            parameter.relocate(data, grad)
            self.views.append((parameter, data, grad))
        backend.xp.copyto(self.master, self.data)
        arrays = [self.data, self.grad, self.master, self.slope, *self.state.values()]
        self.chunks = [
            (*(array[start : start + CHUNK] for array in arrays), self.applied) for start in range(0, size, CHUNK)
        ]
        if backend.slab_bytes is None or len(self.chunks) == 1:  # a device, or small: one piece
            self.chunks = [(*arrays, self.applied)]

    def split(self, flat: Array) -> list[Array]:
        """Return each parameter's part of a flat array, in the parameter's shape."""
        return [flat[place].reshape(shape) for place, shape in self.places]

    def part(self, flat: Array, index: int) -> Array:
        """Return one parameter's part of a flat array, in its shape."""
        place, shape = self.places[index]
        return flat[place].reshape(shape)

    def write_hyper(self, values: tuple[float, ...]) -> None:
        """Bring the hyperparameters of the next step to the backend."""
        self.hyper[...] = self.backend.asarray(values, self.wide)
        self.hyper_values = values

    def kept(self) -> dict[str, Array]:
        """Return the arrays that a state holds beside the parameters, by name."""
        return {**self.state, MASTER: self.master} if self.is_narrow else self.state

    def adopt(self, zeros: bool) -> bool:
        """Take in arrays that were put in place of the views since the last step.

        `zeros`: write zeros to gradients that count as zero. Returns False where the arrays cannot be taken in in
        place: they lie on another backend, or have another dtype.
        """
        for parameter, data, grad in self.views:
            value, slope = parameter.arrays()
            if value is not data:
                if backend_of(value) is not self.backend or value.dtype != self.dtype:
                    return False
                data[...] = value
                parameter.relocate(data, parameter.gradient_array)
            is_zero = parameter.grad_is_zero
            if slope is not grad:
                if not is_zero:
                    backend_of(data, slope)
                    grad[...] = slope
                parameter.relocate(data, grad)
            if is_zero and zeros:
                _ = parameter.grad
        return True

    def sum_gradients(self) -> Array:
        """Return the sum of all gradients in an array that the next call writes again."""
        backend = self.backend.for_array(self.grad)
        parts = split_evenly(self.size, len(self._sums))
        dtype = in_float32(self.dtype)  # finite numbers must not add up to infinity

        def add_up(index: int) -> None:
            part = self.grad[parts[index].start : parts[index].stop]
            backend.xp.sum(part, out=self._sums[index, ...], **dtype)

        backend.parallel(add_up, range(len(parts)), float(self.size), products=False)
        return self._sums[0, ...] if len(parts) == 1 else backend.xp.sum(self._sums, out=self._sum)

    def guard(self, ok: Array, update: Update) -> None:
        """Let the next update change nothing where `ok` (1,) is False, without the host having to know.

        A backend's own kernel looks at `ok` itself; for any other update the hyperparameters become the identity's
        (rates of 0, decays of 1) and the gradients 0.
        """
        self._ok = ok if self._by_kernel(update) is not None else None
        if self._ok is not None:
            return
        xp = self.backend.xp
        self.applied[...] = xp.where(ok, self.hyper, self._identity)
        xp.copyto(self.grad, self._zero, where=xp.logical_not(ok))

    def _by_kernel(self, update: Update) -> Update | None:
        """Return the backend's kernel for an update where it looks at an `ok` by itself."""
        backend = self.backend
        if self.size > backend.update_limit or not isinstance(update, partial) or len(self.chunks) > 1:
            return None
        kernel = backend.fused.get(update.func.__name__)
        return None if kernel is None else partial(kernel, **update.keywords)

    def unguard(self) -> None:
        """Let the next update use the hyperparameters as they are, whatever `guard` has left."""
        self._ok = None
        if self.applied is not self.hyper:
            self.backend.xp.copyto(self.applied, self.hyper)

    def flush_denormals(self) -> None:
        """Set denormal numbers to zero, in the data and the state, where no step can tell; the gaps stay zero.

        Averages and sums of squares go only where nothing is left that they divide, or that is subtracted from them:
        the square of a gradient of 1e-20 is denormal, and its step is not small.
        """
        backend = self.backend.for_array(self.data)
        squares = {name: array for name, array in self.state.items() if "square" in name}
        others = [array for name, array in self.state.items() if name not in squares]
        divided = [self.slope, *(array for name, array in self.state.items() if name.startswith("gradient_"))]
        with backend.errstate():
            for start in range(0, self.size, CHUNK):
                part = slice(start, start + CHUNK)
                for array in (self.master, *others):
                    _flush(backend, array[part])
                if squares:
                    rest = _is_any(backend, [array[part] for array in divided])
                    for array in squares.values():
                        _flush(backend, array[part], rest)

    def apply(self, update: Update, work: float, scale: Array | None = None) -> None:
        """Run `update` over the buffer; `work` is its cost per element.

        `scale` (1,) is what the gradients are too large by; those of float32 parameters are divided where they lie.
        """
        backend = self.backend.for_array(self.data)
        kernel = None if self._ok is None and not self.is_narrow else self._by_kernel(update)

        def run(chunk: tuple[Array, ...]) -> None:
            data, grad, master, slope, *rest = chunk
            if kernel is not None and self.is_narrow:
                *state, _ = rest
                kernel(backend, master, grad, *state, self.hyper, ok=self._ok, rounded=data, scale=scale)
                return
            if self.is_narrow:
                _widen(backend, data, grad, master, slope)
            if scale is not None:
                backend.xp.divide(slope, scale, out=slope)
            if kernel is not None:
                *state, _ = rest
                kernel(backend, master, slope, *state, self.hyper, ok=self._ok)
            else:
                update(backend, master, slope, *rest)
            if self.is_narrow:
                with backend.errstate():
                    backend.xp.copyto(data, master)

        if len(self.chunks) == 1:
            run(self.chunks[0])
        else:
            backend.parallel(run, self.chunks, work * self.size, products=False)


def _widen(backend: Backend, data: Array, grad: Array, master: Array, slope: Array) -> None:
    """Bring gradients to `slope`, and to `master` the parameters that somebody has written since the last update."""
    xp = backend.xp
    rounded = backend.scratch("rounded", data.shape, data.dtype)
    with backend.errstate():
        xp.copyto(rounded, master)
        xp.copyto(master, data, where=xp.not_equal(rounded, data))
        xp.copyto(slope, grad)


def _flush(backend: Backend, part: Array, keep: Array | None = None) -> None:
    """Set denormal numbers to zero, but for those where `keep` is true."""
    xp = backend.xp
    stays = xp.logical_not(xp.less(xp.absolute(part), float(xp.finfo(part.dtype).tiny)))  # so does nan
    xp.multiply(part, stays if keep is None else xp.logical_or(stays, keep), out=part)


def _is_any(backend: Backend, parts: Sequence[Array]) -> Array:
    """Return where any of these is not zero."""
    xp = backend.xp
    result = xp.not_equal(parts[0], 0)
    for part in parts[1:]:
        xp.logical_or(result, xp.not_equal(part, 0), out=result)
    return result
