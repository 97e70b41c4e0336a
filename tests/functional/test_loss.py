import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_device import counters
from tests.functional.checks import agrees
from tests.functional.strategies import dtypes, lay_out, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.testing import numerical_gradient

reductions = st.sampled_from(["mean", "sum"])


@given(
    n=st.integers(1, 5),
    k=st.integers(1, 6),
    kind=st.sampled_from(["int64", "int32", "uint8", "one-hot", "probabilities"]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    reduction=reductions,
    layout=layouts,
    dtype=dtypes,
    seed=seeds,
)
def test_cross_entropy_agrees_with_the_loops(backend, n, k, kind, smoothing, reduction, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    logits, labels = values(rng, (n, k), dtype) * 3, rng.integers(0, k, n)
    if kind == "one-hot":
        labels = np.eye(k, dtype=dtype)[labels]
    elif kind == "probabilities":
        labels = rng.dirichlet(np.ones(k), n).astype(dtype)
    else:
        labels = labels.astype(kind)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    loss_expected, dlogits_expected = R.cross_entropy(logits, labels, **options)
    device, given_labels = lay_out(backend, logits, layout), lay_out(backend, labels, layout)
    downloads = counters.downloads
    loss, dlogits = F.cross_entropy(device, given_labels, **options)
    assert backend.name == "numpy" or counters.downloads == downloads
    assert loss.shape == ()
    limit = (1e-5 if dtype == "float32" else 1e-13) * n
    assert abs(backend.to_numpy(loss) - loss_expected) < limit * 10
    assert loss.dtype == dlogits.dtype == dtype
    assert np.max(np.abs(backend.to_numpy(dlogits) - dlogits_expected)) < limit
    assert np.array_equal(backend.to_numpy(device), logits)
    assert np.array_equal(backend.to_numpy(given_labels), labels)


@pytest.mark.parametrize("labels", [np.array([1, 0, 2]), np.eye(4)[[3, 1, 1]]])
def test_the_gradient_is_the_derivative(backend, rng, labels):
    logits = values(rng, (3, 4))
    options = {"label_smoothing": 0.2}

    def loss(_):
        return backend.to_numpy(F.cross_entropy(*map(backend.asarray, (logits, labels)), **options)[0])

    dlogits = F.cross_entropy(*map(backend.asarray, (logits, labels)), **options)[1]
    assert np.allclose(backend.to_numpy(dlogits), numerical_gradient(loss, logits), rtol=0, atol=1e-9)


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    weighted=st.booleans(),
    ignored=st.sampled_from([None, -100, 0, 255, 2]),
    kind=st.sampled_from(["int64", "uint8", "int8", "probabilities"]),
    smoothing=st.sampled_from([0.0, 0.2]),
    reduction=reductions,
    layout=layouts,
    dtype=dtypes,
    seed=seeds,
)
def test_weights_pixels_and_what_is_ignored(
    backend, shape, weighted, ignored, kind, smoothing, reduction, layout, dtype, seed
):
    rng = np.random.default_rng(seed)
    logits, (n, k, *rest) = values(rng, shape, dtype) * 2, shape
    if kind == "probabilities":
        ignored = None
        labels = np.moveaxis(rng.dirichlet(np.ones(k), (n, *rest)), -1, 1).astype(dtype)
    else:
        labels = rng.integers(0, k, (n, *rest)).astype(kind)
        if ignored is not None and np.iinfo(kind).min <= ignored <= np.iinfo(kind).max:
            labels[rng.random(labels.shape) < 0.4] = ignored
    weight = rng.uniform(0.2, 3, k).astype(dtype) if weighted else None
    options = {"ignore_index": ignored, "label_smoothing": smoothing, "reduction": reduction}
    expected, gradient = R.cross_entropy(logits, labels, weight=weight, **options)
    device = None if weight is None else backend.asarray(weight)
    downloads = counters.downloads
    given_arrays = lay_out(backend, logits, layout), lay_out(backend, labels, layout)
    loss, dlogits = F.cross_entropy(*given_arrays, weight=device, **options)
    assert backend.name == "numpy" or counters.downloads == downloads
    agrees(backend, loss, expected, dtype, terms=20.0)
    agrees(backend, dlogits, gradient, dtype, terms=5.0)
    if kind != "probabilities":
        dropped = np.broadcast_to((labels == ignored)[:, None], shape)
        assert not np.any(backend.to_numpy(dlogits)[dropped])


def test_where_nothing_counts_the_mean_is_nan_and_the_gradient_0(backend):
    logits = backend.asarray(np.ones((2, 3), "float32"))
    loss, dlogits = F.cross_entropy(logits, backend.asarray(np.array([7, 7])), ignore_index=7)
    assert np.isnan(backend.to_numpy(loss))
    assert not np.any(backend.to_numpy(dlogits))


def test_options_of_cross_entropy_that_do_not_fit(backend):
    logits, labels = backend.zeros((2, 3), "float32"), backend.zeros((2,), "int64")
    with pytest.raises(ShapeError, match=r"weight: expected shape \(3,\), one for each class, got \(2,\)"):
        F.cross_entropy(logits, labels, weight=logits[0, :2])
    with pytest.raises(DTypeError, match="weight: expected a floating type"):
        F.cross_entropy(logits, labels, weight=backend.zeros((3,), "int64"))
    with pytest.raises(DTypeError, match="weight: expected an array, got list"):
        F.cross_entropy(logits, labels, weight=[1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match=r"ignore_index: expected an integer or None, got 1\.5"):
        F.cross_entropy(logits, labels, ignore_index=1.5)
    with pytest.raises(ConfigError, match="ignore_index: expected an integer or None, got True"):
        F.cross_entropy(logits, labels, ignore_index=True)
    with pytest.raises(ConfigError, match="ignore_index: expected None for labels that are probabilities"):
        F.cross_entropy(logits, logits, ignore_index=1)
    dense = backend.zeros((2, 3, 4, 4), "float32")
    with pytest.raises(ShapeError, match=r"labels: expected shape \(2, 4, 4\) or \(2, 3, 4, 4\), got \(2,\)"):
        F.cross_entropy(dense, labels)


def test_unscaled_pixels_do_not_give_an_infinite_loss(backend):
    logits = backend.asarray(np.array([[0.0, 1e5], [1e5, 0.0]], "float32"))
    loss, dlogits = F.cross_entropy(logits, backend.asarray(np.array([0, 0])))
    assert float(backend.to_numpy(loss)) == 5e4
    assert backend.to_numpy(dlogits).tolist() == [[-0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_out_of_range_are_told_when_a_value_is_read(backend, label):
    logits, labels = backend.zeros((2, 3), "float32"), backend.asarray(np.array([0, label]))

    def read():
        loss, _ = F.cross_entropy(logits, labels)  # NumPy says so at once, a device when the loss is read
        backend.to_numpy(loss)
        backend.check_demands()

    with pytest.raises(DataError, match="labels: expected classes from 0 to 2, got one outside"):
        read()
    F.cross_entropy(logits, backend.asarray(np.array([0, 2])))
    backend.check_demands()  # told once


def test_cross_entropy_refuses_what_does_not_fit(backend):
    logits, labels = backend.zeros((2, 3), "float32"), backend.zeros((2,), "int64")
    for bad, message in (
        (logits[0], r"logits: expected shape \(N, K\) or \(N, K, H, W\), got \(3,\)"),
        (logits[:0], r"labels: expected shape \(0,\) or \(0, 3\), got \(2,\)"),
        (logits[:, :0], r"logits: expected at least one class, got shape \(2, 0\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            F.cross_entropy(bad, labels)
    for bad, message in (
        (backend.zeros((3,), "int64"), r"labels: expected shape \(2,\) or \(2, 3\), got \(3,\)"),
        (backend.zeros((3, 2), "float32"), r"labels: expected shape \(2, 3\) like the logits, got \(3, 2\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            F.cross_entropy(logits, bad)
    with pytest.raises(DTypeError, match=r"labels: expected integers for shape \(N,\), got float32"):
        F.cross_entropy(logits, labels.astype("float32"))
    with pytest.raises(DTypeError, match="logits: expected a floating type"):
        F.cross_entropy(labels.reshape(1, 2), labels[:1])
    with pytest.raises(ConfigError, match="label_smoothing: expected a share from 0 to 1, got 2"):
        F.cross_entropy(logits, labels, label_smoothing=2)
    with pytest.raises(ConfigError, match='reduction: expected "mean" or "sum", got \'none\''):
        F.cross_entropy(logits, labels, reduction="none")


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), reduction=reductions, dtype=dtypes, seed=seeds
)
def test_mse_loss_is_the_mean_square_and_its_gradient(backend, shape, reduction, dtype, seed):
    rng = np.random.default_rng(seed)
    x, target = values(rng, shape, dtype), values(rng, shape, dtype)
    loss, dx = F.mse_loss(backend.asarray(x), backend.asarray(target), reduction=reduction)
    divisor = x.size if reduction == "mean" else 1
    agrees(backend, loss, np.sum((x.astype(float) - target) ** 2) / divisor, dtype)
    agrees(backend, dx, 2 * (x.astype(float) - target) / divisor, dtype)


def test_mse_loss_refuses_what_does_not_fit(backend):
    x = backend.zeros((2, 3), "float32")
    with pytest.raises(ShapeError, match=r"target: expected shape \(2, 3\), got \(3, 2\)"):
        F.mse_loss(x, x.T)
    with pytest.raises(DTypeError, match="target: expected dtype float32, got float64"):
        F.mse_loss(x, x.astype("float64"))
    with pytest.raises(ConfigError, match="reduction: expected"):
        F.mse_loss(x, x, reduction="max")


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), reduction=reductions, dtype=dtypes, seed=seeds
)
def test_l1_loss_agrees_with_the_loops(backend, shape, reduction, dtype, seed):
    rng = np.random.default_rng(seed)
    x, target = values(rng, shape, dtype), values(rng, shape, dtype)
    target.flat[0] = x.flat[0]  # where the gradient is 0
    loss, dx = F.l1_loss(backend.asarray(x), backend.asarray(target), reduction=reduction)
    expected, gradient = R.l1_loss(x, target, reduction=reduction)
    agrees(backend, loss, expected, dtype)
    agrees(backend, dx, gradient, dtype)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    weighted=st.sampled_from([None, "last", "all", "number"]),
    scale=st.sampled_from([1.0, 30.0]),
    reduction=reductions,
    dtype=dtypes,
    seed=seeds,
)
def test_binary_cross_entropy_agrees_with_the_loops(backend, shape, weighted, scale, reduction, dtype, seed):
    rng = np.random.default_rng(seed)
    x, target = values(rng, shape, dtype) * np.asarray(scale, dtype), rng.uniform(0, 1, shape).astype(dtype)
    target[rng.random(shape) < 0.5] = 1
    target[rng.random(shape) < 0.3] = 0
    weight = {None: None, "last": shape[-1:], "all": shape, "number": ()}[weighted]
    weight = None if weight is None else np.asarray(rng.uniform(0.5, 3, weight), dtype)
    device = None if weight is None else backend.asarray(weight)
    arrays = backend.asarray(x), backend.asarray(target)
    loss, dx = F.binary_cross_entropy_with_logits(*arrays, pos_weight=device, reduction=reduction)
    expected, gradient = R.binary_cross_entropy_with_logits(x, target, pos_weight=weight, reduction=reduction)
    agrees(backend, loss, expected, dtype)
    agrees(backend, dx, gradient, dtype)


def test_binary_cross_entropy_keeps_the_digits_of_small_losses(backend):
    x = np.array([40.0, -40.0, 15.0, -15.0])
    for dtype in ("float32", "float64"):
        given_arrays = backend.asarray(x.astype(dtype)), backend.asarray((x > 0).astype(dtype))
        loss, dx = F.binary_cross_entropy_with_logits(*given_arrays, reduction="sum")
        assert np.isclose(float(backend.to_numpy(loss)), 2 * (np.log1p(np.exp(-40)) + np.log1p(np.exp(-15))), rtol=1e-5)
        assert np.allclose(np.abs(backend.to_numpy(dx)), np.exp(-np.abs(x)), rtol=1e-5, atol=0)


def test_losses_refuse_what_does_not_fit(backend):
    x = backend.zeros((2, 3), "float32")
    for function in (F.l1_loss, F.binary_cross_entropy_with_logits):
        with pytest.raises(ShapeError, match=r"target: expected shape \(2, 3\), got \(3, 2\)"):
            function(x, x.T)
        with pytest.raises(DTypeError, match="target: expected dtype float32, got int64"):
            function(x, x.astype("int64"))
        with pytest.raises(ConfigError, match="reduction: expected"):
            function(x, x, reduction="none")
    for bad in (x[:, :2], x[None], x[:1, :2]):
        with pytest.raises(ShapeError, match=r"pos_weight: expected a shape that broadcasts to \(2, 3\), got"):
            F.binary_cross_entropy_with_logits(x, x, pos_weight=bad)
    with pytest.raises(DTypeError, match="pos_weight: expected a floating type"):
        F.binary_cross_entropy_with_logits(x, x, pos_weight=x[0].astype("int32"))
