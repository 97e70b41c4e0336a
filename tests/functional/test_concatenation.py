import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.strategies import dtypes, lay_out, layouts, seeds, values
from xpcnn import functional as F
from xpcnn.backend import use_backend
from xpcnn.errors import DTypeError, MixedBackendsError, ShapeError


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    axis=st.integers(-5, 4),
    layout=layouts,
    dtype=dtypes,
    seed=seeds,
)
def test_arrays_lie_side_by_side(backend, shape, sizes, axis, layout, dtype, seed):
    rng, axis = np.random.default_rng(seed), max(-len(shape), min(axis, len(shape) - 1))
    arrays = []
    for size in sizes:
        shape[axis] = size
        arrays.append(values(rng, tuple(shape), dtype))
    y, cache = F.concat([lay_out(backend, array, layout) for array in arrays], axis)
    expected = np.concatenate(arrays, axis)
    assert backend.owns(y)
    assert y.dtype == dtype
    assert np.array_equal(backend.to_numpy(y), expected)
    dy = values(rng, expected.shape, dtype)
    device = lay_out(backend, dy.copy(), layout)
    gradients = F.concat_backward(device, cache)
    ends = np.cumsum(sizes)[:-1]
    for gradient, part in zip(gradients, np.split(dy, ends, axis), strict=True):
        assert gradient.dtype == dtype
        assert np.array_equal(backend.to_numpy(gradient), part)
    device[...] = 0  # gradients are the caller's own
    assert np.array_equal(backend.to_numpy(gradients[0]), np.split(dy, ends, axis)[0])


def test_the_result_lies_batch_last(backend, rng):
    y, _ = F.concat([backend.asarray(values(rng, (2, 3, 4, 5), "float32"))] * 2)
    assert y.transpose(1, 2, 3, 0).flags.c_contiguous


def test_what_does_not_fit_is_refused(backend, rng):
    a = backend.asarray(values(rng, (2, 3, 4, 4), "float32"))
    with pytest.raises(ShapeError, match=r"arrays\[1\]: expected shape \(2, 3, 4, 4\), got \(2, 3, 4, 2\)"):
        F.concat([a, a[..., :2]])
    with pytest.raises(ShapeError, match=r"arrays\[1\]: expected shape \(2, 3, 4, 4\), got \(3, 4, 4\)"):
        F.concat([a, a[0]])
    with pytest.raises(DTypeError, match=r"arrays\[2\]: expected dtype float32, got float64"):
        F.concat([a, a, a.astype("float64")])
    with pytest.raises(DTypeError, match=r"arrays\[0\]: expected a floating type"):
        F.concat([a.astype("int32")])
    with pytest.raises(ShapeError, match="arrays: expected at least one array, got none"):
        F.concat([])
    with pytest.raises(DTypeError, match="arrays: expected a list or tuple of arrays, got "):
        F.concat(a)
    with pytest.raises(ShapeError, match="axis: expected an axis of x"):
        F.concat([a], 4)
    _, cache = F.concat([a, a])
    with pytest.raises(ShapeError, match=r"dy: expected shape \(2, 6, 4, 4\), got \(2, 3, 4, 4\)"):
        F.concat_backward(a, cache)
    with use_backend("fake" if backend.name == "numpy" else "numpy") as other:
        stray = other.zeros((2, 3, 4, 4), "float32")
    with pytest.raises(MixedBackendsError):
        F.concat([a, stray])
