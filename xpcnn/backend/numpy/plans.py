"""Lone operations as plans: their NumPy calls are recorded once for a geometry and rebound to the arrays of each call.

Views, slices and look-ups cost 10 to 20 microseconds of Python before a NumPy call, under a lock that the threads
share: whoever finds it taken sleeps for longer than many of these calls take. An operation that comes again with the
same shapes is therefore recorded (`numpy/trace.py`), and what its calls hold of the arguments, of the results and of
scratch memory is noted as a place. A later call looks up the tape for the addresses at hand, made where it is new, and
plays it. Two cores, ms with and without: 3x3 convolution of 100x3x31x31 by 2, both ways, 1.5 and 2.3; of 128x64x14x14,
128 filters, 27 and 29; max-pooling of 128x64x28x28 4.8 and 7.1, of 100x3x32x32 0.30 and 0.38.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xpcnn.backend.numpy import trace
from xpcnn.backend.numpy.calls import Bound, Call, positional
from xpcnn.backend.numpy.calls import arrays_of as arrays_in
from xpcnn.backend.numpy.places import Array, Nested, Part, Places, are_apart, arrays_of, layouts_of, mapped, memory_of
from xpcnn.backend.numpy.regions import Region, play
from xpcnn.backend.numpy.traced import deep_plain
from xpcnn.errors import BackendError

if TYPE_CHECKING:
    from xpcnn.backend.numpy import NumpyBackend

# Calls before one is recorded, which runs in one thread and takes memory: more than a trainer makes before it records
# whole steps. Plans and, of each, tapes for certain addresses that a thread keeps; bytes of small intermediate results
# that a plan may keep, and arguments that its calls may have.
CALLS_BEFORE = 5
PLANS_KEPT = 256
BOUND_KEPT = 4
BYTES_KEPT = 1 << 20
ARGUMENTS_KEPT = 10_000


class Plans:
    """The plans of one backend; each thread has its own."""

    def __init__(self, backend: NumpyBackend) -> None:
        self._backend = backend
        self._local = threading.local()

    def clear(self) -> None:
        """Forget all plans, and the memory that they work in."""
        self._local = threading.local()

    @staticmethod
    def plain(arguments: tuple[Any, ...]) -> list[Any]:
        """Return arguments with nested results of plans as their functions returned them."""
        return [each.value() if each.__class__ is Nested else each for each in arguments]

    def run(self, key: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Return function(backend, *arguments), where `key` and the arguments' layout fix which calls that makes."""
        backend, mine = self._backend, self._local.__dict__
        if not mine:
            mine.update(plans={}, buffers={})
        plans = mine["plans"]
        arrays: list[Array] = []
        layout = backend.get_num_threads(), backend.region_worth, *layouts_of(arguments, arrays)
        known = plans.get((key, layout), 0)
        if known.__class__ is Plan:
            return known(arrays)
        if known is not None and not backend.pool.inside:
            if not known and len(plans) >= PLANS_KEPT:
                plans.clear()
                mine["buffers"].clear()
            if known >= CALLS_BEFORE and are_apart(arrays):
                backend.drop_scratch()  # a plan has its own; what calls before it used would add to the peak
                backend.blocks.give_back()
                try:
                    plan, result = _record(backend, mine["buffers"], function, arguments, arrays)
                except BackendError:
                    plans[key, layout] = None
                    return function(backend, *self.plain(arguments))
                if plan is not None:
                    small = plan.bytes_kept <= BYTES_KEPT and plan.size <= ARGUMENTS_KEPT
                    plans[key, layout] = plan if small else None
                return result
            plans[key, layout] = known + 1
        return function(backend, *self.plain(arguments))


class _Whole(NamedTuple):
    """One of those arrays as it is."""

    slot: int


class _Nest(NamedTuple):
    """Nested parts of the arrays in some slots, which they count anew."""

    slots: list[int]
    template: Any


class Plan:
    """One operation of one geometry: calls with gaps, and what fills them.

    What changes from call to call has a slot: the arguments first and scratch memory, then a block for each array that
    the function returns, one for all that it returns nested in lists and one for what lies between.

    Attributes
    ----------
    bytes_kept : int
        Size of small intermediate results, which lie in no slot.
    """

    def __init__(self, backend: NumpyBackend, buffers: dict[Any, Array], scratch: list[Any], multiplies: bool) -> None:
        self._backend, self._buffers, self._scratch, self._multiplies = backend, buffers, scratch, multiplies
        self.bytes_kept = 0
        self._kind = object()  # stands for this plan where its results go, and keeps nothing of it
        self.blocks: list[tuple[int, Part]] = []  # their sizes, and the array at the beginning of each
        self.results: list[Any] = []
        self.is_single = False
        self.calls: list[Any] = []
        self._values: list[Any] = []  # arguments of calls
        self._bound: dict[tuple[int, ...], Bound] = {}

    def __call__(self, arrays: list[Array]) -> Any:
        """Return the result for these arguments."""
        backend, new = self._backend, self._backend.blocks.laid_out
        places = [a.__array_interface__["data"][0] for a in arrays]
        held = arrays
        for key in self._scratch:
            held.append(self._buffers[key])
            places.append(held[-1].__array_interface__["data"][0])
        for size, (_, _, shape, strides, kind) in self.blocks:
            array, address = new(size, shape, strides, kind)
            held.append(array)
            places.append(address)
        addresses = tuple(places)
        bound = self._bound.get(addresses)
        if bound is None:
            if len(self._bound) >= BOUND_KEPT:
                self._bound.clear()
            values = [each.of(addresses) if each.__class__ is Part else each for each in self._values]
            bound = self._bound[addresses] = self._filled(self.calls, values)
        if self._multiplies:
            backend.blas.hold()
            try:
                play(bound)
            finally:
                backend.blas.release()
        else:
            play(bound)
        if self.is_single:
            return self._result(self.results[0], held, addresses)
        return tuple([self._result(each, held, addresses) for each in self.results])

    def _result(self, template: Any, held: list[Array], addresses: Sequence[int]) -> Any:
        kind = template.__class__
        if kind is _Whole:
            return held[template.slot]
        if kind is _Nest:
            slots = template.slots
            return Nested(self._kind, template.template, [held[s] for s in slots], [addresses[s] for s in slots])
        return template.of(addresses, held[template.slot]) if kind is Part else template

    @property
    def size(self) -> int:
        """How many arguments its calls have."""
        return len(self._values)

    def number(self, value: Any) -> int:
        """Note an argument of calls; return its number."""
        self._values.append(value)
        return len(self._values) - 1

    def _filled(self, calls: list[Any], values: list[Any]) -> Bound:
        """Return calls over these arguments."""
        bound: Bound = []
        for function, numbers, options in calls:
            if function is Region:
                region = Region(self._backend.pool, [], options)
                region.bound = [self._filled(each, values) for each in numbers]
                bound.append((region, ()))
                continue
            call = partial(function, **{name: values[i] for name, i in options.items()}) if options else function
            bound.append((call, tuple([values[i] for i in numbers])))
        return bound


def _record(
    backend: NumpyBackend,
    buffers: dict[Any, Array],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    arrays: list[Array],
) -> tuple[Plan | None, Any]:
    """Return the plan of function(backend, *arguments), and its result; no plan where scratch memory grew under it."""
    recorder = trace.tracing_backend(backend, None, buffers, backend.region_worth)
    try:
        with backend.recording(recorder):
            result = deep_plain(function(recorder, *Plans.plain(arguments)))
    finally:
        recorder.close()
    calls, stores, scratch = recorder.calls, recorder.blocks.kept, list(recorder.buffers_used)
    if recorder.outgrown:
        return None, result
    plan = Plan(backend, buffers, scratch, any(map(_multiplies, calls)))
    places = Places()
    for array in (*arrays, *(buffers[key] for key in scratch)):
        places.add_argument(array)
    plan.is_single = not isinstance(result, tuple)
    elements = (result,) if plan.is_single else result

    def make_room(extents: Iterable[tuple[int, int]], leaf: Array | None = None) -> None:
        size = places.add(extents)
        if size:
            raw = Part(places.count - 1, 0, (size,), None, "|u1")
            part = raw if leaf is None else places.part(leaf)
            plan.blocks.append((size, raw if part is None or part.offset else part))

    for element in elements:
        if isinstance(element, np.ndarray) and places.part(element) is None:
            make_room([memory_of(element)], element)
    nested = [leaf for element in elements if isinstance(element, list) for leaf in arrays_of(element, [])]
    make_room([memory_of(leaf) for leaf in nested if places.part(leaf) is None])
    make_room([(store.address, store.address + store.nbytes) for store in stores])
    wholes = {part for _, part in plan.blocks}
    for element in elements:
        template = mapped(element, np.ndarray, places.part)
        if isinstance(element, list):
            slots: list[int] = []
            plan.results.append(_Nest(slots, mapped(template, Part, partial(_counted, slots))))
        else:
            plan.results.append(_Whole(template.slot) if template in wholes else template)
    plan.calls = _with_gaps(calls, plan, places, {})
    shared = set(map(memory_of, buffers.values()))
    plan.bytes_kept = sum(stop - start for start, stop in places.outside - shared)
    return plan, result


def _with_gaps(calls: list[Call], plan: Plan, places: Places, numbers: dict[Any, int]) -> list[Any]:
    """Return calls as functions, and arguments and options by number; regions with their own calls."""

    def number(value: Any) -> int:
        if isinstance(value, np.ndarray):
            part = places.part(value)
            if part is not None:
                value = part
            elif value.flags.writeable:  # others are constants of the whole backend
                places.outside.add(memory_of(value))
        key = value if isinstance(value, Part) else id(value)  # the plan keeps the value, and its identity
        if key not in numbers:
            numbers[key] = plan.number(value)
        return numbers[key]

    gaps: list[Any] = []
    for function, args, options in calls:
        if isinstance(function, Region):
            gaps.append((Region, [_with_gaps(each, plan, places, numbers) for each in function.parts], function.work))
            continue
        if any(isinstance(value, (tuple, list, dict)) and arrays_in(value) for value in (*args, *options.values())):
            raise BackendError(f"plans: {function} takes nested arrays")
        given = positional(Call(function, args, options))
        numbered = {name: number(value) for name, value in given.options.items()}
        gaps.append((given.function, [number(value) for value in given.args], numbered))
    return gaps


def _multiplies(call: Call) -> bool:
    function, _, options = call
    if isinstance(function, Region):
        return any(_multiplies(each) for part in function.parts for each in part)
    return options.get("function", function) is np.matmul


def _counted(slots: list[int], part: Part) -> Part:
    """Return a part with the number that its slot has in `slots`, where it is put if it is new."""
    if part.slot not in slots:
        slots.append(part.slot)
    return part._replace(slot=slots.index(part.slot))
