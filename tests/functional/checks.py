"""One call of an operation, held against the loops: values, backend, dtype, inputs left alone, results kept apart."""

import numpy as np

from tests.fake_device import counters
from tests.functional.strategies import lay_out, values
from xpcnn.testing import assert_close

# What float32 loses in one operation, beside the largest entry of its result; float64 as `assert_close` has it.
TOLERANCE = {np.dtype("float32"): 1e-5, np.dtype("float64"): 2e-12}


def on_device(backend, arrays, layout):
    """Bring host arrays to the backend in a memory layout; None stays None."""
    return [None if array is None else lay_out(backend, array, layout) for array in arrays]


def agrees(backend, actual, expected, dtype, terms=0.0):
    """Check an array of the backend against the loops' float64 result, a sum of `terms` of that size."""
    if expected is None:
        assert actual is None
        return
    assert backend.owns(actual)
    assert actual.dtype == dtype
    host = backend.to_numpy(actual)
    tolerance = TOLERANCE[np.dtype(dtype)]
    assert_close(host, np.asarray(expected), tolerance=tolerance, terms=terms, same_dtype=False)


def as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


def check_op(backend, op, loops, arrays, *, layout="nchw", rng, **options):
    """Check `op` = (forward, backward) against `loops` on host arrays, of which the first decides the dtype."""
    dtype = arrays[0].dtype
    y_expected, cache_expected = loops[0](*arrays, **options)
    dy = values(rng, y_expected.shape, dtype)
    gradients_expected = as_tuple(loops[1](dy, cache_expected))

    inputs = on_device(backend, arrays, layout)
    upstream = lay_out(backend, dy, layout)
    downloads = counters.downloads
    y, cache = op[0](*inputs, **options)
    gradients = as_tuple(op[1](upstream, cache))
    assert counters.downloads == downloads  # nothing in a step waits for the device

    agrees(backend, y, y_expected, dtype)
    assert len(gradients) == len(gradients_expected)
    for gradient, expected in zip(gradients, gradients_expected, strict=True):
        agrees(backend, gradient, expected, dtype, terms=float(np.max(np.abs(dy), initial=0.0)))
    for device, host in zip([*inputs, upstream], [*arrays, dy], strict=True):
        if host is not None:
            assert np.array_equal(backend.to_numpy(device), host, equal_nan=True)

    # Results belong to the caller: a second call with other numbers writes none of them.
    before = [backend.to_numpy(array).copy() for array in (y, *gradients) if array is not None]
    others = on_device(backend, [None if array is None else array[::-1] + 1 for array in arrays], layout)
    op[1](upstream, op[0](*others, **options)[1])
    after = [backend.to_numpy(array) for array in (y, *gradients) if array is not None]
    for first, second in zip(before, after, strict=True):
        assert np.array_equal(first, second, equal_nan=True)
