import numpy as np
import pytest
from hypothesis import given

from tests.functional.checks import check_op
from tests.functional.strategies import distinct, poolings, values
from xpcnn import functional as F
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import pooling
from xpcnn.functional import reference as R
from xpcnn.functional.channelwise import run
from xpcnn.testing import numerical_gradient

MAX = (F.max_pool2d, F.max_pool2d_backward), (R.max_pool2d, R.max_pool2d_backward)
AVG = (F.avg_pool2d, F.avg_pool2d_backward), (R.avg_pool2d, R.avg_pool2d_backward)
GLOBAL = (F.global_avg_pool2d, F.global_avg_pool2d_backward), (R.global_avg_pool2d, R.global_avg_pool2d_backward)


def with_kernel(pair, kernel):
    (forward, backward), (loop, loop_backward) = pair
    return (
        (lambda x, **options: forward(x, kernel, **options), backward),
        (lambda x, **options: loop(x, kernel, **options), loop_backward),
    )


@given(case=poolings(dilated=True))
def test_max_pool2d_agrees_with_the_loops(backend, case):
    rng = case.rng()
    x = distinct(rng, case.x_shape, case.dtype)
    check_op(backend, *with_kernel(MAX, case.kernel), [x], layout=case.layout, rng=rng, **case.options)


@given(case=poolings(dilated=True))
def test_max_pool2d_sends_ties_to_the_first(backend, case):
    rng = case.rng()
    x = np.round(values(rng, case.x_shape, case.dtype))
    check_op(backend, *with_kernel(MAX, case.kernel), [x], layout=case.layout, rng=rng, **case.options)


@given(case=poolings(dilated=True))
def test_maxima_are_the_same_where_nothing_is_kept_for_backward(backend, case):
    x = backend.asarray(values(case.rng(), case.x_shape, case.dtype))
    over = pooling.geometry(case.kernel, **case.options)
    y, _ = run((pooling.MaxPoolOp(over),), x, keep=False)
    expected, _ = F.max_pool2d(x, case.kernel, **case.options)
    assert np.array_equal(backend.to_numpy(y), backend.to_numpy(expected))


@given(case=poolings())
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_an_image_that_is_fetched_first_is_pooled_alike(backend, pool, case):
    x, options = backend.asarray(values(case.rng(), case.x_shape, case.dtype)), dict(case.options)
    if pool is F.max_pool2d:
        del options["count_include_pad"]
    results = []
    for size in (None, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "fetch_bytes", size)
            y, cache = pool(x, case.kernel, **options)
            results.append((y, F.max_pool2d_backward(y, cache)))
    for before, after in zip(*results, strict=True):
        assert np.array_equal(backend.to_numpy(before), backend.to_numpy(after))


@pytest.mark.parametrize(("height", "fetched"), [(4, [(3, 4, 6, 5)]), (3, [])])
def test_large_images_are_fetched_once_and_whole(backend, monkeypatch, height, fetched):
    seen = []
    monkeypatch.setattr(backend, "fetch", lambda a: seen.append(a.shape))
    monkeypatch.setattr(backend, "slab_bytes", None)
    monkeypatch.setattr(backend, "fetch_bytes", 3 * 4 * 6 * 5 * 4)
    x = backend.asarray(np.ones((5, 3, height, 6), np.float32))
    run((pooling.max_pool_op(2, None), pooling.max_pool_op(1, None)), x)
    assert seen == fetched


@given(case=poolings())
def test_avg_pool2d_agrees_with_the_loops(backend, case):
    rng = case.rng()
    x = values(rng, case.x_shape, case.dtype)
    check_op(backend, *with_kernel(AVG, case.kernel), [x], layout=case.layout, rng=rng, **case.options)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 5), (3, 2, 7, 1)])
@pytest.mark.parametrize("layout", ["nchw", "chwn", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_global_avg_pool2d_agrees_with_the_loops(backend, rng, shape, layout, dtype):
    check_op(backend, *GLOBAL, [values(rng, shape, dtype)], layout=layout, rng=rng)


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("pair", [MAX, AVG])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [(2, {}), (3, {"stride": 2, "padding": 1}), ((2, 3), {"stride": (1, 2), "ceil_mode": True}), (2, {"stride": 3})],
)
def test_pooling_in_small_slabs(backend, rng, monkeypatch, pair, kernel, options, batch):
    monkeypatch.setattr(backend, "slab_bytes", 1)
    check_op(backend, *with_kernel(pair, kernel), [distinct(rng, (batch, 5, 6, 7))], rng=rng, **options)


@pytest.mark.parametrize("pair", [MAX, AVG])
def test_backward_is_the_derivative(backend, rng, pair):
    x = distinct(rng, (2, 2, 5, 6))
    options = {"stride": (1, 2), "padding": ((1, 0), (1, 1)), "ceil_mode": True}
    (forward, backward), _ = with_kernel(pair, (2, 3))
    y, cache = forward(backend.asarray(x), **options)
    dy = values(rng, y.shape)
    dx = backend.to_numpy(backward(backend.asarray(dy), cache))

    def loss(_):
        return np.sum(dy * backend.to_numpy(forward(backend.asarray(x), **options)[0]))

    assert np.allclose(dx, numerical_gradient(loss, x), rtol=0, atol=1e-8)


def test_overlapping_windows_add_their_gradients(backend):
    x = backend.asarray(np.array([[[[0.0, 1.0, 0.0]]]], "float32"))
    _, cache = F.max_pool2d(x, (1, 2), stride=1)
    dx = F.max_pool2d_backward(backend.asarray(np.array([[[[2.0, 3.0]]]], "float32")), cache)
    assert backend.to_numpy(dx).tolist() == [[[[0.0, 5.0, 0.0]]]]


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": 2, "padding": 1}, {"stride": 2, "ceil_mode": True}])
def test_max_pool2d_keeps_nan(backend, rng, options):
    x = values(rng, (2, 3, 5, 5), "float32")
    x[0, 0] = np.nan
    x[1, 1, 2, 3] = np.nan
    y, _ = F.max_pool2d(backend.asarray(x), 3, **options)
    assert np.array_equal(backend.to_numpy(y), R.max_pool2d(x, 3, **options)[0].astype("float32"), equal_nan=True)


def test_max_pool2d_never_picks_padding(backend):
    x = backend.asarray(np.full((1, 1, 3, 3), -5.0, "float32"))
    y, cache = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
    assert np.all(backend.to_numpy(y) == -5.0)
    dx = F.max_pool2d_backward(y, cache)
    assert backend.to_numpy(dx).sum() == -20.0


def test_max_pool2d_of_infinities(backend):
    x = backend.asarray(np.array([[[[-np.inf, -np.inf, np.inf, 1.0]]]], "float32"))
    y, _ = F.max_pool2d(x, (1, 2))
    assert backend.to_numpy(y).ravel().tolist() == [-np.inf, np.inf]


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
@pytest.mark.parametrize(
    ("shape", "kernel", "options", "message"),
    [
        ((1, 5, 5), 2, {}, r"x: expected shape \(N, C, H, W\)"),
        ((5, 5), 2, {}, r"x: expected shape \(N, C, H, W\)"),
        ((1, 1, 1, 5), 2, {}, "kernel_size: expected a window of at most the padded height 1, got 2"),
        ((1, 1, 5, 5), 2, {"padding": 2}, "padding: expected less than the kernel of 2 pixels, got 2"),
        ((1, 1, 5, 5), 2, {"padding": ((0, 0), (0, 2))}, "padding: expected less than the kernel of 2 pixels"),
        ((1, 1, 5, 5), 0, {}, "kernel_size: expected 1 or more, got 0"),
        ((1, 1, 5, 5), (2, 2, 2), {}, r"kernel_size: expected an integer or \(height, width\)"),
        ((1, 1, 5, 5), 2, {"stride": 0}, "stride: expected 1 or more, got 0"),
        ((1, 1, 5, 5), 2, {"padding": "reflect"}, 'padding: expected integers, "same" or "valid"'),
    ],
)
def test_pooling_refuses_sizes_that_do_not_fit(backend, pool, shape, kernel, options, message):
    with pytest.raises(ShapeError, match=message):
        pool(backend.zeros(shape, "float32"), kernel, **options)


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d, lambda x, _: F.global_avg_pool2d(x)])
def test_pooling_refuses_integers_and_gradients_that_do_not_fit(backend, pool):
    with pytest.raises(DTypeError, match="x: expected a floating type such as float32, got uint8"):
        pool(backend.zeros((1, 1, 4, 4), "uint8"), 2)
    y, cache = pool(backend.zeros((1, 1, 4, 4), "float32"), 2)
    with pytest.raises(ShapeError, match=r"dy: expected shape \(1, 1, .\, .\), got \(1, 1, 4, 4\)"):
        F.max_pool2d_backward(backend.zeros((1, 1, 4, 4), "float32"), cache)
    with pytest.raises(DTypeError, match="dy: expected dtype float32, got float64"):
        F.avg_pool2d_backward(y.astype("float64"), cache)


def test_global_avg_pool2d_refuses_features(backend):
    with pytest.raises(ShapeError, match=r"x: expected shape \(N, C, H, W\), got \(3, 4\)"):
        F.global_avg_pool2d(backend.zeros((3, 4), "float32"))
