"""The fake device refuses what CuPy refuses and copies when CuPy copies; otherwise its green would mean nothing."""

import copy

import numpy as np
import pytest

from xpcnn.backend import use_backend

from . import CaptureError, HiddenCopyError, UpcastError, allow_sync, capture, counters, xp


@pytest.fixture
def x():
    counters.reset()
    return xp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize(
    "convert", [np.asarray, np.array, np.sum, np.exp, lambda x: np.add(x, x), lambda x: np.stack([x, x])]
)
def test_numpy_functions_cannot_see_it(x, convert):
    with pytest.raises(TypeError):
        convert(x)


@pytest.mark.parametrize("operand", [np.ones((2, 3), np.float32), np.float32(1), np.float64(1), np.arange(3)])
def test_host_operands_are_refused(x, operand):
    for operation in (
        lambda: x + operand,
        lambda: operand + x,
        lambda: xp.maximum(x, operand),
        lambda: xp.where(x > 1, x, operand),
        lambda: x.__iadd__(operand),
        lambda: x.__setitem__(Ellipsis, operand),
        lambda: xp.copyto(x, operand),
    ):
        with pytest.raises(TypeError, match=r"Unsupported|unsupported"):
            operation()


def test_python_scalars_are_fine_and_keep_float32(x):
    y = 1 - x * 2.0 / 3
    y += 1
    assert (type(y), y.dtype) == (type(x), np.float32)


@pytest.mark.parametrize("ask", [bool, float, int, lambda a: a.item(), lambda a: a.tolist(), lambda a: [*a[None]]])
def test_reading_values_needs_permission_and_is_counted(x, ask):
    one = x[1, 1]
    with pytest.raises(HiddenCopyError, match="wait for the host"):
        ask(one)
    assert counters.syncs == 0
    with allow_sync():
        ask(one)
    assert counters.syncs == 1


def test_in_a_condition_it_is_a_hidden_copy(x):
    with pytest.raises(HiddenCopyError):
        1 if x.sum() > 0 else 0


def test_ufuncs_return_c_order_whatever_goes_in(x):
    y = xp.exp(x.T)
    assert x.T.flags.f_contiguous
    assert y.flags.c_contiguous
    assert (x.T + x.T).flags.c_contiguous
    out = xp.empty((2, 3), xp.float32).T
    assert xp.add(x.T, 1.0, out=out) is out


def test_reductions_and_full_indices_give_zero_dimensional_arrays(x):
    for y in (x.sum(), xp.max(x), x.argmax(), x[1, 2], xp.count_nonzero(x), xp.sqrt(x.sum())):
        assert type(y) is type(x)
        assert y.shape == ()
    x[1, 2] = 9
    view = x[0, 0]
    view[...] = 7.0
    assert x.get().tolist() == [[7, 1, 2], [3, 4, 9]]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: xp.add(x, x, where=x > 0),
        lambda x: xp.add(x, x, order="K"),
        lambda x: xp.add(x, x, subok=False),
        lambda x: xp.sum(x, where=x > 0),
        lambda x: xp.max(x, initial=0),
        lambda x: x.max(initial=0),
        lambda x: xp.clip(x, min=0, max=1),
        lambda x: xp.zeros(3, device="cpu"),
        lambda x: xp.einsum("ij->j", x, out=xp.empty(3)),
        lambda x: xp.take_along_axis(x, xp.zeros((2, 1), xp.int64)),
    ],
)
def test_keywords_that_cupy_lacks_are_type_errors(x, operation):
    with pytest.raises(TypeError, match=r"Wrong arguments|unexpected keyword|required positional"):
        operation(x)


@pytest.mark.parametrize("name", ["errstate", "vecdot", "nonzero", "unique", "frompyfunc", "random", "testing"])
def test_names_that_cupy_lacks_or_that_synchronise_are_missing(name):
    assert not hasattr(xp, name)
    with pytest.raises(AttributeError, match=f"xp.{name} is not in CuPy"):
        getattr(xp, name)


def test_ufunc_reduce_is_for_sums_and_products(x):
    assert xp.add.reduce(x, axis=0).get().tolist() == [3, 5, 7]
    with pytest.raises(NotImplementedError):
        xp.maximum.reduce(x, axis=0)


def test_fresh_memory_is_rubbish():
    assert np.isnan(xp.empty((2, 2), xp.float32).get()).all()
    assert xp.empty(2, xp.int64).get().min() > 2**60
    assert np.isnan(xp.empty_like(xp.zeros(2)).get()).all()


def test_float64_out_of_float32_is_flagged(x):
    double = xp.ones((2, 3))
    for operation in (lambda: x * double, lambda: x + xp.arange(3), lambda: xp.concatenate([x, double])):
        with pytest.raises(UpcastError):
            operation()
    assert x.astype(xp.float64).dtype == x.sum(dtype=xp.float64).dtype == np.float64  # asked for
    x += double
    assert x.dtype == np.float32


def test_positions_out_of_range_wrap(x):
    assert xp.take(x, xp.asarray([0, 4]), 1).get().tolist() == [[0, 1], [3, 4]]
    assert x[xp.asarray([3, -1])].get().tolist() == [[3, 4, 5], [3, 4, 5]]
    assert xp.take_along_axis(x, xp.asarray([[4], [5]]), 1).get().tolist() == [[1], [5]]
    with pytest.raises(IndexError):
        x[2]


def test_indices_that_would_come_from_the_host_or_go_there(x):
    for index in ([0, 1], np.array([0]), np.array([True, False])):
        with pytest.raises(TypeError, match="copied from the host"):
            x[index]
    for operation in (lambda: x[x > 1], lambda: x.__setitem__(x > 1, 0.0)):
        with pytest.raises(HiddenCopyError, match="boolean mask"):
            operation()
    with pytest.raises(AssertionError, match="wait for the host"):
        xp.where(x > 1)
    with allow_sync():
        assert x[x > 3].get().tolist() == [4, 5]


def test_assigning_twice_to_one_place_is_undefined(x):
    with pytest.raises(AssertionError, match="occurs twice"):
        x[xp.asarray([0, 2])] = 1.0
    x[xp.asarray([1, 0]), xp.asarray([0, 0])] = 9.0
    assert x.get()[:, 0].tolist() == [9, 9]


def test_matmul_logs_the_copies_that_cupy_makes(x):
    out = xp.empty((2, 2), xp.float32)
    assert xp.matmul(x, x.T, out=out) is out
    assert counters.matmul_copies == []
    xp.matmul(x[:, :2], x[:, :2].T)
    assert len(counters.matmul_copies) == 2
    xp.matmul(x[None].swapaxes(1, 2), x[None])
    assert len(counters.matmul_copies) == 3
    xp.matmul(x, x.T, out=xp.empty((2, 2), xp.float32).T)
    xp.matmul(x, x.T, out=xp.empty((2, 2), xp.float64))
    assert len(counters.matmul_copies) == 5
    assert (x @ x.T).get().tolist() == [[5, 14], [14, 50]]


def test_copies_between_host_and_device_are_counted_and_capture_forbids_them(x):
    assert counters.uploads == 1
    x.get()
    x.set(np.zeros((2, 3), np.float32))
    assert (counters.uploads, counters.downloads) == (2, 1)
    with capture():
        (x + 1).sum()
        for operation in (x.get, x.sum().item, lambda: xp.asarray([1.0]), lambda: float(x.sum())):
            with pytest.raises(CaptureError, match="capturing"):
                operation()
        with allow_sync(), pytest.raises(CaptureError, match="capturing"):
            bool(x.sum())


def test_it_is_as_silent_as_a_gpu_about_overflow():
    assert xp.exp(xp.full(2, 1000.0)).get().tolist() == [np.inf, np.inf]
    assert np.isnan((xp.zeros(1) / xp.zeros(1)).get()).all()


def test_views_share_memory_and_copies_do_not(x):
    assert not xp.shares_memory(x, x.T.ravel())
    assert xp.shares_memory(x, x.reshape(3, 2)[::-1, None])
    assert not xp.shares_memory(x, copy.deepcopy(x))
    assert not xp.shares_memory(x, copy.copy(x))
    window = xp.lib.stride_tricks.as_strided(x, (2, 2, 2), (12, 4, 4))
    assert xp.shares_memory(x, window)
    assert window.get()[1].tolist() == [[3, 4], [4, 5]]


def test_the_backend_goes_through_the_same_gates():
    with use_backend("fake") as backend:
        counters.reset()
        x = backend.asarray(np.ones((2, 2), np.float32))
        assert backend.owns(x)
        assert not backend.owns(np.ones(2))
        assert backend.xp is xp
        assert isinstance(backend.to_numpy(x), np.ndarray)
        assert (counters.uploads, counters.downloads) == (1, 1)
        assert np.isnan(backend.to_numpy(backend.empty((2,), xp.float32))).all()
        with capture(), pytest.raises(CaptureError):
            backend.to_numpy(x)
