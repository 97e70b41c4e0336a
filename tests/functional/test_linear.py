import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.checks import check_op
from tests.functional.strategies import dtypes, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.errors import DTypeError, MixedBackendsError, ShapeError
from xpcnn.functional import reference as R
from xpcnn.testing import numerical_gradient

LINEAR = (F.linear, F.linear_backward), (R.linear, R.linear_backward)
sizes = st.integers(1, 6)


@given(n=sizes, wide=sizes, out=sizes, bias=st.booleans(), layout=layouts, dtype=dtypes, seed=seeds)
def test_linear_agrees_with_the_loops(backend, n, wide, out, bias, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    arrays = [values(rng, (n, wide), dtype), values(rng, (out, wide), dtype), None]
    arrays[2] = values(rng, (out,), dtype) if bias else None
    check_op(backend, *LINEAR, arrays, layout=layout, rng=rng)


def test_linear_backward_is_the_derivative(backend, rng):
    arrays = [values(rng, shape) for shape in [(3, 5), (4, 5), (4,)]]
    y, cache = F.linear(*map(backend.asarray, arrays))
    dy = values(rng, y.shape)
    gradients = F.linear_backward(backend.asarray(dy), cache)

    def loss(_):
        return np.sum(dy * backend.to_numpy(F.linear(*map(backend.asarray, arrays))[0]))

    for array, gradient in zip(arrays, gradients, strict=True):
        assert np.allclose(backend.to_numpy(gradient), numerical_gradient(loss, array), rtol=0, atol=1e-8)


def test_linear_without_the_input_gradient(backend, rng):
    x, weight = (backend.asarray(values(rng, shape)) for shape in [(3, 5), (4, 5)])
    y, cache = F.linear(x, weight)
    dx, dweight, dbias = F.linear_backward(y, cache, input_gradient=False)
    assert (dx, dbias) == (None, None)
    assert np.array_equal(backend.to_numpy(dweight), backend.to_numpy(F.linear_backward(y, cache)[1]))


def test_linear_refuses_what_does_not_fit(backend):
    x, weight = backend.zeros((2, 3), "float32"), backend.zeros((4, 3), "float32")
    with pytest.raises(ShapeError, match=r"x: expected shape \(N, in_features\), got \(2, 3, 1, 1\)"):
        F.linear(x.reshape(2, 3, 1, 1), weight)
    with pytest.raises(ShapeError, match=r"weight: expected shape \(out_features, in_features\), got \(3,\)"):
        F.linear(x, weight[0])
    with pytest.raises(ShapeError, match=r"x: expected 4 features for weight \(3, 4\), got 3 in shape \(2, 3\)"):
        F.linear(x, weight.T)
    with pytest.raises(ShapeError, match=r"bias: expected shape \(4,\), got \(3,\)"):
        F.linear(x, weight, backend.zeros((3,), "float32"))
    with pytest.raises(DTypeError, match="x: expected a floating type such as float32, got int32"):
        F.linear(x.astype("int32"), weight)
    with pytest.raises(DTypeError, match="weight: expected the dtype of x, float32, got float64; convert"):
        F.linear(x, weight.astype("float64"))
    y, cache = F.linear(x, weight)
    with pytest.raises(ShapeError, match=r"dy: expected shape \(2, 4\), got \(4, 2\)"):
        F.linear_backward(y.T, cache)
    with pytest.raises(DTypeError, match="dy: expected dtype float32, got float64"):
        F.linear_backward(y.astype("float64"), cache)
    if backend.name != "numpy":
        with pytest.raises(MixedBackendsError, match="expected all on one backend"):
            F.linear(np.zeros((2, 3), "float32"), weight)
