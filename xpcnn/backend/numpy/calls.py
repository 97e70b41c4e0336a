"""A call of a graph: a function, and the very arrays that it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Bound = list[tuple[Callable[..., Any], Sequence[Any]]]  # what a replay plays: functions with positional arguments

# Their third positional argument is deprecated; for the others it is the quickest way to say where results go.
_NEED_KEYWORD = (np.maximum, np.minimum)
# What these functions of NumPy's do after they have looked at their arguments.
_REDUCTIONS = {np.sum: np.add, np.prod: np.multiply, np.max: np.maximum, np.min: np.minimum}
_CLIP = getattr(getattr(getattr(np, "_core", None), "umath", None), "clip", np.clip)  # as it is where that has moved


class Call(NamedTuple):
    """A function with its arguments and options."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})


def refill(result: Any, *args: Any, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Call a function that takes no `out`, and copy what it returns to `result`."""
    np.copyto(result, function(*args, **options))


def refill_all(results: list[Any], *args: Any, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Call a function that returns several arrays, and copy them to `results`."""
    for result, value in zip(results, function(*args, **options), strict=True):
        np.copyto(result, value)


def positional(call: Call) -> Call:
    """Return a call that does the same with as many positional arguments as can be: they are looked at in less time."""
    function, args, options = call
    if "out" not in options:
        return call
    if (
        function is np.matmul
        and len(options) == 1
        and options["out"].flags.c_contiguous
        and all(map(_is_matrix, (*args, options["out"])))
    ):
        return Call(np.dot, (*args, options["out"]))  # the same product of BLAS, less looking at its arguments
    if isinstance(function, np.ufunc) and function not in _NEED_KEYWORD:
        rest = {name: value for name, value in options.items() if name != "out"}
        return Call(function, (*args, options["out"]), rest)
    if function is np.clip and len(args) == 3 and len(options) == 1 and isinstance(_CLIP, np.ufunc):
        return Call(_CLIP, (*args, options["out"]))
    if len(args) == 1 and function in _REDUCTIONS:
        rest = {name: value for name, value in options.items() if name not in ("axis", "dtype", "out")}
        places = (*args, options.get("axis"), options.get("dtype"), options["out"])
        return Call(_REDUCTIONS[function].reduce, places, rest)
    return call


def _is_matrix(a: Any) -> bool:
    return type(a) is np.ndarray and a.ndim == 2 and (a.flags.c_contiguous or a.flags.f_contiguous)


def bind(calls: Iterable[Call]) -> Bound:
    """Return calls in the form in which they are played."""
    bound: Bound = []
    for function, args, options in map(positional, calls):
        if function in (np.argmax, np.argmin) and len(args) == 1 and options.keys() <= {"axis", "out"}:
            bound.append((getattr(args[0], function.__name__), (options.get("axis"), options.get("out"))))
        else:
            bound.append((partial(function, **options) if options else function, args))
    return bound


def reads_and_writes(call: Call) -> tuple[list[Any], list[Any]] | None:
    """Return the arrays that a call reads and those that it writes; None where that is not known."""
    function, args, options = call
    if function is refill:
        return arrays_of((args[1:], options["options"])), [args[0]]
    if function is refill_all:
        return arrays_of((args[1:], options["options"])), list(args[0])
    name = getattr(function, "__name__", "")
    if function is np.copyto:
        return arrays_of((args[1:], options)), [args[0]]
    if "out" in options and (isinstance(function, np.ufunc) or getattr(np, name, None) is function):
        return arrays_of((args, {key: value for key, value in options.items() if key != "out"})), [options["out"]]
    owner = getattr(function, "__self__", None)
    if "out" in options and isinstance(owner, np.ufunc):
        return arrays_of(args), [options["out"]]
    return None


def arrays_of(value: Any) -> list[Any]:
    """Return the arrays in nested tuples, lists and dicts."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, (tuple, list)):
        return [array for each in value for array in arrays_of(each)]
    if isinstance(value, dict):
        return [array for each in value.values() for array in arrays_of(each)]
    return []
