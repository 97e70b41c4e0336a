import numpy as np
import pytest
from hypothesis import given

from tests.functional.checks import check_op
from tests.functional.strategies import transposed_convolutions, values
from xpcnn import functional as F
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import reference as R

TRANSPOSED = (F.conv_transpose2d, F.conv_transpose2d_backward), (R.conv_transpose2d, R.conv_transpose2d_backward)


@given(case=transposed_convolutions())
def test_it_agrees_with_the_loops(backend, case):
    rng = case.rng()
    bias = values(rng, (case.options["groups"] * case.weight_shape[1],), case.dtype) if case.bias else None
    arrays = [values(rng, case.x_shape, case.dtype), values(rng, case.weight_shape, case.dtype), bias]
    check_op(backend, *TRANSPOSED, arrays, layout=case.layout, rng=rng, **case.options)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "output_padding": 1}, {"padding": 1}, {"groups": 2}])
@pytest.mark.parametrize("column_bytes", [1, 1 << 28])
def test_it_agrees_in_pieces(backend, rng, monkeypatch, options, column_bytes):
    monkeypatch.setattr(backend, "column_bytes", column_bytes)
    arrays = [values(rng, (3, 4, 5, 6)), values(rng, (4, 2, 3, 3)), None]
    check_op(backend, *TRANSPOSED, arrays, layout="chwn", rng=rng, **options)


@pytest.mark.parametrize("size", [7, 8])
def test_it_is_the_gradient_of_a_convolution_by_its_input(backend, rng, size):
    """Two images one pixel apart give outputs of one size: `output_padding` says which of them is meant."""
    x, weight = values(rng, (2, 3, size, size)), values(rng, (4, 3, 3, 3))
    y, cache = F.conv2d(backend.asarray(x), backend.asarray(weight), stride=2, padding=1)
    dx, _, _ = F.conv2d_backward(y, cache)
    options = {"stride": 2, "padding": 1, "output_padding": (size + 1) % 2}
    again, _ = F.conv_transpose2d(y, backend.asarray(weight), **options)
    np.testing.assert_array_equal(backend.to_numpy(again), backend.to_numpy(dx))


def test_large_ones_agree_too(backend, rng):
    """Large enough for Winograd's way where a backend has it."""
    arrays = [
        values(rng, (12, 16, 6, 5), "float32"),
        values(rng, (16, 16, 3, 3), "float32"),
        values(rng, (16,), "float32"),
    ]
    x, weight, bias = map(backend.asarray, arrays)
    y, cache = F.conv_transpose2d(x, weight, bias, padding=1)
    expected, loops = R.conv_transpose2d(*arrays, padding=1)
    np.testing.assert_allclose(backend.to_numpy(y), expected, atol=2e-4)
    dy = values(rng, y.shape, "float32")
    gradients = F.conv_transpose2d_backward(backend.asarray(dy), cache)
    for ours, theirs in zip(gradients, R.conv_transpose2d_backward(dy, loops), strict=True):
        np.testing.assert_allclose(backend.to_numpy(ours), theirs, atol=1e-3)


def test_float16_is_computed_in_float32(backend, rng):
    x, weight = (values(rng, shape, "float16") for shape in [(2, 3, 4, 4), (3, 2, 3, 3)])
    y, cache = F.conv_transpose2d(backend.asarray(x), backend.asarray(weight), None, 2)
    expected, loops = R.conv_transpose2d(x, weight, None, 2)
    np.testing.assert_array_equal(backend.to_numpy(y), expected.astype("float16"))
    dx, dweight, dbias = F.conv_transpose2d_backward(y, cache)
    assert dbias is None
    assert dx.dtype == dweight.dtype == np.float16
    wanted = R.conv_transpose2d_backward(backend.to_numpy(y), loops)
    np.testing.assert_allclose(backend.to_numpy(dx), wanted[0], rtol=1e-3, atol=1e-3)


def test_it_goes_without_the_input_gradient(backend, rng):
    x, weight = (backend.asarray(values(rng, shape)) for shape in [(2, 3, 4, 4), (3, 2, 3, 3)])
    y, cache = F.conv_transpose2d(x, weight)
    dx, dweight, _ = F.conv_transpose2d_backward(y, cache, input_gradient=False)
    assert dx is None
    np.testing.assert_array_equal(backend.to_numpy(dweight), backend.to_numpy(F.conv_transpose2d_backward(y, cache)[1]))


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "bias_shape", "options", "message"),
    [
        ((3, 5, 5), (3, 2, 3, 3), None, {}, r"x: expected shape \(N, C, H, W\), got \(3, 5, 5\)"),
        ((1, 3, 5, 5), (3, 3, 3), None, {}, r"weight: expected shape \(C, F/groups, KH, KW\), got \(3, 3, 3\)"),
        ((1, 2, 5, 5), (3, 2, 3, 3), None, {}, r"x: expected 3 channels .* got 2"),
        ((1, 3, 5, 5), (3, 2, 3, 3), (3,), {}, r"bias: expected shape \(2,\), got \(3,\)"),
        ((1, 3, 5, 5), (3, 2, 3, 3), None, {"groups": 2}, r"groups: expected a divisor of 3 channels, got 2"),
        ((1, 3, 0, 5), (3, 2, 3, 3), None, {}, r"x: expected a height and width of 1 or more"),
        ((1, 3, 1, 1), (3, 2, 3, 3), None, {"padding": 2}, r"padding: expected less than the height of .* 3, got 4"),
        ((1, 3, 5, 5), (3, 2, 3, 3), None, {"padding": "same"}, r"padding: expected integers or .* got \"same\""),
        ((1, 3, 5, 5), (3, 2, 3, 3), None, {"stride": 2, "output_padding": 2}, r"output_padding: expected less than"),
        ((1, 3, 5, 5), (3, 2, 3, 3), None, {"output_padding": -1}, r"output_padding: expected 0 or more, got -1"),
    ],
)
def test_it_refuses_shapes_that_do_not_fit(backend, x_shape, weight_shape, bias_shape, options, message):
    x, weight = backend.zeros(x_shape, "float32"), backend.zeros(weight_shape, "float32")
    bias = None if bias_shape is None else backend.zeros(bias_shape, "float32")
    with pytest.raises(ShapeError, match=message):
        F.conv_transpose2d(x, weight, bias, **options)


def test_it_refuses_types_and_gradients_that_do_not_fit(backend):
    x, weight = backend.zeros((1, 3, 5, 5), "float32"), backend.zeros((3, 2, 3, 3), "float32")
    with pytest.raises(DTypeError, match=r"x: expected a floating type such as float32, got uint8"):
        F.conv_transpose2d(x.astype("uint8"), weight)
    with pytest.raises(DTypeError, match=r"weight: expected the dtype of x, float32, got float64"):
        F.conv_transpose2d(x, weight.astype("float64"))
    y, cache = F.conv_transpose2d(x, weight)
    with pytest.raises(ShapeError, match=r"dy: expected shape \(1, 2, 7, 7\), got \(1, 3, 5, 5\)"):
        F.conv_transpose2d_backward(x, cache)
    with pytest.raises(DTypeError, match=r"dy: expected dtype float32, got float64"):
        F.conv_transpose2d_backward(y.astype("float64"), cache)
