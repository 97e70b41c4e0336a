"""A pickle reader that cannot run code: it builds numbers, strings, lists, tuples, dicts and NumPy arrays, no more.

Python's own Unpickler, even with `find_class` restricted, allocates whatever a few bytes of the file tell it to. This
is a small machine for the opcodes that data needs (protocols 0 to 5, Python 2's included). It imports nothing and
calls nothing that the file names, and its work is linear in the file's size.
"""

from __future__ import annotations

import codecs
import math
import pickle as op  # for the names of the opcodes
import re
import struct
from typing import Any

import numpy as np

from xpcnn.errors import DataError

_NUMBERS = {op.BININT1: "<B", op.BININT2: "<H", op.BININT: "<i", op.BINFLOAT: ">d"}
_COUNTED = {  # a length, then that many bytes
    **dict.fromkeys((op.SHORT_BINSTRING, op.SHORT_BINBYTES, op.SHORT_BINUNICODE, op.LONG1), "<B"),
    **dict.fromkeys((op.BINBYTES, op.BINUNICODE), "<I"),
    **dict.fromkeys((op.BINBYTES8, op.BYTEARRAY8, op.BINUNICODE8), "<Q"),
    op.BINSTRING: "<i",
}
_UNICODE = {op.SHORT_BINUNICODE, op.BINUNICODE, op.BINUNICODE8}
_LINES = {op.INT, op.LONG, op.FLOAT, op.STRING, op.UNICODE}
_CONSTANTS = {op.NONE: None, op.NEWTRUE: True, op.NEWFALSE: False, op.EMPTY_TUPLE: ()}
_PUT = {op.BINPUT: "<B", op.LONG_BINPUT: "<I"}
_GET = {op.BINGET: "<B", op.LONG_BINGET: "<I"}
_TUPLES = {op.TUPLE1: 1, op.TUPLE2: 2, op.TUPLE3: 3}

_RECONSTRUCT, _NDARRAY = "numpy._core.multiarray._reconstruct", "numpy.ndarray"
_FROMBUFFER, _SCALAR = "numpy._core.numeric._frombuffer", "numpy._core.multiarray.scalar"
_DTYPE, _ENCODE, _NO_BYTES = "numpy.dtype", "_codecs.encode", "__builtin__.bytes"
_GLOBALS = {_RECONSTRUCT, _NDARRAY, _FROMBUFFER, _SCALAR, _DTYPE, _ENCODE, _NO_BYTES}

_ESCAPED = re.compile(rb"""(?:[^\\]++|\\[\\'"nrt]|\\x[0-9a-f]{2})*+""")  # possessive: linear time, no memory

_MAX_OPCODES = 1_000_000  # a CIFAR-10 batch has 60,000; a million take a second
_MAX_AXES = 8
_MAX_NAME = 100  # characters of a key or module; one long text used a million times must not cost its length each time
_MAX_DIGITS = 20  # of a 64-bit integer and its sign


class _Global(str):
    """The name of one of `_GLOBALS`: REDUCE compares it, nothing imports it."""

    __slots__ = ()


class _Shell:
    """An array or dtype that REDUCE has made and BUILD will fill in; the memo may know it in between."""

    def __init__(self, value: np.dtype[Any] | None = None) -> None:
        self.value: Any = value


def unpickle(content: bytes, name: str) -> Any:
    """Return the plain data in a pickle.

    Parameters
    ----------
    content : bytes
        The whole pickle.
    name : str
        What error messages call the file.

    Returns
    -------
    object
        Numbers, str, bytes (Python 2's strings too), lists, tuples, dicts with texts as keys, and read-only NumPy
        arrays of booleans, integers or floats.

    Raises
    ------
    DataError
        The pickle is damaged, or asks for anything else.
    """
    try:
        return Machine(content).run()
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except DAMAGE as error:
        raise DataError(f"{name}: damaged pickle ({type(error).__name__}: {error!s:.60}); fetch it again") from error


def integers(value: Any) -> np.ndarray:
    """Return an array from a pickle as it is, a list of integers as an array; anything else is a DataError."""
    if isinstance(value, list) and all(type(item) is int and abs(item) < 1 << 63 for item in value):
        value = np.array(value, np.int64)
    if not isinstance(value, np.ndarray):
        raise DataError("labels: expected an array or list of integers")
    return value


# What the machine raises for a damaged pickle, beside DataError.
DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error)


class Machine:
    """The machine on one pickle; a subclass may know more globals, and what lies outside of the pickle."""

    globals: frozenset[str] = frozenset(_GLOBALS)

    def __init__(self, content: bytes, position: int = 0) -> None:
        self.content, self.position = content, position
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encodable = len(content)  # one text, encoded again and again, must not outgrow the file

    def run(self, *, whole: bool = True) -> Any:
        """Return what the pickle holds; unless `whole`, more may follow it in the content."""
        for _ in range(_MAX_OPCODES):
            code = self.take(1)
            if code == op.STOP:
                if (whole and self.position != len(self.content)) or len(self.stack) != 1:
                    raise ValueError("bytes or objects are left over")
                return self.stack.pop()
            self.step(code)
        raise DataError(f"more than {_MAX_OPCODES} pickle opcodes: not a pickle of plain arrays")

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self.position + size
        if size < 0 or end > len(self.content):
            raise ValueError("it ends early")
        piece, self.position = self.content[self.position : end], end
        return piece

    def line(self) -> bytes:
        """Return the next line."""
        return self.take(self.content.index(b"\n", self.position) + 1 - self.position)[:-1]

    def number(self, form: str) -> Any:
        """Return the next number of a form of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def since_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def step(self, code: bytes) -> None:
        """Do what an opcode says."""
        stack = self.stack
        if code in _NUMBERS:
            stack.append(self.number(_NUMBERS[code]))
        elif code in _PUT or code in (op.PUT, op.MEMOIZE):
            self.remember(code)
        elif code in _GET or code == op.GET:
            value = self.memo[self.number(_GET[code]) if code in _GET else _integer(self.line())]
            stack.append(value.value if isinstance(value, _Shell) and value.value is not None else value)
        elif code in _COUNTED:
            piece = self.take(self.number(_COUNTED[code]))
            stack.append(piece.decode() if code in _UNICODE else _long(piece) if code == op.LONG1 else piece)
        elif code in _LINES:
            stack.append(_from_line(code, self.line()))
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code == op.MARK:
            self.marks.append(len(stack))
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [_several(stack, _TUPLES[code])]
        elif code == op.TUPLE:
            stack.append(tuple(self.since_mark()))
        elif code == op.EMPTY_LIST:
            stack.append([])
        elif code == op.LIST:
            stack.append(self.since_mark())
        elif code in (op.APPEND, op.APPENDS):
            items = [stack.pop()] if code == op.APPEND else self.since_mark()
            _expect(list, stack[-1]).extend(items)
        elif code == op.EMPTY_DICT:
            stack.append({})
        elif code == op.DICT:
            stack.append(self.pairs(self.since_mark()))
        elif code in (op.SETITEM, op.SETITEMS):
            if code == op.SETITEM:
                self.marks.append(len(stack) - 2)
            items = self.since_mark()
            _expect(dict, stack[-1]).update(self.pairs(items))
        elif code in (op.GLOBAL, op.STACK_GLOBAL):
            attribute = None if code == op.GLOBAL else stack.pop()
            module = self.line().decode() if code == op.GLOBAL else stack.pop()
            stack.append(self.named(module, self.line().decode() if attribute is None else attribute))
        elif code == op.REDUCE:
            arguments = _expect(tuple, stack.pop())
            stack.append(self.reduce(_expect(_Global, stack.pop()), *arguments[:_MAX_AXES]))
        elif code == op.BUILD:
            self.build(stack.pop())
        elif code == op.BINPERSID and self.persists:
            stack.append(self.persistent(stack.pop()))
        elif code == op.PROTO:
            self.take(1)
        elif code == op.FRAME:
            self.take(8)
        else:
            raise DataError(f"the pickle opcode {code!r} is refused: only plain numbers, texts and arrays are read")

    def remember(self, code: bytes) -> None:
        """Put the top of the stack into the memo."""
        if code == op.MEMOIZE:
            index = len(self.memo)
        else:
            index = self.number(_PUT[code]) if code in _PUT else _integer(self.line())
        if not 0 <= index <= len(self.memo) + 1:  # picklers count from 0 or 1
            raise ValueError(f"memo index {index}")
        self.memo[index] = self.stack[-1]

    def named(self, module: Any, attribute: Any) -> _Global:
        """Return the name of a global, if it is one of those known."""
        name = f"{_text(module).replace('numpy.core.', 'numpy._core.')}.{_text(attribute)}"  # NumPy 1 said numpy.core
        if name not in self.globals:
            raise DataError(self.refusal.format(name=name[:60]))
        return _Global(name)

    refusal = "the pickle asks for {name!r}: refused, it could run code; only plain arrays are read"
    persists = False  # whether `persistent` knows anything

    def persistent(self, key: Any) -> Any:
        """Return what lies outside of the pickle under a persistent id."""
        raise NotImplementedError

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        """Return a dict of keys and values in turn."""
        return {_text(key): value for key, value in zip(items[::2], items[1::2], strict=True)}

    def reduce(self, function: _Global, *arguments: Any) -> Any:
        """Return what calling a known global with these arguments would."""
        if function == _RECONSTRUCT and arguments[0] == _NDARRAY:
            return _Shell()
        if function == _DTYPE:
            return _Shell(_dtype(_text(arguments[0])))
        if function == _FROMBUFFER:
            content, dtype, shape, order = arguments
            return _array(content, dtype, shape, fortran=order == "F")
        if function == _SCALAR:
            dtype, content = arguments
            return _array(content, dtype, ()).item()
        if function == _ENCODE:
            text, encoding = arguments
            self.encodable -= len(_expect(str, text))
            if encoding == "latin1" and self.encodable >= 0:
                return text.encode("latin-1")
        if function == _NO_BYTES and not arguments:
            return b""
        raise DataError(f"a call of {function} with these arguments is refused: only plain arrays are read")

    def build(self, state: Any) -> None:
        """Give an object its state."""
        state, top = _expect(tuple, state), self.stack[-1]
        if isinstance(top, np.dtype):  # came back from the memo, already built
            raise ValueError("a dtype is built twice")
        shell = _expect(_Shell, top)
        if shell.value is None:
            _, shape, dtype, fortran, content = state
            shell.value = _array(content, dtype, shape, fortran=bool(fortran))
        else:
            order = _text(state[1])
            if len(order) != 1 or order not in "<>|=":
                raise ValueError("a dtype's byte order")
            shell.value = shell.value.newbyteorder(order)
        self.stack[-1] = shell.value


def _array(content: Any, dtype: Any, shape: Any, *, fortran: bool = False) -> np.ndarray:
    dtype = dtype.value if isinstance(dtype, _Shell) else dtype
    if not (isinstance(content, bytes) and isinstance(dtype, np.dtype) and isinstance(shape, tuple)):
        raise ValueError("an array without content, type or shape")
    if len(shape) > _MAX_AXES or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
        raise ValueError("an array's shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array's shape differs from its content")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


def _dtype(code: str) -> np.dtype[Any]:
    if not re.fullmatch("b1|[iu][1248]|f[248]", code):
        raise DataError(f"an array of type {code[:20]!r} is refused: only booleans, integers and floats are read")
    return np.dtype(code)


def _from_line(code: bytes, line: bytes) -> Any:
    if code == op.STRING:  # Python 2's repr of a str
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            raise ValueError("a text without its quotes")
        if not _ESCAPED.fullmatch(line, 1, len(line) - 1):
            raise ValueError("a text with an escape that repr does not write")
        return codecs.escape_decode(line[1:-1])[0]
    if code == op.UNICODE:
        return line.decode("raw-unicode-escape")
    if code == op.FLOAT:
        return float(line)
    if code == op.INT and line in (b"00", b"01"):
        return line == b"01"
    return _integer(line)


def _integer(line: bytes) -> int:
    if len(line) > _MAX_DIGITS + 1:
        raise ValueError("an integer of more than 64 bits")
    return int(line.removesuffix(b"L"))


def _long(piece: bytes) -> int:
    if len(piece) > 9:
        raise ValueError("an integer of more than 64 bits")
    return int.from_bytes(piece, "little", signed=True)


def _several(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise IndexError("too few objects on the stack")
    return tuple(stack[-count:])


def _text(value: Any) -> str:
    text = value[:_MAX_NAME].decode("latin-1") if isinstance(value, bytes) else _expect(str, value)
    if len(text) >= _MAX_NAME:
        raise ValueError("a name is too long")
    return text


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value
