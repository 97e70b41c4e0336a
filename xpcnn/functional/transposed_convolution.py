"""Transposed convolution: the gradient of a convolution by its input, taken as a layer of its own.

With W the weights of a convolution that makes C_in channels of C_out, as (C_in, C_out*KH*KW), see `convolution.py`:

    Y = col2im(W^T X) + b        dX = W im2col(dY)        dW = X im2col(dY)^T        db = sum of dY

so the forward is `conv2d_input_gradient`, and its gradients are the forward of that convolution and its dW.
"""

from __future__ import annotations

from typing import NamedTuple

from xpcnn.backend import Array, backend_of
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional.convolution import add_bias, conv2d_forward, conv2d_gradients, conv2d_input_gradient
from xpcnn.functional.layout import (
    batch_first,
    batch_last,
    check_floating,
    check_images,
    check_like,
    check_ndim,
    take,
    take_gradient,
)
from xpcnn.functional.precision import cast, cast_all, is_narrow
from xpcnn.windows import Padding, Size, Windows, integer, transposed_windows


class ConvTransposeCache(NamedTuple):
    """What `conv_transpose2d` keeps for its backward: the batch-last input, the weights and the geometry."""

    x: Array
    weight: Array
    has_bias: bool
    windows: Windows
    groups: int


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> tuple[Array, ConvTransposeCache]:
    """Send every pixel to the outputs of its window: y[n,f,i*s+k*d-p,j*s+l*d-p] += w[c,f,k,l] x[n,c,i,j], plus b[f].

    Parameters
    ----------
    x : array (N, C, H, W), floating
    weight : array (C, F/groups, KH, KW), dtype of `x`
    bias : array (F,), dtype of `x`, optional
    stride, dilation : int or (height, width)
    padding : int, (height, width), ((top, bottom), (left, right)) or "valid"
        What is cut off the result.
    output_padding : int or (height, width)
        Rows and columns added to the far edges of the result; less than the stride or the dilation.
    groups : int
        Group g of the channels makes group g of the outputs only; it divides C and F.

    Returns
    -------
    y : array (N, F, OH, OW), dtype of `x`
        OH = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + output_padding + 1.
    cache
        For `conv_transpose2d_backward`.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        Shapes do not fit, types are not floating or differ, arrays lie on two backends.

    References
    ----------
    Zeiler et al. 2010, Deconvolutional networks; Dumoulin and Visin 2016, arXiv:1603.07285, chapter 4.

    Examples
    --------
    >>> y, cache = F.conv_transpose2d(np.ones((2, 4, 5, 5)), np.ones((4, 3, 2, 2)), stride=2)
    >>> y.shape
    (2, 3, 10, 10)
    """
    backend, x, weight, bias = take("x weight bias", x, weight, bias)
    _check(x, weight, bias, groups)
    windows = transposed_windows(
        x.shape[2:],
        weight.shape[2:],
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    images, groups = batch_last(backend, x), int(groups)  # (C, H, W, N)
    cache = ConvTransposeCache(images, weight, bias is not None, windows, groups)
    if not x.shape[0]:
        shape = groups * weight.shape[1], windows.h.size, windows.w.size, 0
        return batch_first(backend.zeros(shape, x.dtype)), cache
    is_taken = backend.multiplies(x.dtype) and not is_narrow(x.dtype)  # taps are added: each sum would be rounded
    if not is_taken:
        images, weight, bias = cast_all(backend, (images, weight, bias), "float32")
    with backend.errstate():
        y = conv2d_input_gradient(backend, images, weight, windows, groups)  # (F, OH, OW, N)
        if bias is not None:
            add_bias(backend, y, bias)
    return batch_first(y if is_taken else cast(backend, y, x.dtype)), cache


def conv_transpose2d_backward(
    dy: Array, cache: ConvTransposeCache, *, input_gradient: bool = True, weight_gradient: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `conv_transpose2d`.

    Parameters
    ----------
    dy : array (N, F, OH, OW), dtype of the forward's `x`
    cache
        From `conv_transpose2d`.
    input_gradient, weight_gradient : bool
        False leaves `dx`, or `dweight` and `dbias`, out (None).

    Returns
    -------
    dx : array (N, C, H, W) or None
    dweight : array (C, F/groups, KH, KW) or None
    dbias : array (F,), or None where `bias` was

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `dy` does not fit what the forward returned.

    Examples
    --------
    >>> y, cache = F.conv_transpose2d(np.ones((2, 4, 5, 5)), np.ones((4, 3, 2, 2)), np.zeros(3), stride=2)
    >>> dx, dw, db = F.conv_transpose2d_backward(np.ones_like(y), cache)
    >>> dx.shape, dw.shape, db.shape
    ((2, 4, 5, 5), (4, 3, 2, 2), (3,))
    """
    x, weight, has_bias, windows, groups = cache
    backend = backend_of(x)
    dy = take_gradient(dy, backend)
    check_like("dy", dy, (x.shape[3], groups * weight.shape[1], windows.h.size, windows.w.size), x.dtype)
    if not x.shape[3]:
        dx = batch_first(backend.zeros(x.shape, x.dtype)) if input_gradient else None
        dweight = backend.zeros(weight.shape, x.dtype) if weight_gradient else None
        return dx, dweight, backend.zeros(dy.shape[1:2], x.dtype) if weight_gradient and has_bias else None
    grad = batch_last(backend, dy)  # (F, OH, OW, N)
    dtype, is_taken = x.dtype, backend.multiplies(x.dtype)
    if not is_taken:
        grad, x, weight = cast_all(backend, (grad, x, weight), "float32")
    with backend.errstate():
        dweight = dbias = None
        if weight_gradient:
            _, dweight, _ = conv2d_gradients(backend, x, grad, weight, windows, groups, input_gradient=False)
            dbias = backend.row_sums(grad.reshape(grad.shape[0], -1)) if has_bias else None
        dx = conv2d_forward(backend, grad, weight, None, windows, groups) if input_gradient else None  # (C, H, W, N)
    results = dx, dweight, dbias
    dx, dweight, dbias = results if is_taken else cast_all(backend, results, dtype)
    return None if dx is None else batch_first(dx), dweight, dbias


def _check(x: Array, weight: Array, bias: Array | None, groups: int) -> None:
    check_images("x", tuple(x.shape))
    check_floating("x", x)
    check_ndim("weight", weight, "C, F/groups, KH, KW")
    if x.shape[1] % integer("groups", groups, 1):
        raise ShapeError(f"groups: expected a divisor of {x.shape[1]} channels, got {groups}")
    if weight.shape[0] != x.shape[1]:
        raise ShapeError(
            f"x: expected {weight.shape[0]} channels for weight {tuple(weight.shape)}, got {x.shape[1]} in shape "
            f"{tuple(x.shape)}; images are (N, C, H, W), weights of a transposed convolution (C, F/groups, KH, KW)"
        )
    if weight.dtype != x.dtype:
        raise DTypeError(f"weight: expected the dtype of x, {x.dtype}, got {weight.dtype}; convert one of them")
    if bias is not None:
        check_like("bias", bias, (groups * weight.shape[1],), x.dtype)
