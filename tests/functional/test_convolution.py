import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_device import counters
from tests.functional.checks import TOLERANCE, agrees, check_op
from tests.functional.strategies import convolutions, lay_out, values
from xpcnn import functional as F
from xpcnn.errors import DTypeError, MixedBackendsError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.functional.convolution import conv2d_forward, conv2d_gradients, conv2d_input_gradient
from xpcnn.testing import assert_close, numerical_gradient
from xpcnn.windows import windows as make_windows

CONV = (F.conv2d, F.conv2d_backward), (R.conv2d, R.conv2d_backward)


@given(case=convolutions())
def test_conv2d_agrees_with_the_loops(backend, case):
    rng = case.rng()
    weight = values(rng, case.weight_shape, case.dtype)
    bias = values(rng, case.weight_shape[:1], case.dtype) if case.bias else None
    arrays = [values(rng, case.x_shape, case.dtype), weight, bias]
    check_op(backend, *CONV, arrays, layout=case.layout, rng=rng, **case.options)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1), {}),
        ((2, 3, 9, 7), (4, 3, 5, 1), {"stride": (3, 2), "padding": (2, 0)}),  # rows and columns that no window meets
        ((2, 2, 6, 5), (3, 2, 3, 3), {"padding": ((3, 0), (1, 2)), "dilation": 2}),
        ((2, 1, 4, 4), (1, 1, 3, 3), {"padding": 4}),  # padding larger than the kernel
        ((1, 1, 3, 1), (1, 1, 1, 1), {"padding": (2, 0), "stride": 3}),  # windows that lie wholly in the padding
        ((1, 6, 5, 4), (6, 1, 3, 3), {"groups": 6, "padding": "same"}),  # depthwise
        ((3, 4, 5, 6), (2, 4, 5, 6), {}),  # the window is the image
        ((2, 3, 5, 5), (4, 3, 2, 2), {"padding": "same", "stride": 2}),
        ((70, 2, 3, 3), (3, 2, 2, 2), {"stride": 4}),  # the stride leaves pixels out
        ((2, 3, 9, 11), (4, 3, 3, 4), {"stride": (2, 3), "padding": (1, 2), "dilation": (1, 2)}),  # taps by stride
        ((2, 4, 8, 9), (6, 2, 5, 3), {"stride": (3, 2), "padding": ((4, 1), (0, 2)), "groups": 2}),
    ],
)
def test_conv2d_of_odd_geometry(backend, rng, x_shape, weight_shape, options):
    arrays = [values(rng, x_shape), values(rng, weight_shape), values(rng, weight_shape[:1])]
    check_op(backend, *CONV, arrays, layout="chwn", rng=rng, **options)


@pytest.mark.parametrize("column_bytes", [1, 4000])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1, "dilation": 2}, {"groups": 2, "padding": 1}])
def test_conv2d_in_small_tiles(backend, rng, monkeypatch, column_bytes, options):
    monkeypatch.setattr(backend, "column_bytes", column_bytes)
    arrays = [values(rng, (3, 4, 9, 8)), values(rng, (6, 4 // options.get("groups", 1), 3, 2)), values(rng, (6,))]
    check_op(backend, *CONV, arrays, rng=rng, **options)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_conv2d_does_not_depend_on_how_the_backend_shares_the_work(backend, rng, monkeypatch, threads):
    monkeypatch.setattr(backend, "get_num_threads", lambda: threads)
    arrays = [values(rng, (2, 3, 8, 7)), values(rng, (4, 3, 3, 3)), values(rng, (4,))]
    for options in ({"padding": 1}, {"stride": 2}):
        check_op(backend, *CONV, arrays, rng=rng, **options)


@given(case=convolutions(), column_bytes=st.sampled_from([1, 2000, 1 << 28]))
def test_the_page_of_the_maths_gives_what_a_backend_has_in_its_place(backend, case, column_bytes):
    """The portable bodies, on NumPy too, where faster ways take their place: a second oracle of those."""
    rng, groups = case.rng(), case.options["groups"]
    options = {name: value for name, value in case.options.items() if name != "groups"}
    over = make_windows(case.x_shape[2:], case.kernel, **options)
    n, f = case.x_shape[0], case.weight_shape[0]
    x, weight, bias, dy = (
        backend.asarray(np.ascontiguousarray(values(rng, shape, case.dtype)))
        for shape in [(*case.x_shape[1:], n), case.weight_shape, (f,), (f, *over.out, n)]
    )
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "column_bytes", column_bytes)
        for is_portable in (False, True):
            if is_portable:
                patch.setattr(backend, "fused", {})
            y = conv2d_forward(backend, x, weight, bias if case.bias else None, over, groups)
            gradients = conv2d_gradients(backend, dy, x, weight, over, groups, has_bias=case.bias)
            dx = conv2d_input_gradient(backend, dy, weight, over, groups)
            results.append([None if a is None else backend.to_numpy(a) for a in (y, *gradients, dx)])
    for ours, portable in zip(*results, strict=True):
        if ours is None:
            assert portable is None
        else:
            assert_close(ours, portable, tolerance=TOLERANCE[np.dtype(case.dtype)], terms=1.0)


def test_conv2d_without_the_input_gradient(backend, rng):
    x, weight = (backend.asarray(values(rng, shape)) for shape in [(2, 3, 5, 4), (4, 3, 3, 3)])
    y, cache = F.conv2d(x, weight)
    full = F.conv2d_backward(y, cache)
    dx, dweight, dbias = F.conv2d_backward(y, F.conv2d(x, weight)[1], input_gradient=False)
    assert dx is None
    assert dbias is None
    agrees(backend, dweight, backend.to_numpy(full[1]), "float64")


def test_conv2d_backward_is_the_derivative(backend, rng):
    options = {"stride": (2, 1), "padding": ((1, 0), (1, 2)), "dilation": (1, 2), "groups": 2}
    arrays = [values(rng, shape) for shape in [(2, 4, 5, 6), (4, 2, 3, 2), (4,)]]
    y, cache = F.conv2d(*map(backend.asarray, arrays), **options)
    dy = values(rng, y.shape)
    gradients = F.conv2d_backward(backend.asarray(dy), cache)

    def loss(_):
        return np.sum(dy * backend.to_numpy(F.conv2d(*map(backend.asarray, arrays), **options)[0]))

    for array, gradient in zip(arrays, gradients, strict=True):
        assert np.allclose(backend.to_numpy(gradient), numerical_gradient(loss, array), rtol=0, atol=1e-7)


def test_conv2d_copies_nothing_before_a_product(backend, rng):
    """The batch-last output of one layer is the input of the next, with no transpose (GPU: no hidden copy)."""
    x = lay_out(backend, values(rng, (4, 3, 8, 8), "float32"), "chwn")
    weight, other = (backend.asarray(values(rng, shape, "float32")) for shape in [(5, 3, 3, 3), (2, 5, 3, 3)])
    counters.reset()
    y, cache = F.conv2d(x, weight, padding=1)
    z, next_cache = F.conv2d(y, other, stride=2)
    dy, _, _ = F.conv2d_backward(z, next_cache)
    F.conv2d_backward(dy, cache)
    assert counters.matmul_copies == []
    assert y.transpose(1, 2, 3, 0).flags.c_contiguous
    assert dy.transpose(1, 2, 3, 0).flags.c_contiguous


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "bias_shape", "options", "message"),
    [
        ((3, 5, 5), (2, 3, 3, 3), None, {}, r"x: expected shape \(N, C, H, W\), got \(3, 5, 5\)"),
        ((1, 3, 5, 5), (3, 3, 3), None, {}, r"weight: expected shape \(F, C/groups, KH, KW\), got \(3, 3, 3\)"),
        ((1, 2, 5, 5), (2, 3, 3, 3), None, {}, r"x: expected 3 channels .* got 2"),
        ((1, 3, 5, 5), (2, 3, 3, 3), (3,), {}, r"bias: expected shape \(2,\), got \(3,\)"),
        ((1, 4, 5, 5), (3, 2, 3, 3), None, {"groups": 2}, r"groups: expected a divisor of 4 channels and 3 filters"),
        ((1, 3, 5, 5), (2, 3, 3, 3), None, {"groups": 0}, r"groups: expected 1 or more, got 0"),
        ((1, 3, 0, 5), (2, 3, 3, 3), None, {}, r"x: expected a height and width of 1 or more, got 0 x 5"),
        ((1, 3, 2, 5), (2, 3, 3, 3), None, {}, r"kernel_size: expected a window of at most the padded height 2, got 3"),
        ((1, 3, 5, 3), (2, 3, 3, 3), None, {"dilation": 2}, r"padded width 3, got 5 \(kernel 3, dilation 2\)"),
        ((1, 3, 5, 5), (2, 3, 3, 3), None, {"stride": 0}, r"stride: expected 1 or more, got 0"),
        ((1, 3, 5, 5), (2, 3, 3, 3), None, {"stride": (1, 2, 3)}, r"stride: expected an integer or \(height, width\)"),
        ((1, 3, 5, 5), (2, 3, 3, 3), None, {"padding": -1}, r"padding: expected 0 or more, got -1"),
        ((1, 3, 5, 5), (2, 3, 3, 3), None, {"padding": "full"}, r'padding: expected integers, "same" or "valid"'),
        ((1, 3, 5, 5), (2, 3, 3, 3), None, {"padding": ((1, 1), (1, 1), (1, 1))}, r"\(\(top, bottom\), \(left, right"),
        ((1, 3, 5, 5), (2, 3, 3, 3), None, {"dilation": True}, r"dilation: expected 1 or more, got True"),
    ],
)
def test_conv2d_refuses_shapes_that_do_not_fit(backend, x_shape, weight_shape, bias_shape, options, message):
    x, weight = backend.zeros(x_shape, "float32"), backend.zeros(weight_shape, "float32")
    bias = None if bias_shape is None else backend.zeros(bias_shape, "float32")
    with pytest.raises(ShapeError, match=message) as caught:
        F.conv2d(x, weight, bias, **options)
    assert "\n" not in str(caught.value)


def test_conv2d_refuses_types_that_do_not_fit(backend):
    x, weight = backend.zeros((1, 3, 5, 5), "float32"), backend.zeros((2, 3, 3, 3), "float32")
    with pytest.raises(DTypeError, match=r"x: expected a floating type such as float32, got uint8"):
        F.conv2d(x.astype("uint8"), weight)
    with pytest.raises(DTypeError, match=r"weight: expected the dtype of x, float32, got float64"):
        F.conv2d(x, weight.astype("float64"))
    with pytest.raises(DTypeError, match=r"bias: expected dtype float32, got float64"):
        F.conv2d(x, weight, backend.zeros((2,), "float64"))
    with pytest.raises(DTypeError, match=r"stride: expected integers, got 1.5"):
        F.conv2d(x, weight, stride=1.5)
    with pytest.raises(DTypeError, match=r"groups: expected integers, got 1.5"):
        F.conv2d(x, weight, groups=1.5)
    with pytest.raises(DTypeError, match=r"x: expected an array, got list"):
        F.conv2d([[1.0]], weight)


def test_conv2d_backward_refuses_a_gradient_that_does_not_fit(backend):
    x, weight = backend.zeros((1, 3, 5, 5), "float32"), backend.zeros((2, 3, 3, 3), "float32")
    y, cache = F.conv2d(x, weight)
    with pytest.raises(ShapeError, match=r"dy: expected shape \(1, 2, 3, 3\), got \(1, 2, 5, 5\)"):
        F.conv2d_backward(backend.zeros((1, 2, 5, 5), "float32"), cache)
    with pytest.raises(DTypeError, match=r"dy: expected dtype float32, got float64"):
        F.conv2d_backward(y.astype("float64"), cache)


def test_arrays_of_two_backends_are_refused(backend):
    if backend.name == "numpy":
        pytest.skip("needs a second backend")
    x, weight = backend.zeros((1, 3, 5, 5), "float32"), np.zeros((2, 3, 3, 3), "float32")
    with pytest.raises(MixedBackendsError, match=rf"expected all on one backend, got {backend.name} and numpy"):
        F.conv2d(x, weight)
    y, cache = F.conv2d(x, backend.asarray(weight))
    with pytest.raises(TypeError, match=r"expected all on one backend"):
        F.conv2d_backward(backend.to_numpy(y), cache)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {}])
@pytest.mark.parametrize("given", [False, True])
def test_kept_columns_give_the_same_results(backend, rng, monkeypatch, options, given):
    """Where columns are no larger than the result a device keeps them from forward to backward."""
    x, weight, bias = rng.normal(size=(4, 1, 8, 7)), rng.normal(size=(11, 1, 3, 3)), rng.normal(size=11)
    results = []
    for keeps in (False, True):
        monkeypatch.setattr(backend, "keeps_columns", keeps, raising=False)
        arrays = [backend.asarray(array.astype("float32")) for array in (x, weight, bias)]
        y, cache = F.conv2d(*arrays, **options)
        assert (cache.columns is not None) == keeps
        dy = backend.asarray(np.random.default_rng(1).normal(size=y.shape).astype("float32"))
        targets = {"dweight": backend.empty(weight.shape, "float32"), "dbias": backend.empty((11,), "float32")}
        gradients = F.conv2d_backward(dy, cache, **(targets if given else {}))
        if given and backend.name != "numpy":
            assert gradients[1] is targets["dweight"]
            assert gradients[2] is targets["dbias"]
        _, dweight, _ = F.conv2d_backward(dy, cache, input_gradient=False)
        results.append([backend.to_numpy(array) for array in (y, *gradients, dweight)])
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        assert np.abs(mine).max() > 0.1


def test_columns_larger_than_the_result_are_not_kept(backend, rng, monkeypatch):
    monkeypatch.setattr(backend, "keeps_columns", True, raising=False)
    x, weight = (backend.asarray(rng.normal(size=shape).astype("float32")) for shape in ((2, 1, 6, 6), (8, 1, 3, 3)))
    assert F.conv2d(x, weight)[1].columns is None
