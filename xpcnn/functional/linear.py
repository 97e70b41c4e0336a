"""The fully connected layer: y = x W^T + b. Batch-last, that is Y (out, N) = W (out, in) X (in, N) + b."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn.backend import Array
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional.convolution import add_bias
from xpcnn.functional.layout import batch_last, check_floating, check_like, check_ndim, take
from xpcnn.functional.precision import cast, cast_all, cast_batch


class LinearCache(NamedTuple):
    """What `linear` keeps: the batch-last input (in, N) and the weights."""

    x: Array
    weight: Array
    has_bias: bool


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, LinearCache]:
    """Multiply by a matrix and add a bias.

    Each sum is within its number of terms times eps of the dtype (float16: float32's and one rounding; on a GPU, where
    the product is rounded before a bias is added, two) times the sum of the terms' sizes; it is inf or nan where a term
    is, or where sums of terms overflow.

    Parameters
    ----------
    x : array (N, in_features), floating
    weight : array (out_features, in_features), dtype of `x`
    bias : array (out_features,), dtype of `x`, optional

    Returns
    -------
    y : array (N, out_features), dtype of `x`
    cache
        For `linear_backward`.

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        Shapes or types do not fit, arrays lie on two backends.

    Examples
    --------
    >>> y, cache = F.linear(np.array([[1.0, 2.0, 3.0]]), np.ones((2, 3)), np.array([0.0, 10.0]))
    >>> y
    array([[ 6., 16.]])
    """
    backend, x, weight, bias = take("x weight bias", x, weight, bias)
    check_ndim("x", x, "N, in_features")
    check_floating("x", x)
    check_ndim("weight", weight, "out_features, in_features")
    if x.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"x: expected {weight.shape[1]} features for weight {tuple(weight.shape)}, got {x.shape[1]} "
            f"in shape {tuple(x.shape)}"
        )
    if weight.dtype != x.dtype:
        raise DTypeError(f"weight: expected the dtype of x, {x.dtype}, got {weight.dtype}; convert one of them")
    if bias is not None:
        check_like("bias", bias, (weight.shape[0],), x.dtype)
    columns = batch_last(backend, x)  # (in, N)
    if not backend.multiplies(x.dtype):
        y, _ = linear(cast(backend, columns, "float32").T, *cast_all(backend, (weight, bias), "float32"))
        return cast_batch(backend, y, x.dtype), LinearCache(columns, weight, bias is not None)
    y = backend.empty((weight.shape[0], x.shape[0]), x.dtype)
    with backend.errstate():
        backend.matmul(weight, columns, out=y)
        if bias is not None:
            add_bias(backend, y, bias)
    return y.T, LinearCache(columns, weight, bias is not None)


def linear_backward(
    dy: Array,
    cache: LinearCache,
    *,
    input_gradient: bool = True,
    weight_gradient: bool = True,
    dweight: Array | None = None,
    dbias: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `linear`: dX = W^T dY, dW = dY X^T, db = sum of dY over the batch.

    Parameters
    ----------
    dy : array (N, out_features)
    cache
        From `linear`.
    input_gradient : bool
        False leaves `dx` out (None).
    weight_gradient : bool
        False leaves `dweight` and `dbias` out (None).
    dweight : array (out_features, in_features), C-contiguous, optional
        Where to write the gradient of the weights.
    dbias : array (out_features,), C-contiguous, optional
        Where to write that of the bias.

    Returns
    -------
    dx : array (N, in_features) or None
    dweight : array (out_features, in_features) or None
    dbias : array (out_features,), or None where `bias` was

    Raises
    ------
    ShapeError, DTypeError, MixedBackendsError
        `dy` does not fit what the forward returned.

    Examples
    --------
    >>> y, cache = F.linear(np.ones((5, 3)), np.ones((2, 3)), np.zeros(2))
    >>> dx, dw, db = F.linear_backward(np.ones_like(y), cache)
    >>> dx.shape, dw.shape, db
    ((5, 3), (2, 3), array([5., 5.]))
    """
    x, weight, has_bias = cache
    backend, dy, x = take("dy x", dy, x)
    check_like("dy", dy, (x.shape[1], weight.shape[0]), x.dtype)
    if not backend.multiplies(x.dtype):
        kept = LinearCache(cast(backend, x, "float32"), cast(backend, weight, "float32"), has_bias)
        dx, *rest = linear_backward(
            cast_batch(backend, dy, "float32"), kept, input_gradient=input_gradient, weight_gradient=weight_gradient
        )
        result, sums = cast_all(backend, rest, x.dtype)
        if dbias is not None and sums is not None:
            backend.xp.copyto(dbias, sums)
            sums = dbias
        if dweight is not None and result is not None:
            backend.xp.copyto(dweight, result)
            result = dweight
        return None if dx is None else cast_batch(backend, dx, x.dtype), result, sums
    dy = batch_last(backend, dy)  # (out, N)
    with backend.errstate():
        if weight_gradient:
            dweight = backend.matmul(dy, x.T, out=backend.empty(weight.shape, x.dtype) if dweight is None else dweight)
            dbias = backend.row_sums(dy, out=dbias) if has_bias else None
        else:
            dweight = dbias = None
        if not input_gradient:
            return None, dweight, dbias
        dx = backend.matmul(weight.T, dy, out=backend.empty(x.shape, x.dtype))  # (in, N)
    return dx.T, dweight, dbias
