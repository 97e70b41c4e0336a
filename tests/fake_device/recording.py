"""A fake device that captures steps as CUDA graphs do: recorded without being run, replayed on the same memory.

Python numbers are fixed when recorded, arrays are read and written where they lay, nothing runs while recording, and
whatever CUDA forbids in a capture raises. Results must therefore be right for the reasons for which they are on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn.errors import BackendError

from . import array as arrays
from .array import FakeArray, capture
from .backend import FakeBackend
from .namespace import FakeNamespace, Ufunc, xp

Entry = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]
METHODS = """
    __setitem__ __getitem__ fill copy astype ravel flatten reshape sum prod mean var std max min any all argmax
    argmin __neg__ __abs__ __invert__ __matmul__ __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__
    __rmul__ __imul__ __truediv__ __rtruediv__ __itruediv__ __floordiv__ __mod__ __pow__ __and__ __or__ __xor__
    __iand__ __ior__ __lshift__ __rshift__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__
""".split()  # noqa: SIM905
NOTHING_TO_REPLAY = {"empty", "empty_like", "result_type", "may_share_memory", "shares_memory"}


class Recorder:
    """Notes every outermost call on fake arrays, with the arrays themselves."""

    def __init__(self) -> None:
        self.tape: list[Entry] = []
        self._depth = 0

    def noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            self._depth += 1
            try:
                result = function(*args, **options)
            finally:
                self._depth -= 1
            if not self._depth and not is_view(result, (*args, *options.values())):
                self.tape.append((function, args, options, result))
            return result

        return call

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note calls inside the block."""
        methods = {name: vars(FakeArray)[name] for name in METHODS}
        functions = {name: value for name, value in vars(xp).items() if callable(value) and not isinstance(value, type)}
        functions = {name: value for name, value in functions.items() if name not in NOTHING_TO_REPLAY}
        reduce = Ufunc.reduce
        for name, method in methods.items():
            setattr(FakeArray, name, self.noting(method))
        for name, function in functions.items():
            setattr(xp, name, self.noting(function))
        try:
            yield
        finally:
            Ufunc.reduce = reduce  # type: ignore[method-assign]
            for name, method in methods.items():
                setattr(FakeArray, name, method)
            for name, function in functions.items():
                setattr(xp, name, function)


def is_view(result: Any, args: tuple[Any, ...]) -> bool:
    """Whether a call only looked at memory: nothing to do again."""
    first = args[0] if args else None
    return (
        isinstance(result, FakeArray)
        and isinstance(first, FakeArray)
        and result is not first
        and result.size > 0
        and np.shares_memory(result._host, first._host)
        and not any(result is other for other in args)
    )


class Replay:
    """A recorded step."""

    def __init__(self, step: Callable[[], None]) -> None:
        recorder = Recorder()
        memory: list[tuple[np.ndarray, np.ndarray]] = []
        try:
            with untouched(memory), recorder.running(), capture():
                step()
        finally:  # what the step wrote must be as it was: a capture runs nothing
            for target, before in reversed(memory):
                target[...] = before
        self.tape = recorder.tape

    def __call__(self) -> None:
        for function, args, options, result in self.tape:
            again = function(*args, **options)
            for old, new in zip(parts(result), parts(again), strict=True):
                if old is not new:
                    old._host[...] = new._host


def parts(result: Any) -> list[FakeArray]:
    return [part for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, FakeArray)]


@contextmanager
def untouched(memory: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[None]:
    """Keep a copy of whatever is about to be written."""
    call, setitem, fill = arrays.call, FakeArray.__setitem__, FakeArray.fill

    def keep(target: Any) -> None:
        if isinstance(target, FakeArray):
            memory.append((target._host, target._host.copy()))

    def keeping_call(function: Any, *operands: Any, out: Any = None, **options: Any) -> Any:
        keep(out[0] if isinstance(out, tuple) else out)
        return call(function, *operands, out=out, **options)

    def keeping_setitem(self: FakeArray, index: Any, value: Any) -> None:
        keep(self)
        setitem(self, index, value)

    def keeping_fill(self: FakeArray, value: Any) -> None:
        keep(self)
        fill(self, value)

    from . import namespace

    copyto = xp.copyto

    def keeping_copyto(dst: Any, *args: Any, **options: Any) -> None:
        keep(dst)
        copyto(dst, *args, **options)

    arrays.call = namespace.call = keeping_call
    FakeArray.__setitem__, FakeArray.fill, xp.copyto = keeping_setitem, keeping_fill, keeping_copyto
    try:
        yield
    finally:
        arrays.call = namespace.call = call
        FakeArray.__setitem__, FakeArray.fill, xp.copyto = setitem, fill, copyto


class RecordingBackend(FakeBackend):
    """The fake device with captures."""

    captures = True
    tools = (str(Path(__file__).parent),)
    records = 0

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        try:
            replay = Replay(step)
        except (arrays.CaptureError, arrays.HiddenCopyError) as error:
            raise BackendError(f"capture: the step cannot be recorded: {error}") from error
        self.records += 1
        return replay


__all__ = ["FakeNamespace", "Recorder", "RecordingBackend", "Replay"]
