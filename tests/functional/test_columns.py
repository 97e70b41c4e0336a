import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.checks import agrees
from tests.functional.strategies import lay_out, values, windows
from xpcnn import functional as F
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.functional.convolution import fill_columns
from xpcnn.functional.layout import batch_last
from xpcnn.windows import windows as make_windows


@given(case=windows())
def test_im2col_and_col2im_agree_with_the_loops(backend, case):
    rng = case.rng()
    x = values(rng, case.x_shape, case.dtype)
    expected = R.im2col(x, case.kernel, **case.options)
    device = lay_out(backend, x, case.layout)
    agrees(backend, F.im2col(device, case.kernel, **case.options), expected, case.dtype)
    cols = values(rng, expected.shape, case.dtype)
    back = F.col2im(lay_out(backend, cols, case.layout), x.shape, case.kernel, **case.options)
    agrees(backend, back, R.col2im(cols, x.shape, case.kernel, **case.options), case.dtype)
    assert np.array_equal(backend.to_numpy(device), x)


def test_columns_are_ordered_as_documented(backend):
    x = backend.asarray(np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3))
    cols = backend.to_numpy(F.im2col(x, 2)).reshape(2, 2, 2, 2, 2, 2)  # (C, KH, KW, OH, OW, N)
    assert cols[1, 0, 1, 1, 0, 1] == 18 + 9 + 3 * 1 + 1  # image 1, channel 1, row 1 + 0, column 0 + 1


def test_im2col_and_col2im_refuse_what_does_not_fit(backend):
    x = backend.zeros((1, 2, 4, 4), "float32")
    with pytest.raises(ShapeError, match=r"x: expected shape \(N, C, H, W\), got \(4, 4\)"):
        F.im2col(x[0, 0], 2)
    with pytest.raises(DTypeError, match="x: expected a floating type such as float32, got int64"):
        F.im2col(x.astype("int64"), 2)
    with pytest.raises(ShapeError, match="kernel_size: expected 1 or more, got 0"):
        F.im2col(x, 0)
    with pytest.raises(ShapeError, match=r"cols: expected shape \(8, 9\), got \(8, 8\)"):
        F.col2im(backend.zeros((8, 8), "float32"), (1, 2, 4, 4), 2)
    with pytest.raises(ShapeError, match=r"x_shape: expected \(N, C, H, W\), got \(4, 4\)"):
        F.col2im(backend.zeros((8, 9), "float32"), (4, 4), 2)
    with pytest.raises(DTypeError, match="cols: expected a floating type"):
        F.col2im(backend.zeros((8, 9), "int32"), (1, 2, 4, 4), 2)


@given(case=windows(), first=st.integers(0, 3), count=st.integers(1, 4))
def test_a_backends_own_columns_are_those_of_the_portable_primitive(backend, case, first, count):
    """A backend may lower windows in its own way (`Backend.fused`); tap by tap is what it must give."""
    x = batch_last(backend, backend.asarray(values(case.rng(), case.x_shape, case.dtype)))  # (C, H, W, N)
    over = make_windows(case.x_shape[2:], case.kernel, **case.options)
    rows = range(min(first, over.h.out - 1), min(first + count, over.h.out))
    shape = (x.shape[0], *over.kernel, len(rows), over.w.out, x.shape[3])
    actual, expected = (backend.empty(shape, x.dtype) for _ in range(2))
    fill_columns(backend, x, over, rows, actual)
    fill_columns.portable(backend, x, over, rows, expected)
    assert np.array_equal(backend.to_numpy(actual), backend.to_numpy(expected))
