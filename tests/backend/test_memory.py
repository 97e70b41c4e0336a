import copy
import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.backend import get_backend, use_backend
from xpcnn.backend.numpy.memory import SMALLEST, BlockPool

BIG = (4, SMALLEST)  # uint8
BYTE = np.dtype("uint8")


def address(array):
    return array.__array_interface__["data"][0]


def test_a_block_is_used_again_when_its_last_view_is_gone():
    pool = BlockPool()
    first = pool.empty(BIG, BYTE)
    place = address(first)
    view = first[1:, ::2].T
    del first
    other = pool.empty(BIG, BYTE)
    assert address(other) != place
    del view
    assert address(pool.empty(BIG, BYTE)) == place


def test_views_keep_their_numbers():
    pool = BlockPool()
    array = pool.empty(BIG, BYTE)
    array[:] = 7
    view = array.reshape(-1)[::3]
    del array
    for _ in range(5):
        pool.empty(BIG, BYTE)[:] = 9
    assert np.all(view == 7)


def test_arrays_are_ordinary():
    pool = BlockPool()
    array = pool.empty((300, 400), np.dtype("float64"))
    assert type(array) is np.ndarray
    assert array.shape == (300, 400)
    assert array.dtype == "float64"
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert address(array) % 16 == 0
    array[:] = 3
    for twin in (copy.deepcopy(array), pickle.loads(pickle.dumps(array)), array.copy()):
        assert np.array_equal(twin, array)
        assert not np.shares_memory(twin, array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (10,)])
def test_small_arrays_are_numpy_s(shape):
    pool = BlockPool()
    array = pool.empty(shape, np.dtype("float32"))
    assert array.shape == shape
    assert array.base is None
    assert pool.used_bytes == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("make"), st.integers(0, 5)),
            st.tuples(st.just("view"), st.integers(0, 50)),
            st.tuples(st.just("drop"), st.integers(0, 50)),
        ),
        max_size=40,
    )
)
def test_nothing_alive_is_handed_out(moves):
    pool = BlockPool()
    alive = []
    for number, (move, value) in enumerate(moves):
        if move == "make":
            array = pool.empty((SMALLEST + value * SMALLEST // 3,), BYTE)
            array[:] = number
            alive.append((number, array))
        elif alive and move == "view":
            marked, array = alive[value % len(alive)]
            alive.append((marked, array[:: 1 + value]))
        elif alive:
            alive.pop(value % len(alive))
        for marked, array in alive:
            assert array[0] == array[-1] == array[len(array) // 2] == marked


def test_memory_is_bounded():
    pool = BlockPool(spare=2.0)
    for size in [*range(1, 40), *range(40, 1, -3)] * 2:
        pool.empty((size * SMALLEST,), BYTE)
        assert pool.free_bytes + pool.used_bytes <= 2 * pool.peak_bytes + (1 << 16)
    gc.collect()
    assert pool.peak_bytes <= 40 * SMALLEST


def test_threads_share_it():
    pool, errors = BlockPool(), []

    def work(number):
        for i in range(50):
            array = pool.empty((SMALLEST + 1000 * (i % 3),), BYTE)
            array[:] = number
            if not np.all(array == number):
                errors.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("shape", [(3,), (64, 64, 65), (1 << 20,)])
def test_what_the_library_makes_begins_with_a_cache_line(shape):
    with use_backend("numpy"):
        backend = get_backend()
        arrays = [backend.zeros(shape, np.float32), backend.scratch("test", shape, np.float32)]
        if np.prod(shape) * 4 >= SMALLEST:
            arrays.append(backend.empty(shape, np.float32))
    assert [array.ctypes.data % 64 for array in arrays] == [0] * len(arrays)
    assert not arrays[0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_fetched_leaves_no_cache_line_out(dtype):
    with use_backend("numpy"):
        backend = get_backend()
        whole = np.arange(3 * 6 * 5 * 7, dtype=dtype).reshape(3, 6, 5, 7)
        part = whole[1:, 2:4]  # rows of two channels
        backend.fetch(part)
        read = backend.scratch("lines", (2, -(-part[0].nbytes // 64)), dtype)  # as it was left
    assert read[:, 0].tolist() == part[:, 0, 0, 0].tolist()
    assert (np.diff(read) * part.itemsize == 64).all()
    assert ((part[:, -1, -1, -1] - read[:, -1]) * part.itemsize < 64).all()
