"""The geometry against a list of every window's pixels, made by counting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.windows import windows

small = st.integers(1, 4)


@given(
    size=st.integers(1, 9), kernel=small, stride=small, dilation=small, before=small, after=small, ceil=st.booleans()
)
def test_overlap_names_every_pixel_that_a_tap_meets(size, kernel, stride, dilation, before, after, ceil):
    extent = (kernel - 1) * dilation + 1
    if size + before + after < extent:
        with pytest.raises(ShapeError, match="kernel_size: expected a window of at most the padded height"):
            windows((size, 9), (kernel, 1), stride=stride, padding=((before, after), (0, 0)), dilation=dilation)
        return
    padding = ((before, after), (0, 0))
    ceil = ceil and max(before, after) < extent  # as in pooling, the only one that has it
    axis = windows((size, 9), (kernel, 1), stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil).h
    assert axis.out == R.output_size(size, kernel, stride, (before, after), dilation, ceil)
    assert axis.extent == extent
    for tap in range(kernel):
        for first, last in ((0, axis.out), (axis.out // 2, axis.out), (0, 1)):
            outputs, pixels = axis.overlap(tap, first, last)
            met = [(o, o * stride + tap * dilation - before) for o in range(first, last)]
            inside = [(o, pixel) for o, pixel in met if 0 <= pixel < size]
            counted = list(range(last - first)[outputs])
            assert [first + o for o in counted] == [o for o, _ in inside]
            assert list(range(size)[pixels]) == [pixel for _, pixel in inside]


@given(size=st.integers(1, 9), kernel=small, stride=small, dilation=small)
def test_same_gives_the_inputs_size_over_the_stride(size, kernel, stride, dilation):
    axis = windows((size, size), kernel, stride=stride, padding="same", dilation=dilation).w
    assert axis.out == -(-size // stride)
    assert axis.after - axis.before in (0, 1)


def test_sizes_may_be_lists_and_numpy_integers():
    import numpy as np

    expected = windows((5, 6), (3, 2), stride=(1, 2), padding=((1, 0), (0, 1)))
    assert windows((5, 6), [3, 2], stride=[1, 2], padding=[[1, 0], [0, 1]]) == expected
    assert windows((5, 6), (np.int64(3), 2), stride=(1, np.int32(2)), padding=((1, 0), (0, 1))) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 2.0}, DTypeError, "kernel_size: expected integers, got 2.0"),
        ({"kernel_size": "3"}, DTypeError, "kernel_size: expected integers, got '3'"),
        ({"kernel_size": None}, DTypeError, "kernel_size: expected integers, got None"),
        ({"kernel_size": (1, -1)}, ShapeError, "kernel_size: expected 1 or more, got -1"),
        ({"stride": {}}, DTypeError, "stride: expected integers"),
        ({"padding": (1, 2, 3, 4)}, ShapeError, r"padding: expected an integer or \(height, width\), got"),
        ({"padding": ((1, 2), 3, 4)}, ShapeError, r"padding: expected \(\(top, bottom\), \(left, right\)\)"),
        ({"padding": ((1, 2, 3), (1, 2))}, ShapeError, "padding: expected"),
        ({"padding": [(0.5, 1), (0, 0)]}, DTypeError, "padding: expected integers, got 0.5"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message) as caught:
        windows((5, 5), **{"kernel_size": 2} | options)
    assert "\n" not in str(caught.value)
