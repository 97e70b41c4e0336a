"""Every kernel, run on the CPU, against the portable primitive that it replaces, over random shapes."""

import math
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_device import FakeArray
from xpcnn.backend.cupy.fused import row_sums
from xpcnn.backend.cupy.updates import FUSED
from xpcnn.errors import DataError
from xpcnn.functional import loss, normalization, pooling
from xpcnn.functional.activation import relu_backward_from, relu_forward
from xpcnn.functional.convolution import add_bias, add_columns, collect_columns, fill_columns
from xpcnn.functional.dropout import GOLDEN, apply_mask, dropout_forward, mix
from xpcnn.optim import adagrad, adam, rmsprop, sgd
from xpcnn.optim.scaler import update_scale
from xpcnn.training.judging import judge
from xpcnn.windows import windows

from .shim import ShimBackend, check_guards

pytestmark = pytest.mark.gpu_static
shim = ShimBackend()
DTYPES = st.sampled_from(["float32", "float64"])
STORED = st.sampled_from(["float16", "float32", "float64"])
SEEDS = st.integers(0, 2**32 - 1)


class Portable(ShimBackend):
    """The same device without kernels."""

    fused = MappingProxyType({})


portable = Portable()


@st.composite
def images_and_windows(draw):
    """An image batch (C, H, W, N) of small integers, with ties, and windows over it."""
    shape = tuple(draw(st.integers(low, 9)) for low in (1, 1, 1, 1))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    kernel = tuple(draw(st.integers(1, (shape[1 + i] - 1) // dilation[i] + 1)) for i in range(2))
    pad = [tuple(draw(st.integers(0, min(2, (kernel[i] - 1) * dilation[i]))) for _ in "ab") for i in range(2)]
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    over = windows(
        shape[1:3], kernel, stride=stride, padding=tuple(pad), dilation=dilation, ceil_mode=draw(st.booleans())
    )
    x = np.random.default_rng(draw(SEEDS)).integers(-3, 4, shape).astype(draw(STORED))
    return x, over


def device(array):
    """Copy a host array to guarded memory of the fake device."""
    copy = shim.empty(array.shape, array.dtype)
    copy._host[...] = array
    return copy


def filled(rng, shape, dtype):
    return device(rng.standard_normal(shape).astype(dtype))


def computed(dtype):
    """Return the dtype that kernels compute in."""
    return np.dtype("float32" if dtype == "float16" else dtype)


def widened(a):
    """Return float16 numbers as float32, for the portable body that is the oracle of what is stored in float16."""
    if isinstance(a, FakeArray) and a.dtype == "float16":
        return device(a._host.astype("float32"))
    return a


def same(a, b):
    """Compare module, dtype and every bit; nan equals nan. What is stored in float16 is `b` rounded once."""
    assert isinstance(a, FakeArray)
    assert isinstance(b, FakeArray)
    assert computed(a.dtype) == computed(b.dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(a._host, b._host.astype(a.dtype))


def both(primitive, make):
    """Run a primitive by its kernel and by its portable body, each on arrays of its own; return both results.

    The body gets what is stored in float16 as float32.
    """
    name = primitive.__name__
    shim.kernels.launched.clear()
    arrays = make()
    assert FUSED[name](shim, *arrays) is not NotImplemented, f"{name}: the kernel was not used"
    assert shim.kernels.launched
    expected = tuple(map(widened, make()))
    primitive.portable(portable, *expected)
    return arrays, expected


@given(images_and_windows(), st.data())
def test_fill_columns(case, data):
    x, over = case
    first = data.draw(st.integers(0, over.h.out - 1))
    rows = range(first, data.draw(st.integers(first + 1, over.h.out)))
    shape = (x.shape[0], *over.kernel, len(rows), over.w.out, x.shape[3])
    got, expected = both(fill_columns, lambda: (device(x), over, rows, shim.empty(shape, x.dtype)))
    same(got[3], expected[3])


@given(images_and_windows(), SEEDS, st.data())
def test_add_columns(case, seed, data):
    x, over = case
    first = data.draw(st.integers(0, over.h.out - 1))
    rows = range(first, data.draw(st.integers(first + 1, over.h.out)))
    shape = (x.shape[0], *over.kernel, len(rows), over.w.out, x.shape[3])
    values = np.random.default_rng(seed).standard_normal(shape).astype(x.dtype)
    got, expected = both(add_columns, lambda: (device(values), over, rows, device(x)))
    same(got[3], expected[3])
    whole = device(np.random.default_rng(seed).standard_normal((*shape[:3], *over.out, shape[-1])).astype(x.dtype))
    got, expected = both(collect_columns, lambda: (whole, over, shim.empty(x.shape, x.dtype)))
    same(got[2], expected[2])


@given(images_and_windows(), st.sampled_from([None, math.nan, -math.inf]), SEEDS)
def test_max_pool(case, special, seed):
    x, over = case
    if special is not None:
        x.flat[np.random.default_rng(seed).integers(0, x.size, x.size)] = special
    shape = (x.shape[0], *over.out, x.shape[3])
    y, expected = (shim.empty(shape, x.dtype) for _ in "ab")
    winner = FUSED["max_pool_forward"](shim, device(x), over, y, True)
    won = pooling.max_pool_forward.portable(portable, device(x), over, expected, True)
    same(y, expected)
    dy = np.random.default_rng(seed).integers(-9, 10, shape).astype(x.dtype)  # sums of integers have no rounding
    dx, expected = (shim.empty(x.shape, x.dtype) for _ in "ab")
    FUSED["max_pool_backward_from"](shim, device(dy), winner, over, dx)
    pooling.max_pool_backward_from.portable(portable, device(dy), won, over, expected)
    same(dx, expected)
    nothing = shim.empty(shape, x.dtype)
    assert FUSED["max_pool_forward"](shim, device(x), over, nothing, False) is None
    same(nothing, y)
    FUSED["max_pool_forward"](shim, device(x), over, y, True, True)  # with ReLU after it
    pooling.max_pool_forward.portable(portable, device(x), over, expected := shim.empty(shape, x.dtype), True, True)
    same(y, expected)
    FUSED["max_pool_backward_from"](shim, device(dy), winner, over, dx, y)
    pooling.max_pool_backward_from.portable(portable, device(dy), won, over, other := shim.empty(x.shape, x.dtype), y)
    same(dx, other)


@given(st.integers(1, 9), st.integers(1, 700), STORED, SEEDS)
def test_relu(rows, columns, dtype, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (rows, columns)).astype(dtype)
    x.flat[0] = math.nan
    got, expected = both(relu_forward, lambda: (device(x), shim.empty(x.shape, dtype)))
    same(got[1], expected[1])
    dy = rng.standard_normal(x.shape).astype(dtype)
    got, expected = both(relu_backward_from, lambda: (device(dy), device(x), shim.empty(x.shape, dtype)))
    same(got[2], expected[2])


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.integers(1, 8), STORED, SEEDS, st.data())
def test_add_bias(f, h, w, n, dtype, seed, data):
    rng = np.random.default_rng(seed)
    y, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((f, h, w, n), (f,)))
    first = data.draw(st.integers(0, h - 1))
    got, expected = both(add_bias, lambda: (device(y)[:, first:h], device(bias)))
    same(got[0], expected[0])


@given(st.integers(1, 20), st.integers(1, 9000), STORED, st.booleans(), SEEDS)
def test_row_sums(rows, columns, dtype, dots, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((rows, columns)).astype(dtype) for _ in "ab")
    got = row_sums(shim, device(a), device(b) if dots else None)
    exact = np.sum(a.astype(np.longdouble) * (b if dots else 1), axis=1)
    np.testing.assert_allclose(got._host, exact, rtol=np.finfo(dtype).eps, atol=1e-12)


@given(
    st.integers(1, 7), st.integers(2, 3000), STORED, SEEDS, st.sampled_from([0.0, 1000.0, 1e5]),
    st.booleans(), st.booleans(), st.sampled_from([None, 0.1, 1.0]),
)  # fmt: skip
def test_batch_norm(channels, n, dtype, seed, offset, adds, rectifies, momentum):
    """With what comes after it: the sum with a shortcut, and ReLU."""
    rng = np.random.default_rng(seed)
    own = computed(dtype)  # of what belongs to a channel
    x = (rng.standard_normal((channels, n)) + (min(offset, 1000.0) if dtype == "float16" else offset)).astype(dtype)
    gamma, beta, *running = (rng.standard_normal(channels).astype(own) for _ in "abcd")
    other = rng.standard_normal(x.shape).astype(dtype) if adds else None
    got = shim.empty(x.shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Portable, "row_sums", lambda self, a, out=None: self.xp.sum(a, axis=1, out=out))
        patch.setattr(Portable, "row_dots", lambda self, a, b: self.xp.sum(a * b, axis=1))

        def after(kind, stored):
            moving = None if momentum is None else tuple(device(a.astype(kind)) for a in running)
            return moving, momentum, None if other is None else device(other.astype(stored)), rectifies

        mine_after, their_after = after(own, dtype), after("float64", "float64")
        kernel = FUSED["batch_norm_train"](shim, device(x), device(gamma), device(beta), 1e-5, got, *mine_after)
        arrays = device(x.astype("float64")), device(gamma.astype("float64")), device(beta.astype("float64"))
        exact = shim.empty(x.shape, "float64")
        normal = normalization.batch_norm_train.portable(portable, *arrays, 1e-5, exact, *their_after)
        small = {"rtol": 1e-9, "atol": 1e-9} if dtype == "float64" else {"rtol": 3e-4, "atol": 3e-4}
        if offset and own == "float32":
            small = {"rtol": 2e-3, "atol": 2e-3}  # x itself has that much less to say about its spread
        means = [device(np.add(pair[0]._host, pair[1]._host, dtype="float64")) for pair in (kernel, normal)]
        np.testing.assert_allclose(means[0]._host, means[1]._host, rtol=0, atol=1e-9 if dtype == "float64" else 1e-6)
        rounded = {"rtol": 1e-3, "atol": 1e-3} if dtype == "float16" and not offset else small
        for mine, theirs in zip((*kernel[2:], got), (*normal[2:], exact), strict=True):
            assert mine.dtype == (dtype if mine is got else own)
            np.testing.assert_allclose(mine._host, theirs._host, **(rounded if mine is got else small))
        for mine, theirs in zip(mine_after[0] or (), their_after[0] or (), strict=True):
            np.testing.assert_allclose(mine._host, theirs._host, **small)
        assert not rectifies or (got._host.min() == 0 or (exact._host > 0).all())
        dy = rng.standard_normal(x.shape).astype(dtype)
        centre, rest, _, scale = kernel
        dx, expected = shim.empty(x.shape, dtype), shim.empty(x.shape, "float64")
        sums, exact_sums = ([shim.empty((channels,), kind) for _ in "ab"] for kind in (own, "float64"))
        arrays = device(dy), device(x), centre, rest, scale, device(gamma)
        y = got if rectifies else None
        passed = shim.empty(x.shape, dtype) if adds and rectifies else None
        assert FUSED["batch_norm_train_backward"](shim, *arrays, dx, *sums, y, passed) is None
        wide = [device(a._host.astype("float64")) for a in arrays]
        cut = None if passed is None else shim.empty(x.shape, "float64")
        wide_y = None if y is None else device(y._host.astype("float64"))
        normalization.batch_norm_train_backward.portable(portable, *wide, expected, *exact_sums, wide_y, cut)
        tight = {"rtol": 1e-9, "atol": 1e-8} if dtype == "float64" else {"rtol": 1e-3, "atol": 1e-3}
        for mine, theirs in zip((*sums, dx), (*exact_sums, expected), strict=True):
            np.testing.assert_allclose(mine._host, theirs._host, **tight)
        if passed is not None:
            np.testing.assert_array_equal(passed._host, cut._host)


@pytest.mark.parametrize("size", [1e-12, 1e18])
def test_batch_norm_where_sums_leave_the_dtype(size):
    """A channel whose squares add up to more than float32 holds, or to less than its smallest number."""
    x = (np.random.default_rng(0).standard_normal((1, 4096)) * size).astype("float32")
    gamma, beta = device(np.ones(1, "float32")), device(np.zeros(1, "float32"))
    y = shim.empty(x.shape, "float32")
    _, _, variance, _ = FUSED["batch_norm_train"](shim, device(x), gamma, beta, 1e-30, y)
    wide = x.astype("float64")
    np.testing.assert_allclose(variance._host, wide.var(axis=1), rtol=1e-5)
    np.testing.assert_allclose(y._host, (wide - wide.mean()) / np.sqrt(wide.var() + 1e-30), rtol=1e-3, atol=1e-4)


@given(st.integers(1, 2000), st.sampled_from([0.1, 0.5, 0.999]), st.integers(0, 2**32 - 1), STORED, SEEDS)
def test_dropout(size, p, key, dtype, seed):
    x = np.random.default_rng(seed).standard_normal((1, size)).astype(dtype)
    first = seed % 1000
    got, expected = shim.empty(x.shape, dtype), shim.empty(x.shape, computed(dtype))
    keys = device(np.array([key], np.uint32))
    kept = FUSED["dropout_forward"](shim, device(x), p, keys, first, got)
    mask = dropout_forward.portable(portable, widened(device(x)), p, keys, first, expected)
    same(kept, mask)
    same(got, expected)
    dy, again = device(x), shim.empty(x.shape, dtype)
    FUSED["apply_mask"](shim, dy, kept, p, again)
    apply_mask.portable(portable, widened(dy), mask, p, expected)
    same(again, expected)


def test_dropout_at_the_threshold():
    """A hash that is the threshold itself is kept, by both."""
    key, x = device(np.array([5], np.uint32)), device(np.ones((1, 1), np.float32))
    first = mix(portable, device(np.array([5 * GOLDEN & 0xFFFFFFFF], np.uint32)))
    p = int(mix(portable, first)._host[0]) / 2**32  # element 0: mix(0 ^ mix(key * GOLDEN))
    for share, is_kept in ((p, True), (p + 2**-32, False)):
        kept = FUSED["dropout_forward"](shim, x, share, key, 0, shim.empty(x.shape, x.dtype))
        same(kept, dropout_forward.portable(portable, x, share, key, 0, shim.empty(x.shape, x.dtype)))
        assert kept._host.item() is is_kept


@given(st.integers(1, 600), st.integers(1, 12), DTYPES, SEEDS, st.sampled_from([0.1, 3.0, 1000.0, math.inf]))
def test_softmax_cross_entropy(samples, classes, dtype, seed, spread):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((classes, samples)) * (spread if math.isfinite(spread) else 1.0)).astype(dtype)
    if spread == math.inf:
        logits[0, ::2] = -math.inf  # of which some are the target
    target = np.eye(classes, dtype=dtype)[rng.integers(0, classes, samples)].T * dtype_of(dtype)(0.9)
    kernel = FUSED["softmax_cross_entropy"](shim, device(logits), device(target), 1.0 / samples)
    wide = [device(a.astype("float64")) for a in (logits, target)]
    normal = loss.softmax_cross_entropy.portable(portable, *wide, 1.0 / samples)
    bound = {"rtol": 1e-12, "atol": 1e-13} if dtype == "float64" else {"rtol": 2e-5, "atol": 2e-6}
    for mine, theirs in zip(kernel, normal, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine._host, theirs._host, **bound)


@given(
    st.integers(1, 600), st.integers(1, 12), DTYPES, SEEDS, st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from(["int8", "uint8", "int16", "int32", "int64", "uint64"]), st.booleans(),
)  # fmt: skip
def test_class_cross_entropy(samples, classes, dtype, seed, smoothing, kind, is_outside):
    """From the labels themselves, which a flag says are classes."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((classes, samples)).astype(dtype)
    labels = rng.integers(0, classes, samples).astype(kind)
    if is_outside:
        labels[rng.integers(samples)] = classes if kind.startswith("u") else rng.choice([-1, classes])
    error = DataError("labels: outside")
    results = []
    for backend, function, values in (
        (shim, FUSED["class_cross_entropy"], device(logits)),
        (portable, loss.class_cross_entropy.portable, device(logits.astype("float64"))),
    ):
        results.append(function(backend, values, device(labels), smoothing, 1.0 / samples, error))
        if is_outside:
            with pytest.raises(DataError, match="outside"):
                backend.check_demands()
        backend.check_demands()
    bound = {"rtol": 1e-12, "atol": 1e-13} if dtype == "float64" else {"rtol": 2e-5, "atol": 2e-6}
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(mine._host, theirs._host, **bound)


@given(
    st.lists(st.integers(1, 5000), min_size=0, max_size=3), st.integers(1, 600), st.integers(1, 9), STORED, SEEDS,
    st.sampled_from([None, math.nan, math.inf]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_judge(sizes, samples, classes, dtype, seed, special, was_ok, sticky):
    rng = np.random.default_rng(seed)
    gradients = [rng.standard_normal(size).astype(dtype) for size in sizes]
    value = np.array(rng.standard_normal(), computed(dtype))
    if special is not None:
        rng.choice([*gradients, value.reshape(1)][-1:]).flat[0] = special
        if gradients and seed % 2:
            gradients[seed % len(gradients)].flat[seed % gradients[seed % len(gradients)].size] = special
    logits = rng.integers(-2, 3, (classes, samples)).astype(computed(dtype))  # with ties
    if special is not None:
        logits.flat[seed % logits.size] = special
    labels = rng.integers(-1, classes, samples)
    results = []
    for backend, function in ((shim, FUSED["judge"]), (portable, judge.portable)):
        row, ok = device(np.full(4, 7.0)), device(np.array([was_ok]))
        arrays = device(value), [*map(device, gradients)], device(logits).T, device(labels), row, ok, sticky
        assert function(backend, *arrays) is None
        results.append((row._host, ok._host))
    (mine, my_ok), (theirs, their_ok) = results
    np.testing.assert_allclose(mine[2], theirs[2], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(mine[[0, 1, 3]], theirs[[0, 1, 3]])
    np.testing.assert_array_equal(my_ok, their_ok)
    assert my_ok[0] == (np.isfinite(theirs[0] + theirs[2]) and (was_ok or not sticky))


@given(st.lists(st.integers(1, 3000), min_size=0, max_size=100), st.sampled_from([None, True, False]), SEEDS)
def test_copy_arrays(sizes, unless, seed):
    rng = np.random.default_rng(seed)
    kinds = [rng.choice(["float32", "float64", "int64"]) for _ in sizes]
    sources = [rng.integers(0, 100, size).astype(kind) for size, kind in zip(sizes, kinds, strict=True)]
    flag = None if unless is None else device(np.array([unless]))
    targets = [device(np.full_like(source, -1)) for source in sources]
    assert FUSED["copy_arrays"](shim, targets, [*map(device, sources)], flag) is None
    for target, source in zip(targets, sources, strict=True):
        check_guards(target._host, "copy_arrays")
        np.testing.assert_array_equal(target._host, np.full_like(source, -1) if unless else source)


@given(
    st.floats(2.0**-14, 2.0**120, width=32), st.integers(0, 5), st.booleans(), st.sampled_from([None, True, False]),
    st.sampled_from([(2.0, 0.5), (1.0, 1.0), (3.0, 0.1)]), st.integers(1, 5),
)  # fmt: skip
def test_update_scale(scale, good, ok, live, factors, interval):
    def make():
        one = lambda value: device(np.array([value], "float32"))  # noqa: E731
        flags = (None if value is None else device(np.array([value])) for value in (ok, live))
        return one(scale), one(good), *flags, tuple(map(one, factors)), (one(1), one(0)), interval, (2.0**-14, 2.0**120)

    got, expected = both(update_scale, make)
    for mine, theirs in zip(got[:2], expected[:2], strict=True):
        same(mine, theirs)


def test_softmax_cross_entropy_of_a_class_that_cannot_be():
    logits = np.array([[0.0], [1.0], [-math.inf]], "float32")
    for place, expected in ((0, 1.3132616), (2, math.inf)):
        target = np.eye(3, dtype="float32")[:, place : place + 1].copy()
        loss_of_it, _ = FUSED["softmax_cross_entropy"](shim, device(logits), device(target), 1.0)
        assert float(loss_of_it._host) == pytest.approx(expected)


UPDATES = [
    (
        sgd.sgd_update,
        0,
        4,
        [{"decays": d, "nesterov": n, "shrinks": s} for d in (0, 1) for n in (0, 1) for s in (0, 1)],
    ),
    (
        sgd.sgd_momentum_update,
        1,
        4,
        [{"decays": d, "nesterov": n, "shrinks": s} for d in (0, 1) for n in (0, 1) for s in (0, 1)],
    ),
    (adam.adam_update, 2, 7, [{"decays": d, "shrinks": s} for d in (0, 1) for s in (0, 1)]),
    (adam.amsgrad_update, 3, 7, [{"decays": d, "shrinks": s} for d in (0, 1) for s in (0, 1)]),
    (rmsprop.rmsprop_update, 1, 6, [{"decays": d, "centered": 0, "momentum": 0} for d in (0, 1)]),
    (rmsprop.rmsprop_update, 2, 6, [{"decays": d, "centered": c, "momentum": 1 - c} for d in (0, 1) for c in (0, 1)]),
    (rmsprop.rmsprop_update, 3, 6, [{"decays": d, "centered": 1, "momentum": 1} for d in (0, 1)]),
    (adagrad.adagrad_update, 1, 3, [{"decays": d} for d in (0, 1)]),
]


@pytest.mark.parametrize(("update", "states", "hypers", "flags"), UPDATES)
@given(size=st.integers(1, 700), dtype=DTYPES, seed=SEEDS)
def test_updates(update, states, hypers, flags, size, dtype, seed):
    """Bit for bit, as both round every operation; on a GPU a product and a sum may be rounded once (fma)."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(size).astype(dtype) for _ in range(2)]
    arrays += [rng.random(size).astype(dtype) for _ in range(states)]
    if update is rmsprop.rmsprop_update and states > 1:
        arrays[2] += 2  # an average square is at least the square of the average
    arrays.append(rng.random(hypers).astype(dtype))
    for options in flags:
        chosen = {name: bool(value) for name, value in options.items()}
        got, expected = [*map(device, arrays)], [*map(device, arrays)]
        assert FUSED[update.__name__](shim, *got, **chosen) is None
        update.portable(portable, *expected, **chosen)
        for mine, theirs in zip(got, expected, strict=True):
            same(mine, theirs)
        for ok, results in ((True, expected), (False, [*map(device, arrays)])):
            guarded = [*map(device, arrays)]
            assert FUSED[update.__name__](shim, *guarded, **chosen, ok=device(np.array([ok]))) is None
            for mine, theirs in zip(guarded, results, strict=True):
                same(mine, theirs)


@pytest.mark.parametrize(("update", "states", "hypers", "flags"), UPDATES)
@given(size=st.integers(1, 700), scale=st.sampled_from([None, 1024.0]), seed=SEEDS)
def test_updates_of_float16(update, states, hypers, flags, size, scale, seed):
    """Masters bit for bit, and the parameters their roundings; one that was written counts before its master."""
    rng = np.random.default_rng(seed)
    master = rng.standard_normal(size).astype("float32")
    parameters = master.astype("float16")
    parameters[rng.integers(0, size, size // 3)] = 0.25
    grad = rng.standard_normal(size).astype("float16")
    state = [rng.random(size).astype("float32") for _ in range(states)]
    if update is rmsprop.rmsprop_update and states > 1:
        state[0] += 2
    rest = [*state, rng.random(hypers).astype("float32")]
    known = np.where(master.astype("float16") == parameters, master, parameters.astype("float32"))
    slope = grad.astype("float32") / np.float32(scale or 1.0)
    for options in flags:
        chosen = {name: bool(value) for name, value in options.items()}
        expected = [device(known), device(slope), *map(device, rest)]
        update.portable(portable, *expected, **chosen)
        untouched = [device(master), device(slope), *map(device, rest)]
        for ok, results, values in ((None, expected, expected[0]), (True, expected, expected[0]),
                                    (False, untouched, device(parameters))):  # fmt: skip
            got, rounded = [device(master), device(grad), *map(device, rest)], device(parameters)
            guards = {
                "ok": None if ok is None else device(np.array([ok])),
                "scale": None if scale is None else device(np.array([scale], "float32")),
            }
            assert FUSED[update.__name__](shim, *got, **chosen, **guards, rounded=rounded) is None
            for mine, theirs in zip((got[0], *got[2:]), (results[0], *results[2:]), strict=True):
                same(mine, theirs)
            same(rounded, values)


def dtype_of(name):
    return np.dtype(name).type


def test_every_kernel_is_launched_here():
    """Runs last: no kernel without a test above."""
    assert set(shim.kernels.ever) == set(shim.kernels.signatures)


def test_a_missing_barrier_is_found():
    """The shim can fail: without one of its barriers the sum over a block comes out wrong."""
    from xpcnn.backend.cupy.kernels import source

    a = np.arange(1, 1001, dtype=np.float32).reshape(1, 1000)
    broken = ShimBackend(
        source().replace("part[threadIdx.x] = value;\n    __syncthreads();", "part[threadIdx.x] = value;")
    )
    assert row_sums(broken, device(a), None)._host[0] != 500500
    assert row_sums(shim, device(a), None)._host[0] == 500500


def test_a_write_beside_an_array_is_found():
    from xpcnn.backend.cupy.kernels import source

    broken = ShimBackend(source().replace("out[i] = T(x[i]) <=", "out[i + 1] = T(x[i]) <="))
    x = np.zeros((4, 64), np.float32)
    with pytest.raises(AssertionError, match="wrote beyond an array"):
        relu_forward(broken, device(x), broken.empty(x.shape, x.dtype))
