"""im2col and col2im by themselves: windows as columns of a matrix, and back; `convolution.py` has what fills them."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.errors import ShapeError
from xpcnn.functional.convolution import add_columns, fill_columns
from xpcnn.functional.layout import batch_first, batch_last, check_floating, check_images, check_like, take
from xpcnn.windows import Padding, Size
from xpcnn.windows import windows as make_windows


def im2col(x: Array, kernel_size: Size, *, stride: Size = 1, padding: Padding = 0, dilation: Size = 1) -> Array:
    """Lay every window of `x` out as a column.

    Parameters
    ----------
    x : array (N, C, H, W), floating
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"

    Returns
    -------
    array (C*KH*KW, OH*OW*N), dtype of `x`
        Row (c, kh, kw), column (oh, ow, n).

    Raises
    ------
    ShapeError, DTypeError
        `x` is not (N, C, H, W), not floating, or smaller than the window.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> cols = F.im2col(x, 3)
    >>> cols.shape  # 9 entries of each of 4 windows
    (9, 4)
    >>> cols.reshape(9, 4)[:, 0]  # the first window
    array([ 0.,  1.,  2.,  4.,  5.,  6.,  8.,  9., 10.])
    """
    backend, x = take("x", x)
    check_images("x", tuple(x.shape))
    check_floating("x", x)
    n, c, h, w = x.shape
    windows = make_windows((h, w), kernel_size, stride=stride, padding=padding, dilation=dilation)
    cols = backend.empty((c, *windows.kernel, *windows.out, n), x.dtype)
    fill_columns(backend, batch_last(backend, x), windows, range(windows.h.out), cols)
    return cols.reshape(
        c * windows.h.kernel * windows.w.kernel, windows.h.out * windows.w.out * n
    )  # (C*KH*KW, OH*OW*N)


def col2im(
    cols: Array,
    x_shape: tuple[int, int, int, int],
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Array:
    """Add every column back to the pixels it came from: the adjoint of `im2col`.

    Parameters
    ----------
    cols : array (C*KH*KW, OH*OW*N), floating
    x_shape : (N, C, H, W)
        Shape of the image.
    kernel_size, stride, padding, dilation
        As for `im2col`.

    Returns
    -------
    array (N, C, H, W), dtype of `cols`

    Raises
    ------
    ShapeError, DTypeError
        `cols` does not fit `x_shape`, or is not floating.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> cols = F.im2col(np.ones_like(x), 3)
    >>> F.col2im(cols, x.shape, 3)[0, 0]  # in how many windows each pixel lies
    array([[1., 2., 2., 1.],
           [2., 4., 4., 2.],
           [2., 4., 4., 2.],
           [1., 2., 2., 1.]])
    """
    backend, cols = take("cols", cols)
    if len(x_shape) != 4:
        raise ShapeError(f"x_shape: expected (N, C, H, W), got {tuple(x_shape)}")
    n, c, h, w = x_shape
    windows = make_windows((h, w), kernel_size, stride=stride, padding=padding, dilation=dilation)
    check_floating("cols", cols)
    shape = (c, *windows.kernel, *windows.out, n)
    check_like("cols", cols, (c * windows.h.kernel * windows.w.kernel, windows.h.out * windows.w.out * n), cols.dtype)
    dx = backend.zeros((c, h, w, n), cols.dtype)
    with backend.errstate():
        add_columns(backend, backend.contiguous(cols).reshape(shape), windows, range(windows.h.out), dx)
    return batch_first(dx)
