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
# whole steps. Plans that a thread keeps, and addresses of one slot whose arrays a plan keeps; bytes of small
# intermediate results that a plan may keep, and arguments that its calls may have.
CALLS_BEFORE = 5
PLANS_KEPT = 256
ADDRESSES_KEPT = 32
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
            if known.is_busy:  # a signal's handler came between its calls
                return function(backend, *self.plain(arguments))
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
    is_busy : bool
        Whether its calls are being played.
    """

    def __init__(self, backend: NumpyBackend, buffers: dict[Any, Array], scratch: list[Any], multiplies: bool) -> None:
        self._backend, self._buffers, self._scratch, self._multiplies = backend, buffers, scratch, multiplies
        self.bytes_kept = 0
        self._kind = object()  # stands for this plan where its results go, and keeps nothing of it
        self.blocks: list[tuple[int, Part]] = []  # their sizes, and the array at the beginning of each
        self.results: list[Any] = []
        self.is_single = False
        self._bound: Bound = []
        self._slots: list[_Slot] = []
        self.is_busy = False

    def __call__(self, arrays: list[Array]) -> Any:
        """Return the result for these arguments."""
        new = self._backend.blocks.laid_out
        places = [a.__array_interface__["data"][0] for a in arrays]
        held = arrays
        for key in self._scratch:
            held.append(self._buffers[key])
            places.append(held[-1].__array_interface__["data"][0])
        for size, (_, _, shape, strides, kind) in self.blocks:
            array, address = new(size, shape, strides, kind)
            held.append(array)
            places.append(address)
        self.is_busy = True
        try:
            for slot, address in zip(self._slots, places, strict=True):
                if slot.address != address:
                    slot.move(address)
            self._play()
        finally:
            self.is_busy = False
        if self.is_single:
            return self._result(self.results[0], held, places)
        return tuple([self._result(each, held, places) for each in self.results])

    def _play(self) -> None:
        if self._multiplies:
            self._backend.blas.hold()
            try:
                play(self._bound)
            finally:
                self._backend.blas.release()
        else:
            play(self._bound)

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
        """How many gaps its calls have."""
        return sum(len(slot.gaps) for slot in self._slots)

    def bind(self, calls: list[Call], places: Places) -> None:
        """Take the calls that were recorded, with gaps where arguments lie in slots."""
        self._slots = [_Slot() for _ in range(places.count)]
        self._bound = self._with_gaps(calls, places)

    def _with_gaps(self, calls: list[Call], places: Places) -> Bound:
        bound: Bound = []
        for call in calls:
            if isinstance(call.function, Region):
                region = Region(self._backend.pool, [], call.function.work)
                region.bound = [self._with_gaps(each, places) for each in call.function.parts]
                bound.append((region, ()))
                continue
            function, args, options = positional(call)
            if any(isinstance(value, (tuple, list, dict)) and arrays_in(value) for value in (*args, *options.values())):
                raise BackendError(f"plans: {function} takes nested arrays")
            given, named = list(args), dict(options)
            self._note_gaps(given, enumerate(args), places)
            if named:
                function = partial(function, **named)
                self._note_gaps(function.keywords, options.items(), places)
            bound.append((function, given))
        return bound

    def _note_gaps(self, arguments: Any, items: Iterable[tuple[Any, Any]], places: Places) -> None:
        for key, value in items:
            if isinstance(value, np.ndarray):
                part = places.part(value)
                if part is not None:
                    self._slots[part.slot].add(part, arguments, key)
                elif value.flags.writeable:  # others are constants of the whole backend
                    places.outside.add(memory_of(value))


class _Slot:
    """What calls hold of one of the arrays that change from call to call, and where it lay the last time.

    Attributes
    ----------
    gaps : list of (arguments, key, int)
        Positional arguments or options of a call, the place in them, and the number of the part that belongs there.
    """

    __slots__ = ("_arrays", "_numbers", "_parts", "address", "gaps")

    def __init__(self) -> None:
        self.address = -1
        self.gaps: list[tuple[Any, Any, int]] = []
        self._parts: list[Part] = []
        self._numbers: dict[Part, int] = {}
        self._arrays: dict[int, list[Array]] = {}

    def add(self, part: Part, arguments: Any, key: Any) -> None:
        """Note that a part belongs to arguments[key]."""
        number = self._numbers.setdefault(part, len(self._parts))
        if number == len(self._parts):
            self._parts.append(part)
        self.gaps.append((arguments, key, number))
        arguments[key] = None  # the memory that was recorded over is not kept

    def move(self, address: int) -> None:
        """Fill the gaps with the arrays that lie at this address."""
        arrays = self._arrays.get(address)
        if arrays is None:
            if len(self._arrays) >= ADDRESSES_KEPT:
                self._arrays.clear()
            arrays = self._arrays[address] = [part.at(address) for part in self._parts]
        self.address = -1  # until all of them are filled
        for arguments, key, number in self.gaps:
            arguments[key] = arrays[number]
        self.address = address


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
    plan.bind(calls, places)
    shared = set(map(memory_of, buffers.values()))
    plan.bytes_kept = sum(stop - start for start, stop in places.outside - shared)
    return plan, result


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
