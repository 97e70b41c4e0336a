"""Memory that other processes see: cut, given back, copied into a child; and calls said in plain values."""

import functools
import json
import mmap
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.backend.numpy import arena as arena_module
from xpcnn.backend.numpy import worker
from xpcnn.backend.numpy.arena import PAGE, Arena, empty_like, new_arena
from xpcnn.backend.numpy.calls import Call, refill
from xpcnn.backend.numpy.encoding import Encoder, NotEncodable

from .processes import python

pytestmark = pytest.mark.skipif(new_arena(4096) is None, reason="the system has no shared memory of this kind")
MB = 1 << 20


def resident(arena):
    """Return the bytes of the file that have pages."""
    return os.fstat(arena.file).st_blocks * 512


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3 * PAGE), st.integers(0, 50)), max_size=60))
def test_nothing_alive_is_cut_again(moves):
    arena = Arena(MB, PAGE)
    arena.map[:PAGE] = b"r" * PAGE
    alive = []
    for number, (make, size, which) in enumerate(moves):
        if make:
            piece = arena.cut(size)
            assert piece.ctypes.data % 64 == 0
            assert piece.size >= size
            piece[:] = number
            alive.append((number, piece[: size // 2 + 1] if which % 2 else piece))
            del piece
        elif alive:
            alive.pop(which % len(alive))
        for marked, piece in alive:
            assert np.all(piece == marked)
    assert arena.map[:PAGE] == b"r" * PAGE


def test_what_comes_back_is_one_stretch_without_pages():
    arena = Arena(MB, PAGE)
    pieces = [arena.cut(size) for size in (100, 3 * PAGE, 64, 64, 5 * PAGE, 1000)]
    for piece in pieces:
        piece[:] = 1
    assert resident(arena) >= 8 * PAGE
    del piece
    for index in (3, 0, 5, 1, 4, 2):
        pieces[index] = None
    arena.cut(64)
    arena.cut(64)
    assert len(arena._free) == 1
    assert resident(arena) <= 2 * PAGE


def test_there_is_an_end():
    arena = Arena(16 * PAGE, PAGE)
    assert arena.cut(15 * PAGE + 1) is None
    piece = arena.cut(15 * PAGE)
    assert arena.cut(1) is None
    assert arena.array((3,), "float32") is None
    copy = arena.copy(np.arange(6.0))  # nowhere, but a copy
    assert arena.offset(copy) is None
    assert copy.tolist() == list(range(6))
    del piece
    assert arena.cut(15 * PAGE) is not None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_copies_keep_the_order_of_axes(order):
    array = np.arange(24.0).reshape(2, 3, 4).transpose(order)
    copy = Arena(MB, PAGE).copy(array)
    np.testing.assert_array_equal(copy, array)
    assert copy.strides == array.strides
    assert empty_like(array, np.empty).strides == array.strides


def test_the_file_is_closed():
    arena = Arena(MB, PAGE)
    file = arena.file
    piece = arena.cut(10)
    del arena
    os.fstat(file)
    del piece
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file)


@pytest.mark.parametrize("error", [OSError(38, "no such call"), AttributeError("memfd_create"), ValueError("size")])
def test_where_there_is_none(monkeypatch, error):
    def fails(*args):
        raise error

    monkeypatch.setattr(os, "memfd_create", fails)
    assert new_arena(PAGE) is None


def test_only_where_the_order_of_writes_is_kept(monkeypatch):
    monkeypatch.setattr(arena_module.platform, "machine", lambda: "aarch64")
    assert new_arena(PAGE) is None


def test_a_limit_on_memory():
    code = """
import resource
from xpcnn.backend.numpy.arena import new_arena
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
print(new_arena(4096))
"""
    assert python(code) == "None"


def test_a_forked_child_has_it_to_itself():
    code = """
import os
import numpy as np
from xpcnn.backend.numpy import arena as shared
arena = shared.Arena(64 << 20, 4096)
shared.privatise_after_fork(lambda: arena)
arena.map[:3] = b"abc"
pieces = [arena.cut(size) for size in (100, 3 << 20, 5000, 70, 2 << 20)]
for number, piece in enumerate(pieces):
    piece[:] = number + 1
del piece
pieces[1] = pieces[3] = None
last = arena.cut(10000)
last[:] = 9
kept = {number: piece for number, piece in enumerate(pieces) if piece is not None} | {8: last}
there, here = os.pipe()
child = os.fork()
if child == 0:
    os.read(there, 1)
    good = all(np.all(piece == number + 1) for number, piece in kept.items()) and arena.map[:3] == b"abc"
    for piece in kept.values():
        piece[:] = 77
    good = good and arena.cut(10) is None and not arena.is_shared
    kept.clear(); pieces.clear(); del last
    os._exit(0 if good else 3)
for piece in kept.values():
    piece[:] = 55
os.write(here, b"x")
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, all(np.all(piece == 55) for piece in kept.values()))
"""
    assert python(code, "-W", "ignore") == "0 True"


def test_a_child_that_can_have_none_ends_loudly():
    code = """
import os
from xpcnn.backend.numpy import arena as shared
arena = shared.Arena(1 << 20, 4096)
shared.privatise_after_fork(lambda: arena)
def fails(self):
    raise OSError(12, "no memory")
shared.Arena.privatise = fails
os.dup2(1, 2)
child = os.fork()
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    said = python(code, "-W", "ignore").splitlines()
    assert said[1] == "70"
    assert "a forked process gets no memory of its own" in said[0]


# --- calls in plain values ---------------------------------------------------------------------------------------


def spoken(arena, calls):
    """Say calls, send them through JSON, and hear them again."""
    encoder = Encoder(arena)
    calls = encoder.calls([Call(*call) for call in calls])
    calls, arrays, functions = json.loads(json.dumps([calls, encoder.arrays, encoder.functions]))
    memory = mmap.mmap(os.dup(arena.file), arena.size)
    decoder = worker.Decoder(memory, arrays, functions)
    return [decoder.call(*call) for call in calls]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(2**40),
        0.1,
        float("nan"),
        float("-inf"),
        "keep",
        (1, (2.5, None)),
        np.float32(0.1),
        np.int64(7),
        np.True_,
    ],
)
def test_values_come_back_as_they_were(value):
    arena = Arena(MB, PAGE)
    ((function, (heard,)),) = spoken(arena, [(np.add, (value,))])
    assert function is np.add
    assert type(heard) is type(value)
    assert repr(heard) == repr(value)


@pytest.mark.parametrize("kind", [bool, "float32", np.dtype("int64"), np.float64])
def test_types_come_back(kind):
    ((heard, _),) = spoken(Arena(MB, PAGE), [(np.sum, (), {"dtype": kind})])
    assert np.dtype(heard.keywords["dtype"]) == np.dtype(kind)


def test_arrays_are_the_same_memory():
    arena = Arena(MB, PAGE)
    array = arena.array((4, 6), "float32")
    array[...] = np.arange(24).reshape(4, 6)
    view = array[::-1, 1::2].T
    ((_, (heard, whole)),) = spoken(arena, [(np.copyto, (view, array))])
    np.testing.assert_array_equal(heard, view)
    assert heard.strides == view.strides
    whole[3, 1] = -1
    assert array[3, 1] == -1


def test_what_has_no_out_is_copied_there():
    arena = Arena(MB, PAGE)
    a, result = arena.array((2, 3), "float32"), arena.array((2,), "int64")
    a[...] = [[1, 5, 2], [7, 0, 3]]
    ((function, arguments),) = spoken(arena, [(refill, (result, a), {"function": np.argmax, "options": {"axis": 1}})])
    function(*arguments)
    assert result.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (print, ()),
        (os.system, ("true",)),
        (np.linalg.norm, ()),
        (functools.partial(np.add, 1), ()),
        (np.add, ([1, 2],)),
        (np.add, (slice(3),)),
        (np.add, (np.ones(3),)),
        (np.add, (np.broadcast_to(np.ones(1), 3),)),  # read-only, over memory that is not
        (np.add, (np.array(["a"]),)),
        (np.add, (1j,)),
    ],
)
def test_what_cannot_be_said(function, values):
    with pytest.raises(NotEncodable):
        Encoder(Arena(MB, PAGE)).calls([Call(function, values)])
