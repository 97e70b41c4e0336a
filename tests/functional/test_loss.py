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
        (logits[0], r"logits: expected shape \(N, K\), got \(3,\)"),
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
