"""The bounds that docstrings state, over all magnitudes that a dtype has, against float64; written and replayed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn import functional as F
from xpcnn.functional import reference as R

DTYPES = ["float16", "float32", "float64"]
REPLAYED = 6  # the call from which on NumPy replays a lone operation
WIDE = np.longdouble


def computed_in(dtype):
    return np.dtype("float32" if dtype == "float16" else dtype)


def eps_of(dtype):
    return float(np.finfo(dtype).eps)


@st.composite
def numbers(draw, shape, dtypes=tuple(DTYPES), share=1.0):
    """Numbers of any magnitude: of one each time, or of all at once; `share` keeps exponents from the ends."""
    dtype = draw(st.sampled_from(dtypes))
    limits = np.finfo(dtype)
    low, high = share * math.log10(limits.smallest_subnormal), share * math.log10(limits.max)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    exponents = rng.uniform(low, high, shape) if draw(st.booleans()) else draw(st.floats(low, high))
    signs = rng.choice([-1.0, 1.0], shape)
    return (signs * rng.uniform(0.1, 1.0, shape) * np.power(WIDE(10), exponents)).astype(dtype), rng


def gradient_like(rng, y, high=0.0):
    """An upstream gradient whose values have magnitudes of their own."""
    return (rng.normal(size=y.shape) * 10.0 ** rng.uniform(-4, high, y.shape)).astype(y.dtype)


def calls(backend):
    """Return how many calls show all that an operation does: those that are replayed too."""
    return REPLAYED + 1 if backend.name == "numpy" else 2


def flushes(backend, dtype):
    """Whether numbers below the smallest normal one count as zero: CuPy compiles its kernels with -ftz=true.

    That is float32's on a GPU (`xpcnn guide gpu`); an emulated one, which is asked here, flushes float64's too.
    """
    if not backend.name.startswith("cupy") or dtype == "float16":
        return False
    smallest = backend.asarray(np.array([np.finfo(dtype).tiny], dtype))
    return not backend.to_numpy(backend.xp.multiply(smallest, 0.5)).any()


def both_ways(backend, forward, backward, x, make_dy):
    """Return result, gradient and upstream gradient of the first call, after checking that later ones give its bits."""
    first = None
    for _ in range(calls(backend)):
        y, cache = forward(backend.asarray(x))
        y = backend.to_numpy(y).copy()
        dy = make_dy(y) if first is None else first[2]
        dx = backend.to_numpy(backward(backend.asarray(dy), cache)).copy()
        first = first or (y, dx, dy)
        np.testing.assert_array_equal(y, first[0])
        np.testing.assert_array_equal(dx, first[1])
    return first


def close(actual, exact, bound, dtype):
    """Check |actual - exact| <= bound + half a step of the dtype's; what overflows is inf."""
    exact = np.asarray(exact, WIDE)
    limits = np.finfo(dtype)
    with np.errstate(all="ignore"):
        expected = exact.astype(dtype)
        error = np.abs(actual.astype(WIDE) - exact)
        allowed = np.asarray(bound, WIDE) + float(limits.smallest_subnormal) + np.abs(exact) * eps_of(dtype) / 2
        near_the_end = np.abs(exact) >= WIDE(limits.max) * (1 - 64 * WIDE(limits.eps))
        good = (error <= allowed) | (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        good |= near_the_end & (np.abs(actual) >= limits.max * 0.999)
    assert np.all(good), (actual[~good][:3], exact[~good][:3])


# --- activations ------------------------------------------------------------------------------------------------------


def phi(x):
    """The normal distribution function in float64."""
    return np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2.0)), otypes=[float])(x)


def density(x):
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


ACTIVATIONS = {  # the function, its slope, the bound of the result beside eps |y|, the largest slope
    "relu": (lambda x: np.where(x > 0, x, 0), lambda x: np.where(x > 0, 1.0, 0.0), lambda x, y: 0, 1.0),
    "leaky_relu": (
        lambda x: np.where(x > 0, x, x * 0.3), lambda x: np.where(x > 0, 1.0, 0.3), lambda x, y: np.abs(y), 1.0,
    ),
    "sigmoid": (
        sigmoid, lambda x: sigmoid(x) * sigmoid(-x), lambda x, y: 3 * np.abs(y) * np.maximum(1, -x), 0.25,
    ),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(np.clip(x, -300, 300)) ** 2, lambda x, y: 3 * np.abs(y), 1.0),
    "gelu": (
        lambda x: x * phi(x), lambda x: phi(x) + np.where(np.abs(x) < 40, x * density(x), 0),
        lambda x, y: 8 * np.abs(y) * np.maximum(1, x * x), 1.2,
    ),
    "silu": (
        lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x)),
        lambda x, y: 4 * np.abs(y) * np.maximum(1, -x), 1.1,
    ),
    "hardswish": (
        lambda x: x * np.clip((x + 3) / 6, 0, 1), lambda x: np.where(x <= -3, 0, np.where(x >= 3, 1, (2 * x + 3) / 6)),
        lambda x, y: 4 * np.abs(y), 1.5,
    ),
    "elu": (
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(np.minimum(x, 0))),
        lambda x: np.where(x > 0, 1.0, 0.7 * np.exp(np.minimum(x, 0))), lambda x, y: 3 * np.abs(y), 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(case=numbers((7, 5)))
def test_activations(backend, name, case):
    x, rng = case
    function, slope, bound, steepest = ACTIVATIONS[name]
    forward, backward = getattr(F, name), getattr(F, f"{name}_backward")
    options = {"leaky_relu": {"negative_slope": 0.3}, "elu": {"alpha": 0.7}}.get(name, {})
    tiny = float(np.finfo(computed_in(x.dtype)).tiny)
    if flushed := flushes(backend, x.dtype):
        x[np.abs(x) < tiny] = 0
    y, dx, dy = both_ways(backend, lambda x: forward(x, **options), backward, x, lambda y: gradient_like(rng, y))
    eps = eps_of(computed_in(x.dtype))
    with np.errstate(all="ignore"):
        wide = x.astype(float)
        exact = function(wide)
        # Results that are denormal where they are computed have lost digits already.
        lost = tiny if flushed or name in ("gelu", "silu") else 0
        close(y, exact, eps * np.minimum(bound(wide, exact), 1e300) + lost, x.dtype)
        bound_of_dx = 8 * eps * steepest * np.abs(dy.astype(float)) + (tiny if flushed else 0)
        close(dx, dy.astype(float) * slope(wide), bound_of_dx, x.dtype)


@pytest.mark.parametrize("name", ["relu", "dropout"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_cut_off_passes_nothing_on(backend, name, dtype):
    """0 times inf is nan; a gradient that is cut off is 0."""
    x = np.linspace(-1, 1, 40, dtype=dtype).reshape(4, 10)
    for dy in (np.full_like(x, np.inf), np.full_like(x, np.nan)):
        for _ in range(calls(backend)):
            given = backend.asarray(x)
            y, cache = F.relu(given) if name == "relu" else F.dropout(given, 0.5, training=True)
            dx = getattr(F, f"{name}_backward")(backend.asarray(dy), cache)
            np.testing.assert_array_equal(backend.to_numpy(dx), np.where(backend.to_numpy(y) != 0, dy, 0))


@pytest.mark.parametrize("slope", [0.3, -2.0, 1e10, 0.0])
def test_leaky_relu_of_steep_slopes(backend, slope):
    """Slope added to 1 - slope is not 1."""
    y, cache = F.leaky_relu(backend.asarray(np.array([-3.0, 2.0], np.float32)), slope)
    assert backend.to_numpy(y).tolist() == [np.float32(-3.0) * np.float32(slope), 2.0]
    assert backend.to_numpy(F.leaky_relu_backward(backend.xp.ones_like(y), cache))[1] == 1.0


# --- softmax, losses --------------------------------------------------------------------------------------------------


def exact_log_softmax(x):
    shifted = x.astype(WIDE) - x.astype(WIDE).max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@given(case=numbers((6, 5)))
def test_softmax(backend, case):
    x, rng = case
    eps = eps_of(computed_in(x.dtype))
    with np.errstate(all="ignore"):
        exact = exact_log_softmax(x)
        spread = np.minimum(np.abs(exact), 1e4)
        y, log_y = F.softmax(backend.asarray(x)), F.log_softmax(backend.asarray(x))
        close(backend.to_numpy(y), np.exp(exact), 8 * eps * np.exp(exact) * (1 + spread), x.dtype)
        close(backend.to_numpy(log_y), exact, 8 * eps * np.maximum(1, np.abs(exact)), x.dtype)
        dy = gradient_like(rng, y)
        wide, p, log_p = (a.astype(WIDE) for a in (dy, backend.to_numpy(y), backend.to_numpy(log_y)))
        size = np.abs(wide).sum(axis=-1, keepdims=True)
        dx = backend.to_numpy(F.softmax_backward(backend.asarray(dy), y))
        close(dx, p * (wide - (wide * p).sum(axis=-1, keepdims=True)), 16 * eps * size, x.dtype)
        dx = backend.to_numpy(F.log_softmax_backward(backend.asarray(dy), log_y))
        close(dx, wide - np.exp(log_p) * wide.sum(axis=-1, keepdims=True), 16 * eps * size, x.dtype)


@given(case=numbers((6, 5)), cut=st.integers(0, 4), smoothing=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 99))
def test_cross_entropy(backend, case, cut, smoothing, seed):
    """Over all magnitudes, and with logits of -inf that no target counts."""
    x, _ = case
    labels = np.random.default_rng(seed).integers(0, 5, 6)
    if not smoothing:
        x[np.arange(6), (labels + 1 + cut % 4) % 5] = -np.inf
    eps = eps_of(computed_in(x.dtype))
    with np.errstate(all="ignore"):
        log_p = exact_log_softmax(x)
        target = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
        terms = np.where(target == 0, 0, target * log_p)
        exact, size = -terms.sum() / 6, np.abs(terms).sum()
    logits = backend.asarray(x)
    for kind in (backend.asarray(labels), labels.tolist(), backend.asarray(np.eye(5)[labels].astype(x.dtype))):
        for _ in range(2):
            found = F.cross_entropy(logits, kind, label_smoothing=smoothing)
            loss, dlogits = (backend.to_numpy(array)[()] for array in found)
            assert loss.dtype == computed_in(x.dtype)
            if size > np.finfo(loss.dtype).max:  # the sum over the batch overflows, as PyTorch's does
                assert loss in (np.inf, loss.dtype.type(exact))
            else:
                close(loss[None], [exact], 16 * eps * (1 + size), loss.dtype)
            close(dlogits, (np.exp(log_p) - target) / 6, 16 * eps, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_class_that_cannot_be(backend, dtype):
    """0 times inf where a class is selected; and a target at -inf makes the loss inf."""

    def cross_entropy(logits, target):
        return [backend.to_numpy(a) for a in F.cross_entropy(backend.asarray(np.array(logits, dtype)), target)]

    x = [[0, 1, -np.inf]]
    for labels in ([0], backend.asarray(np.array([[1.0, 0.0, 0.0]], dtype))):
        loss, dlogits = cross_entropy(x, labels)
        assert loss == pytest.approx(1.3132616, rel=1e-6)
        assert dlogits[0, 2] == 0
    assert cross_entropy(x, [2])[0] == np.inf
    assert np.isnan(cross_entropy([[np.nan, 1, 2]], [1])[0])
    assert np.isnan(cross_entropy([[-np.inf] * 3], [1])[0])


# --- pooling ----------------------------------------------------------------------------------------------------------

SPECIAL = [-np.inf, np.inf, np.nan, 0.0, -0.0, 1.0, -1.0, 3e38]


@given(
    values=st.lists(st.sampled_from([*SPECIAL, -np.inf, -np.inf]), min_size=60, max_size=60),
    kernel=st.sampled_from([(2, 2), (3, 3), (1, 3), (3, 2), (1, 1)]),
    stride=st.sampled_from([None, 1, 2]),
    padding=st.sampled_from([0, 1]),
    ceil_mode=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_max_pool2d_of_anything(backend, values, kernel, stride, padding, ceil_mode, dtype):
    """Padding never wins, a nan wins its own gradient, and an infinite gradient stays with its winner."""
    x = np.array(values).reshape(2, 1, 6, 5)
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    options = {"stride": stride, "padding": tuple(min(padding, k - 1) for k in kernel), "ceil_mode": ceil_mode}
    expected, winners = R.max_pool2d(x, kernel, **options)
    for _ in range(calls(backend)):
        y, cache = F.max_pool2d(backend.asarray(x), kernel, **options)
        assert np.array_equal(backend.to_numpy(y), expected.astype(dtype), equal_nan=True)
        dy = np.random.default_rng(1).integers(1, 9, expected.shape).astype(dtype)
        dx = backend.to_numpy(F.max_pool2d_backward(backend.asarray(dy), cache))
        if not several_nans(x, kernel, options):
            assert np.array_equal(dx, R.max_pool2d_backward(dy, winners).astype(dtype))
        else:
            assert dx.sum() == sum(dy[window] for window in winners[1])
            assert np.all(dx[~np.isnan(x)] == R.max_pool2d_backward(dy, winners)[~np.isnan(x)])


def several_nans(x, kernel, options):
    """Whether a window may hold two nans, of which either may win."""
    return np.isnan(x).sum() > 1


def test_max_pool2d_counts_every_window_of_minus_infinity(backend):
    x = backend.asarray(np.full((1, 1, 4, 4), -np.inf, "float32"))
    y, cache = F.max_pool2d(x, 3, stride=1, padding=1)
    dx = F.max_pool2d_backward(backend.xp.ones(y.shape, dtype="float32"), cache)
    assert backend.to_numpy(dx).sum() == 16


def test_max_pool2d_hands_on_what_is_infinite(backend):
    x = backend.asarray(np.array([[[[1.0, 2.0], [4.0, 3.0]]]], "float32"))
    _, cache = F.max_pool2d(x, 2)
    dx = F.max_pool2d_backward(backend.asarray(np.array([[[[np.inf]]]], "float32")), cache)
    assert backend.to_numpy(dx).ravel().tolist() == [0, 0, np.inf, 0]


# --- batch norm -------------------------------------------------------------------------------------------------------


def exact_batch_norm(x, dy, gamma, beta, mean, var, training, eps=1e-5):
    """The formulas in the widest numbers that there are."""
    x, dy = x.astype(WIDE), dy.astype(WIDE)
    origin = x[:, 0].copy()  # the widest numbers too are coarse far from 0
    x -= origin[:, None]
    if training:
        mean = x.mean(axis=1) + origin
        centred = x - x.mean(axis=1)[:, None]
        var = (centred**2).mean(axis=1)
    else:
        centred = x - (mean.astype(WIDE) - origin)[:, None]
    mean, var, gamma, beta = (np.asarray(a, WIDE) for a in (mean, var, gamma, beta))
    scale = 1 / np.sqrt(var + eps)
    xhat = centred * scale[:, None]
    dbeta, dgamma = dy.sum(axis=1), (dy * xhat).sum(axis=1)
    dx = dy - (dbeta / x.shape[1])[:, None] - xhat * (dgamma / x.shape[1])[:, None] if training else dy
    return gamma[:, None] * xhat + beta[:, None], dx * (gamma * scale)[:, None], dgamma, dbeta, mean, var


@settings(max_examples=60)
@given(
    log_mean=st.floats(-10, 6),
    log_deviation=st.floats(-6, 6),
    constant=st.booleans(),
    training=st.booleans(),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
    n=st.sampled_from([2, 5, 64, 700, 4096]),
    seed=st.integers(0, 999),
)
def test_batch_norm(backend, log_mean, log_deviation, constant, training, dtype, n, seed):
    """Rounding goes by the deviations: the mean may be a million of them."""
    rng = np.random.default_rng(seed)
    if dtype == "float16":
        log_mean, log_deviation = min(log_mean, 4.0), min(log_deviation, 3.0)
    x = (10.0**log_mean * rng.choice([-1, 1]) + 10.0**log_deviation * rng.normal(size=(3, n))).astype(dtype)
    if constant:
        x[0] = x[0, 0]
    own = computed_in(dtype)
    dy = rng.normal(size=x.shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, 3)).astype(own)
    mean, var = x.astype(own).mean(axis=1).astype(own), np.maximum(x.astype(float).var(axis=1), 1e-30).astype(own)
    y_exact, dx_exact, dgamma_exact, dbeta_exact, mean_exact, var_exact = exact_batch_norm(
        x, dy, gamma, beta, mean, var, training
    )
    eps, step = eps_of(own), eps_of(dtype) / 2 if dtype == "float16" else 0.0
    reach = np.abs((y_exact - beta[:, None]) / gamma[:, None]).max(axis=1)  # of xhat
    factor = np.abs(gamma) / np.sqrt(var_exact + 1e-5)
    loss = 64 * eps  # of a mean and of sums over up to 4096 values
    for _ in range(calls(backend)):
        arrays = [backend.asarray(a) for a in (x, dy, gamma, beta, mean.copy(), var.copy())]
        y, cache = F.batch_norm(arrays[0].T, *arrays[2:], training=training)
        gradients = F.batch_norm_backward(arrays[1].T, cache)
        y, running_mean, running_var, dx, dgamma, dbeta = map(backend.to_numpy, (y, *arrays[4:], *gradients))
        bound = loss * (np.abs(gamma) * (1 + reach) + np.abs(beta))[:, None]
        assert np.all(np.abs(y.T - y_exact) <= bound + step * np.abs(y_exact) + step)
        size = np.sqrt(n) * 4
        assert np.all(np.abs(dbeta - dbeta_exact) <= loss * size)
        assert np.all(np.abs(dgamma - dgamma_exact) <= loss * size * (1 + reach))
        bound = loss * (factor * (1 + reach**2) * 4)[:, None]
        assert np.all(np.abs(dx.T - dx_exact) <= bound + step * np.abs(dx_exact) + 1e-7 * bool(step))
        if training:
            moved = 0.9 * mean.astype(WIDE) + 0.1 * mean_exact
            off = np.abs(running_mean - moved) - 8 * eps * np.abs(moved)
            assert np.all(off <= loss * np.sqrt(var_exact))
            moved = 0.9 * var.astype(WIDE) + 0.1 * var_exact * n / (n - 1)
            np.testing.assert_allclose(running_var, moved, rtol=loss, atol=1e-30)


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 1.0), ("float64", 1e-8)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_far_from_zero(backend, training, dtype, digits):
    x = (1e4 + np.random.default_rng(0).normal(size=(16, 1, 14, 14))).astype(dtype)
    dy = np.random.default_rng(1).normal(size=x.shape).astype(dtype)
    ones, zeros = np.ones(1, dtype), np.zeros(1, dtype)
    mean = np.array([1e4], dtype)
    y, cache = F.batch_norm(*map(backend.asarray, (x, ones, zeros, mean.copy(), ones.copy())), training=training)
    y, dgamma = map(backend.to_numpy, (y, F.batch_norm_backward(backend.asarray(dy), cache)[1]))
    if training:
        assert abs(y.mean(dtype="float64")) < 1e-6 * digits
    expected = exact_batch_norm(x.reshape(1, -1), dy.reshape(1, -1), ones, zeros, mean, ones, training)
    assert dgamma[0] == pytest.approx(float(expected[2][0]), abs=1e-3 * digits)
    np.testing.assert_allclose(y.reshape(1, -1), expected[0].astype(float), rtol=0, atol=1e-5 * digits)


@pytest.mark.parametrize("value", [0.1, 1e6 / 3, -1e30])
@pytest.mark.parametrize("n", [7, 4096])
def test_batch_norm_of_a_constant_channel(backend, value, n):
    x = backend.asarray(np.full((n, 1), value, "float32"))
    gamma, beta, mean, var = (backend.asarray(np.full(1, v, "float32")) for v in (2.0, 0.25, 0.0, 0.0))
    y, cache = F.batch_norm(x, gamma, beta, mean, var, training=True, momentum=1.0)
    assert np.all(backend.to_numpy(y) == 0.25)
    assert backend.to_numpy(var)[0] == 0
    assert backend.to_numpy(mean)[0] == np.float32(value)
    dy = np.random.default_rng(0).normal(size=x.shape).astype("float32")
    _, dgamma, _ = F.batch_norm_backward(backend.asarray(dy), cache)
    assert backend.to_numpy(dgamma)[0] == 0


def test_batch_norm_beyond_its_range_is_nan(backend):
    """Not beta, which nobody would notice."""
    x = backend.asarray(np.array([[-1e30], [1e30]], "float32"))
    ones = [backend.asarray(np.ones(1, "float32")) for _ in range(4)]
    y, _ = F.batch_norm(x, *ones, training=True)
    y = backend.to_numpy(y)
    # Or what it is, where sums are wider than the dtype.
    assert np.all(np.isnan(y) | (y == [[0.0], [2.0]]))


# --- sums -------------------------------------------------------------------------------------------------------------


@given(case=numbers((5, 7), share=0.45), seed=st.integers(0, 99))
def test_linear(backend, case, seed):
    """Products of two magnitudes: half of the exponents each."""
    x, rng = case
    weight, dy = (rng.permutation(x.ravel())[:28].reshape(4, 7), rng.permutation(x.ravel())[:20].reshape(5, 4))
    bias = x[0, :4].copy()
    eps = eps_of(computed_in(x.dtype))
    y, cache = F.linear(*map(backend.asarray, (x, weight, bias)))
    y, dx, dweight, dbias = map(backend.to_numpy, (y, *F.linear_backward(backend.asarray(dy), cache)))
    wide = [np.asarray(a, WIDE) for a in (x, weight, bias, dy)]
    size = [np.abs(a) for a in wide]
    # What underflows in a product is lost: as much as the smallest normal number a term.
    lost = 8 * float(np.finfo(computed_in(x.dtype)).tiny)
    product, bound = wide[0] @ wide[1].T, 8 * eps * (size[0] @ size[1].T + size[2]) + lost
    if x.dtype == "float16" and backend.multiplies(x.dtype):  # the product is rounded before the bias is added
        bound = bound + np.abs(product) * eps_of(x.dtype) / 2
    close(y, product + wide[2], bound, x.dtype)
    close(dx, wide[3] @ wide[1], 8 * eps * (size[3] @ size[1]) + lost, x.dtype)
    close(dweight, wide[3].T @ wide[0], 8 * eps * (size[3].T @ size[0]) + lost, x.dtype)
    close(dbias, wide[3].sum(axis=0), 8 * eps * size[3].sum(axis=0), x.dtype)


@given(case=numbers((2, 3, 4, 4)))
def test_averages(backend, case):
    x, rng = case
    eps, lost = eps_of(computed_in(x.dtype)), 0.0
    if flushes(backend, x.dtype):
        lost = float(np.finfo(x.dtype).tiny)
        x[np.abs(x) < lost] = 0
    wide = x.astype(WIDE)
    with np.errstate(all="ignore"):
        for forward, backward, cells in (
            (F.global_avg_pool2d, F.global_avg_pool2d_backward, 16),
            (lambda x: F.avg_pool2d(x, 2), F.avg_pool2d_backward, 4),
        ):
            y, dx, dy = both_ways(backend, forward, backward, x, lambda y: gradient_like(rng, y))
            k = int(math.sqrt(cells))
            windows = wide.reshape(2, 3, 4 // k, k, 4 // k, k)
            total, size = windows.sum(axis=(3, 5)), np.abs(windows).sum(axis=(3, 5))
            overflows = size > np.finfo(computed_in(x.dtype)).max * 0.99  # as PyTorch, which sums first, too
            close(np.where(overflows, 0, y), np.where(overflows, 0, total / cells), 2 * (eps * size + lost), x.dtype)
            spread = np.repeat(np.repeat(dy.astype(WIDE) / cells, k, axis=2), k, axis=3)
            close(dx, spread, 2 * eps * np.abs(spread) + lost, x.dtype)


@given(case=numbers((4, 6), share=0.4))
def test_mse_loss(backend, case):
    x, rng = case
    target = rng.permutation(x.ravel()).reshape(x.shape)
    loss, dx = (backend.to_numpy(a)[()] for a in F.mse_loss(backend.asarray(x), backend.asarray(target)))
    difference = x.astype(WIDE) - target.astype(WIDE)
    eps = eps_of(computed_in(x.dtype))
    tiny = float(np.finfo(loss.dtype).tiny)
    close(loss[None], (difference**2).mean(), 16 * eps * (difference**2).mean() + tiny, loss.dtype)
    close(dx, 2 * difference / x.size, 4 * eps * np.abs(difference) + tiny, x.dtype)
